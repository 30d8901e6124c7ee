"""Which disks a new segment lies on, and whether there are enough for a policy. Pure."""

import math
from collections.abc import Mapping

from couchestord.ec.shards import check_stripe_bytes
from couchestord.errors import InvalidArgument, NoSpace, TooFewDisks
from couchestord.io.checksum import xxh3_64
from couchestord.io.disks import shards_per_disk
from couchestord.model import Policy

SHARDS_MAX = 192
SHARD_BYTES_MIN = 8 << 10
"""Of a full stripe. With less a segment is mostly headers, however full."""


def choose_disks(
    free_bytes: Mapping[int, int],
    *,
    shards_count: int,
    per_disk_max: int = 1,
    least_count: int,
    good_count: int,
    turn: int,
) -> tuple[int, ...]:
    """The disk of each shard of a segment, -1 for a shard that has none; no disk more often than `per_disk_max`.

    `free_bytes` holds the disks that may take new data, with their room. With more of them than shards, each is taken
    about as often as its room is large; `turn`, another number for every segment, decides. With fewer places, the last
    shards, which are parity, stay without a disk. Shards rotate over the disks, so that parity loads all of them alike.

    Raises NoSpace when the disks that have room hold fewer than `least_count` shards but `good_count`, the disks that
    work at all, would hold them; else TooFewDisks.
    """
    if len(free_bytes) * per_disk_max < least_count:
        needed = -(-least_count // per_disk_max)
        if good_count < needed:
            raise TooFewDisks(f"{good_count} disks are good, a new segment needs {needed}")
        raise NoSpace(f"{len(free_bytes)} disks have room, a new segment needs {needed}: delete something, or add room")
    by_rank = sorted(free_bytes, key=lambda disk: (_rank(disk, free_bytes[disk], turn), disk))
    chosen: list[int] = []
    for _ in range(per_disk_max):
        chosen += sorted(by_rank[: shards_count - len(chosen)])
    shift = turn % len(chosen)
    rotated = chosen[shift:] + chosen[:shift]
    return tuple(rotated) + (-1,) * (shards_count - len(rotated))


def check_policy(policy: Policy, disks_count: int, per_disk_max: int) -> None:
    """Whether a policy makes sense, and `disks_count` disks can hold it at `per_disk_max` shards each.

    Raises InvalidArgument, which says what to do.
    """
    k, m = policy.k, policy.m
    if k < 1 or m < 0 or k + m > SHARDS_MAX:
        raise InvalidArgument(f"{k}+{m} cannot be coded: k is at least 1, m at least 0, k+m at most {SHARDS_MAX}")
    if policy.stripe_bytes < k * SHARD_BYTES_MIN:
        raise InvalidArgument(
            f"stripes of {policy.stripe_bytes} bytes are too short: at least {k * SHARD_BYTES_MIN} with k = {k}"
        )
    check_stripe_bytes(k, policy.stripe_bytes)
    if policy.min_healthy_shards and not k <= policy.min_healthy_shards <= k + m:
        raise InvalidArgument(
            f"min_healthy_shards is {policy.min_healthy_shards}: it must be from k = {k} to k+m = {k + m}, or 0 for k"
        )
    if shards_per_disk(k + m, disks_count) > per_disk_max or not disks_count:
        kind = f"disks of class {policy.disk_class!r}" if policy.disk_class else "disks"
        several = f" at {per_disk_max} shards a disk" if per_disk_max > 1 else ""
        raise InvalidArgument(
            f"{k}+{m} needs {-(-(k + m) // per_disk_max)} {kind}{several}, there are {disks_count}: choose a smaller k "
            "or m, or make the store with more disks or more shards_per_disk"
        )


def _rank(disk: int, free_bytes: int, turn: int) -> float:
    """Weighted rendezvous: the lower, the sooner. A disk of twice the room is first twice as often."""
    drawn = (xxh3_64(f"{turn} {disk}".encode()) + 1) / (2**64 + 1)
    return -math.log(drawn) / max(1, free_bytes)
