"""Layers: tar reading and writing, whiteouts, overlay differences, compression."""
