"""Machines through libvirt, on premises: one small file says what should be, and a command makes it so.

``model`` reads the file; ``domain`` turns a machine into libvirt's XML; ``plan`` compares what should be with what is, both
pure; ``state`` keeps what was done; ``libvirt`` speaks to libvirt; ``apply`` looks and acts; ``emulator`` puts the software
ultravisor in front of QEMU, where libvirt starts machines on a host without Secure Execution.
"""
