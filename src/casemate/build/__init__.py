"""The secure build: keys that nobody has seen, and what they sign (host code, never in the guest)."""
