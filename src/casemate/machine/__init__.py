"""Outside: software ultravisor, QEMU, the state of machines."""
