"""Ops: how each LLB operation is keyed and executed."""
