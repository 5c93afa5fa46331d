"""The embedded engine offered over BuildKit's gRPC API."""
