"""Create and inspect manifests and indexes in registries."""
