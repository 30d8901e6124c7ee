"""Processes that read beside the one that writes, as that one knows them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from couchestord.cache import TierStats


@dataclass(frozen=True, slots=True)
class Warmed:
    """What a step of a warm-up did."""

    objects_count: int
    size_bytes: int
    lost_count: int
    """Objects that could not be read."""
    next_start: bytes | None
    """The next step begins after this key; None: there is none."""


@dataclass(frozen=True, slots=True)
class ReaderStats:
    """Counts of one process."""

    pid: int
    """0: those that have ended."""
    tiers: list[TierStats]
    """Of its caches."""
    degraded_reads_count: int = 0
    """Reads of stripes that had to reconstruct."""
    degraded_records_count: int = 0
    """Reads of journal records that took another copy than the first."""
    is_worker: bool = True
    """It serves clients of this daemon, and keeps what they read; else it is a mount."""


class Beside(Protocol):
    """All of them."""

    def stats(self) -> Sequence[ReaderStats]:
        """What each said last, and what those that have ended did."""
        ...

    async def evict(self, tier: str | None) -> int:
        """As `Caches.evict`, in all of them."""
        ...

    async def warm(self, bucket: str, prefix: bytes, start_after: bytes) -> Sequence[Warmed]:
        """As `Caches.warm`, in all of them. Raises what one of them raised."""
        ...


class Nobody:
    """There are none."""

    def stats(self) -> Sequence[ReaderStats]:
        return ()

    async def evict(self, tier: str | None) -> int:
        return 0

    async def warm(self, bucket: str, prefix: bytes, start_after: bytes) -> Sequence[Warmed]:
        return ()
