from couchestord.ec.segments import SegmentOptions
from couchestord.model import Policy
from couchestord.store.options import INLINE_BYTES_MAX, StoreOptions


def test_parts() -> None:
    options = StoreOptions(stripe_bytes=1 << 16, segment_bytes=1 << 24, min_healthy_shards=5, reserve_bytes=7)
    assert options.segments() == SegmentOptions(segment_bytes=1 << 24, reserve_bytes=7)
    assert options.policy() == Policy(stripe_bytes=1 << 16, min_healthy_shards=5)


def test_the_usual_store() -> None:
    """What the documentation says."""
    options = StoreOptions()
    assert (options.k, options.m, options.stripe_bytes, options.services) == (4, 2, 1 << 20, True)
    assert INLINE_BYTES_MAX == 128 << 10
