from couchestord.ec.segments import SegmentOptions
from couchestord.io.room import Room
from couchestord.model import Policy
from couchestord.store.options import INLINE_BYTES_MAX, StoreOptions


def test_parts() -> None:
    options = StoreOptions(stripe_bytes=1 << 16, segment_bytes=1 << 24, min_healthy_shards=5)
    assert options.segments() == SegmentOptions(segment_bytes=1 << 24)
    assert options.policy() == Policy(stripe_bytes=1 << 16, min_healthy_shards=5)


def test_small_disks_get_small_journals_and_segments_and_small_file_systems_a_small_reserve() -> None:
    """Of six folders on 6 GB each has 1 GB: five percent of that is its journal, a 64th the shard of a segment; four
    percent of all the reserve.
    """
    options = StoreOptions(reserve_bytes=1 << 40).clipped([Room(1 << 30, 0, 0, 6), Room(1 << 40, 0, 0, 1)])
    assert options.segment_bytes == 4 * (1 << 30) // 64
    assert (options.journal.size_bytes, options.reserve_bytes) == ((1 << 30) // 20, (6 << 30) // 25)


def test_the_usual_store() -> None:
    """What the documentation says."""
    options = StoreOptions()
    assert (options.k, options.m, options.stripe_bytes, options.services) == (4, 2, 1 << 20, True)
    assert INLINE_BYTES_MAX == 128 << 10
