"""Formats and rules, pure: bytes in, bytes out."""
