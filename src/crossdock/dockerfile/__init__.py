"""Dockerfile frontend: text to LLB plus an image config, knowing nothing of how LLB runs."""
