"""Solver: a pure state machine over the vertex graph, and the threads that run it."""
