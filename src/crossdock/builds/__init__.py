"""What every caller that wires frontend and engine together needs: the embedded builder and the server."""
