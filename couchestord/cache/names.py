"""Names over content ids: a cache by (bucket, key) for who has no catalog that leads from names to extents."""

import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from couchestord.cache.manager import CacheManager
from couchestord.cache.tier import CHUNK_BYTES, EXTENT_BITS
from couchestord.errors import DataLost

NAMES_MAX: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What a caller calls an object."""

    bucket: str
    key: bytes


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """What is kept under a key."""

    key: CacheKey
    content: int
    """Id of these bytes, of no others ever."""
    data: bytes


class NamedCache:
    """Objects by name in a CacheManager. A name leads to a content id, and another object gets another id: so tiers
    never hold anything out of date, and to replace or remove an object costs the same, however large it is.

    Names are kept in memory, at most `names_max`, those that came first dropped first. Do not share the manager with a
    store: ids would be mixed. What an earlier process left in a tier no name leads to: `evict` it before the first put.
    """

    def __init__(self, manager: CacheManager, *, names_max: int = NAMES_MAX) -> None:
        self._manager = manager
        self._names_max = names_max
        self._names: OrderedDict[CacheKey, tuple[int, int]] = OrderedDict()
        # what lies in a tier from before has other ids, though nobody evicted it: as good as always
        self._next_id = 1 + secrets.randbits(EXTENT_BITS - 1)

    def put(self, key: CacheKey, data: bytes) -> CacheEntry:
        """Keep an object, in place of the one of that name."""
        self.remove(key)
        if len(self._names) >= self._names_max:
            self._names.popitem(last=False)
        content = self._next_id
        self._next_id += 1
        self._names[key] = content, len(data)
        for at in range(0, len(data), CHUNK_BYTES):
            self._manager.offer(content, at // CHUNK_BYTES, data[at : at + CHUNK_BYTES])
        return CacheEntry(key, content, data)

    def get(self, key: CacheKey) -> CacheEntry | None:
        """An object that is at hand, without waiting."""
        content, size = self._names.get(key, (0, 0))
        data = self._manager.peek_range(content, 0, size) if content else None
        return None if data is None else CacheEntry(key, content, bytes(data))

    async def fetch(self, key: CacheKey) -> CacheEntry | None:
        """An object that any tier has. A name that leads to nothing any more is forgotten."""
        content, size = self._names.get(key, (0, 0))
        if not content:
            return None
        try:
            pieces = await self._manager.read(content, size, 0, size, _Nowhere())
        except DataLost:
            self.remove(key)
            return None
        return CacheEntry(key, content, b"".join(pieces))

    def remove(self, key: CacheKey) -> bool:
        """Forget an object. False when its name was not known."""
        return self._names.pop(key, None) is not None


class _Nowhere:
    """There is no place but the cache."""

    async def load(self, first: int, length: int) -> bytes:
        raise DataLost("the caches have dropped it")

    def hold(self) -> None: ...

    def release(self) -> None: ...
