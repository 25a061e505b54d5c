"""Outside: builds images, their keys, certificates and reference values."""
