"""Certificate chains and revocation lists, pure: bytes in, results out."""
