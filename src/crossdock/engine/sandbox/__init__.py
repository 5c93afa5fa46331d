"""Sandbox: the worker namespace, mounts and the OCI runtime."""
