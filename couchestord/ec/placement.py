"""Which disks a new segment lies on. Pure."""

import math
from collections.abc import Mapping

from couchestord.errors import NoSpace, TooFewDisks
from couchestord.io.checksum import xxh3_64


def choose_disks(
    free_bytes: Mapping[int, int], *, shards_count: int, least_count: int, good_count: int, turn: int
) -> tuple[int, ...]:
    """The disk of each shard of a segment, -1 for a shard that has none; no disk twice.

    `free_bytes` holds the disks that may take new data, with their room. With more of them than shards, each is taken
    about as often as its room is large; `turn`, another number for every segment, decides. With fewer, the last shards,
    which are parity, stay without a disk. Shards rotate over the disks, so that parity loads all of them alike.

    Raises NoSpace when fewer than `least_count` disks have room but `good_count`, the disks that work at all, would do;
    else TooFewDisks.
    """
    if len(free_bytes) < least_count:
        if good_count < least_count:
            raise TooFewDisks(f"{good_count} disks are good, a new segment needs {least_count}")
        raise NoSpace(
            f"{len(free_bytes)} disks have room, a new segment needs {least_count}: delete something, or add room"
        )
    by_rank = sorted(free_bytes, key=lambda disk: (_rank(disk, free_bytes[disk], turn), disk))
    chosen = sorted(by_rank[:shards_count])
    shift = turn % len(chosen)
    rotated = chosen[shift:] + chosen[:shift]
    return tuple(rotated) + (-1,) * (shards_count - len(rotated))


def _rank(disk: int, free_bytes: int, turn: int) -> float:
    """Weighted rendezvous: the lower, the sooner. A disk of twice the room is first twice as often."""
    drawn = (xxh3_64(f"{turn} {disk}".encode()) + 1) / (2**64 + 1)
    return -math.log(drawn) / max(1, free_bytes)
