"""Bake: HCL, JSON and Compose files turned into build targets."""
