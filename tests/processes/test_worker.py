"""What a worker has of what the daemon was given."""

from couchestord.cache import CacheConfig
from couchestord.processes.worker import share_of


def test_memory_is_divided_and_every_share_is_legal() -> None:
    assert share_of(CacheConfig(128 << 20, 1024 // 8), 4) == CacheConfig(32 << 20, 32)
    for shards in (1, 2, 3, 64):
        for workers in (1, 2, 3, 7, 64):
            share = share_of(CacheConfig(shards << 20, shards), workers)
            assert share.l1_bytes == (shards << 20) // workers
            assert share.l1_shards >= 1
    assert share_of(CacheConfig(0), 3).l1_bytes == 0
