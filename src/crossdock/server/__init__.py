"""The embedded engine offered over BuildKit's gRPC API: ``crossdock serve``, a drop-in for ``buildkitd``.

The gRPC layer only translates: Control and LLBBridge calls become calls of the engine's façade, what the engine asks
for (directories, logins, secrets, agents, places for outputs) becomes calls into the client's session.
"""
