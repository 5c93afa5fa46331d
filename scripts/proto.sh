#!/bin/sh
# Regenerate the protobuf classes. Generated with the oldest grpcio-tools we support, so that they load with any newer
# protobuf and grpcio.
set -eu
cd "$(dirname "$0")/.."
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install -q 'grpcio-tools==1.68.1' 'setuptools<80' 'googleapis-common-protos<1.70'
out=src/crossdock/buildkit/proto
# The stubs are for the tests alone: grpcio is their independent peer.
stubs=tests/support/grpcstubs
rm -f "$out"/*_pb2*.py* "$stubs"/*_pb2_grpc.py
"$venv/bin/python" -m grpc_tools.protoc -I src -I "$("$venv/bin/python" -c 'import google.rpc, os; print(os.path.dirname(os.path.dirname(os.path.dirname(google.rpc.__path__[0] + "/x"))))')" \
  --python_out=src --pyi_out=src --grpc_python_out=src "$out"/*.proto
# messages without a service need no stubs
for f in "$out"/*_pb2_grpc.py; do if grep -q 'class .*Stub' "$f"; then mv "$f" "$stubs"; else rm "$f"; fi; done
