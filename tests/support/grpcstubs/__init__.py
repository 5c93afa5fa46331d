"""Stubs of grpcio for BuildKit's services, made by scripts/proto.sh: an independent client and server for the tests."""
