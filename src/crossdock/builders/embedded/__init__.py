"""The embedded engine as a node: what runs inside a worker namespace, and how a caller outside one gets there."""
