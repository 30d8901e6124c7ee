"""Shards to code with, and what they must become."""

import random
from collections.abc import Sequence

from couchestord.ec.galois import combine, generator


def random_shards(k: int, size_bytes: int, seed: int = 0) -> list[bytes]:
    """k shards, the same for the same arguments."""
    rng = random.Random(f"{k} {size_bytes} {seed}")
    return [rng.randbytes(size_bytes) for _ in range(k)]


def codeword(k: int, m: int, data: Sequence[bytes]) -> list[bytes]:
    """All k + m shards, by plain arithmetic and no engine."""
    return [*data, *(combine(row, data) for row in generator(k, k + m)[k:])]
