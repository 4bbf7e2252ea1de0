"""Seeds that say all by themselves what a draw is for, so that no generator's state has to be saved."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: object) -> int:
    """Return a seed of 128 bits for numpy, or after ``% 2**63`` for torch; equal for equal parts alone."""
    # Hashed, since numpy takes the numbers [1, 2] and [1, 2, 0] for the same seed.
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=16).digest(), "little")
