"""Caches: verified bytes kept in memory (L1) and, when there is one, on a device below it (L2).

What is kept is immutable and known by a content id, so nothing here is ever out of date: a store's catalog leads from a
name to the ids of its extents, and the ids to what is cached. Reads of a store go through a `CacheManager`; others can
use it too. By id, with a source of what is not cached:

>>> import trio
>>> class Letters:
...     async def load(self, first: int, length: int) -> bytes:
...         print("loaded", first, length)
...         return (b"abcdefgh" * 10_000)[first : first + length]
...     def hold(self) -> None: ...
...     def release(self) -> None: ...
>>> async def main() -> None:
...     cache = CacheManager(CacheConfig(l1_bytes=1 << 20))
...     for _ in range(2):
...         [piece] = await cache.read(7, 80_000, 3, 5, Letters())
...         print(bytes(piece))
...     print(cache.peek(7, 0)[:4], cache.peek(7, 1))
>>> trio.run(main)
loaded 0 65536
b'defgh'
b'defgh'
b'abcd' None

By name, where there is no catalog:

>>> objects = NamedCache(CacheManager(CacheConfig(l1_bytes=1 << 20)))
>>> key = CacheKey("photos", b"cat.jpg")
>>> first = objects.put(key, b"a cat")
>>> objects.get(key).data
b'a cat'
>>> objects.put(key, b"another cat").content == first.content
False
>>> objects.get(key).data
b'another cat'
>>> objects.remove(key), objects.get(key)
(True, None)

What leaves memory may be compressed:

>>> packed = make_compressor("lz4").compress(b"couchestord " * 100)
>>> make_compressor("lz4").decompress(packed, 1200)[:12]
b'couchestord '
"""

from couchestord.cache.compressor import Compression, Compressor, Lz4, NoCompression, make_compressor
from couchestord.cache.manager import CacheManager, Source
from couchestord.cache.names import CacheEntry, CacheKey, NamedCache
from couchestord.cache.settings import CACHES_OFF, CacheConfig
from couchestord.cache.tier import CHUNK_BYTES, Tier, TierStats, sum_tiers

__all__ = [
    "CACHES_OFF",
    "CHUNK_BYTES",
    "CacheConfig",
    "CacheEntry",
    "CacheKey",
    "CacheManager",
    "Compression",
    "Compressor",
    "Lz4",
    "NamedCache",
    "NoCompression",
    "Source",
    "Tier",
    "TierStats",
    "make_compressor",
    "sum_tiers",
]
