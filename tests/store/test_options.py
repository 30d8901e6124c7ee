from dataclasses import replace

import pytest

from couchestord.ec.segments import SegmentOptions
from couchestord.errors import InvalidArgument
from couchestord.store.options import INLINE_BYTES_MAX, StoreOptions


@pytest.mark.parametrize(("k", "m", "disks_count"), [(4, 2, 6), (4, 2, 12), (1, 0, 1), (1, 2, 3), (10, 4, 14)])
def test_enough_disks(k: int, m: int, disks_count: int) -> None:
    assert StoreOptions(k=k, m=m, disks_count=disks_count).k == k


@pytest.mark.parametrize(("k", "m", "disks_count"), [(4, 2, 5), (0, 2, 6), (4, -1, 6), (-1, 2, 6), (6, 1, 6)])
def test_too_few_disks_or_none_of_a_kind(k: int, m: int, disks_count: int) -> None:
    with pytest.raises(InvalidArgument, match="needs at least"):
        StoreOptions(k=k, m=m, disks_count=disks_count)
    with pytest.raises(InvalidArgument):
        replace(StoreOptions(), k=k, m=m, disks_count=disks_count)


def test_part_for_the_segment_pool() -> None:
    options = StoreOptions(stripe_bytes=1 << 16, segment_bytes=1 << 24, min_healthy_shards=5, reserve_bytes=7)
    assert options.segments() == SegmentOptions(
        stripe_bytes=1 << 16, segment_bytes=1 << 24, min_healthy_shards=5, reserve_bytes=7
    )


def test_the_usual_store() -> None:
    """What the documentation says."""
    options = StoreOptions()
    assert (options.k, options.m, options.stripe_bytes, options.services) == (4, 2, 1 << 20, True)
    assert INLINE_BYTES_MAX == 128 << 10
