"""Short random names: lower-case letters and digits 2-7, 40 bits."""

from __future__ import annotations

import os
from typing import NewType

__all__ = ["LayerId", "new_id"]

#: name of a layer in this store; short, so that many fit into one overlay mount option
LayerId = NewType("LayerId", str)

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_LENGTH = 8


def new_id() -> str:
    """Return eight random characters."""
    bits = int.from_bytes(os.urandom(5), "big")
    return "".join(_ALPHABET[bits >> shift & 31] for shift in range(0, 5 * _LENGTH, 5))
