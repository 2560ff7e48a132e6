"""Seeds from plain values, so that a step draws the same whatever ran before it."""

from __future__ import annotations

import hashlib
from typing import Any


def seed_of(*key: Any) -> int:
    """A 63-bit seed from plain values: equal on every machine, unrelated for neighbouring keys."""
    digest = hashlib.blake2b("\0".join(str(part) for part in key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
