"""Inside the TEE: the bootloader and one module a service. Imports the pure part and the standard library only."""
