"""Store: content, layer directories, metadata, leases and garbage collection."""
