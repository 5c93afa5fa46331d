"""Sandbox: the worker namespace, mounts and the OCI runtime.

Import from the modules: ``worker`` (light, first thing in a build) and ``sandbox`` (when a step must run).
"""
