"""Embedded engine: runs LLB without a daemon."""
