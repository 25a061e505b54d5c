"""Outside: the demo's story, and the real services that it and the tests talk to (registry, log backend, containers)."""
