"""Drivers: how a node is reached and started."""
