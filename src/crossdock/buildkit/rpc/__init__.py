"""gRPC over any byte stream, in Python alone: HTTP/2 below, calls in both directions above.

Why not grpcio: it dials and serves sockets only, so that an HTTP upgrade, ``docker exec`` or the session (a server at
our end of a stream that we opened) each need a second socket and two threads of copying; it handles messages one by
one, at some 50 us each, where a context of 12,000 files is 24,000 messages; and importing it takes as long as a
cached build.

Modules, from the wire up: ``hpack`` < ``http2`` < ``status`` < ``channel`` (our calls), ``serve`` (calls of the peer).

Spec: RFC 9113 (HTTP/2), RFC 7541 (HPACK), grpc/grpc ``doc/PROTOCOL-HTTP2.md``.
"""
