"""BuildKit client: its gRPC API and session services, from Python."""
