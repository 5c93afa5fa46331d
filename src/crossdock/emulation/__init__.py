"""Emulation: QEMU discovery and binfmt_misc registration, private and host-wide."""
