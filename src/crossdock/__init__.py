"""Build container images for every platform, from one machine, without a daemon."""
