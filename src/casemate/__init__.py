"""Casemate: sealed contracts, encrypted machines, records that an auditor can check.

What runs where:

- ``contract``, ``attestation``, ``secureexec``, ``luks``, ``certificates``, ``cidata``: formats and rules, pure (no I/O).
- ``guest``: what runs inside the TEE: the bootloader and one module a service. Uses the pure part only.
- ``image``, ``machine``, ``demo``, ``cli``: what runs outside.
"""

__version__ = "0.1.0"
