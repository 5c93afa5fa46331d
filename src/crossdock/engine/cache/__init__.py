"""Cache: keys, content checksums and records."""
