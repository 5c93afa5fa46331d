"""Command line: click commands, one module per command, and the Docker CLI plugin handshake."""
