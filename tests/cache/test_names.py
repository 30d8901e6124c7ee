"""Names over content ids.

Seen to fail with: one id for two objects, a name kept beyond the bound, a name kept that leads to nothing,
ids that no tier keeps.
"""

import random

from cache_rig import DictTier
from l2_rig import SimLog, running
from simdisk import SimDisk

from couchestord.cache import CHUNK_BYTES, CacheConfig, CacheKey, CacheManager, NamedCache

KEYS = [CacheKey("box", b"key-%d" % number) for number in range(8)]


async def test_against_a_dict() -> None:
    """What is found is what was put last; with memory for a few chunks only, it may be gone."""
    for l1_bytes, tier in ((1 << 28, None), (1 << 18, None), (1 << 18, DictTier())):
        rng = random.Random(l1_bytes)
        cache, kept, found_count = NamedCache(CacheManager(CacheConfig(l1_bytes=l1_bytes), tier=tier)), {}, 0
        for number in range(2000):
            key, what = rng.choice(KEYS), rng.choice(("put", "get", "get", "fetch", "remove"))
            if what == "put":
                kept[key] = rng.randbytes(4) * rng.choice((0, 1, 100, CHUNK_BYTES // 4, CHUNK_BYTES // 4 + number % 9))
                assert cache.put(key, kept[key]).data == kept[key]
            elif what == "remove":
                kept.pop(key, None)
                cache.remove(key)
            else:
                found = cache.get(key) if what == "get" else await cache.fetch(key)
                found_count += found is not None
                assert found is None or (found.key, found.data) == (key, kept[key])
                assert found is not None or key not in kept or l1_bytes < 1 << 28
        assert found_count > 100


async def test_a_name_that_leads_to_nothing_is_forgotten() -> None:
    manager = CacheManager(CacheConfig(l1_bytes=1 << 20))
    cache = NamedCache(manager)
    cache.put(KEYS[0], b"body")
    await manager.evict()
    assert cache.get(KEYS[0]) is None
    assert await cache.fetch(KEYS[0]) is None
    assert not cache.remove(KEYS[0])


async def test_another_object_is_another_content_and_what_a_tier_keeps_of_the_old_one_is_not_found() -> None:
    tier = DictTier()
    cache = NamedCache(CacheManager(CacheConfig(l1_bytes=1 << 20), tier=tier))
    first = cache.put(KEYS[0], b"old")
    tier.put(first.content, 0, b"old")
    second = cache.put(KEYS[0], b"new")
    assert first.content != second.content
    found = await cache.fetch(KEYS[0])
    assert found == second


async def test_a_tier_takes_and_finds_what_memory_drops() -> None:
    """The ids that are given are such as it can keep."""
    async with running(SimDisk("cache", random.Random(1)), SimLog().start()) as tier:
        cache = NamedCache(CacheManager(CacheConfig(l1_bytes=2000), tier=tier))
        bodies = {key: random.Random(key.key).randbytes(500) for key in KEYS}
        for key, body in bodies.items():
            cache.put(key, body)
            cache.get(key)
        await tier.flush()
        assert tier.stats().entries_count > 3
        for key, body in bodies.items():
            found = await cache.fetch(key)
            assert found is not None
            assert found.data == body


def test_names_are_bounded() -> None:
    cache = NamedCache(CacheManager(CacheConfig(l1_bytes=1 << 20)), names_max=3)
    for key in KEYS[:4]:
        cache.put(key, b"body")
    assert [cache.get(key) is not None for key in KEYS[:4]] == [False, True, True, True]
    cache.put(KEYS[3], b"again")
    assert cache.get(KEYS[1]) is not None
