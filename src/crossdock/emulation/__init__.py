"""Emulation: QEMU discovery and binfmt_misc registration, private and host-wide.

``emulator`` decides how an architecture is run; ``host`` manages the host's handlers; ``platforms`` lists what this
machine offers.
"""
