"""What caches a store has."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from couchestord.cache.compressor import Compression
from couchestord.cache.l2map import L2Map

SHARD_BYTES_MIN: Final = 1 << 20
"""Less would hold but a few chunks."""


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """What caches there are, and how large; sizes in bytes. Raises ValueError for what makes no sense."""

    l1_bytes: int = 128 << 20
    """Memory; 0: no caches."""
    l1_shards: int = 1
    l2_path: Path | None = None
    """Folder of the second tier."""
    l2_bytes: int = 0
    """Room it may take; 0: there is none."""
    compression: Compression = "lz4"
    """Of what is written to the second tier."""
    l2_shared_device: bool = False
    """Let it lie on the device of a data disk."""
    l2_map: L2Map | None = None
    """Other processes share the second tier: the one that has it needs no memory in front of it."""

    def __post_init__(self) -> None:
        if min(self.l1_bytes, self.l2_bytes, self.l1_shards - 1) < 0:
            raise ValueError("sizes of caches are not negative, and there is at least one shard")
        if self.l1_shards > 1 and self.l1_bytes < self.l1_shards * SHARD_BYTES_MIN:
            raise ValueError(f"L1 in {self.l1_shards} shards needs {self.l1_shards * SHARD_BYTES_MIN} bytes at least")
        if self.l2_bytes and not (self.l2_path and (self.l1_bytes or self.l2_map)):
            raise ValueError("L2 needs a folder, and L1 in front of it")


CACHES_OFF: Final = CacheConfig(l1_bytes=0)
