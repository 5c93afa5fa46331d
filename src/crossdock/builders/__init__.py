"""Builders: the buildx-compatible store, routing of platforms to nodes, and drivers."""
