"""SIEVE: the cache in memory. Byte capped, synchronous, without a lock on a hit.

Theory of operation (Zhang and others, "SIEVE is Simpler than LRU", NSDI 2024). Entries lie in a list in the order they
came. A hit moves nothing, it marks its entry. Room is made by a hand that goes from old to new: it passes over what is
marked, taking the mark away, drops the first entry that is not, and stays there. So what was asked for again survives
a round of the hand, and what a scan brings, once and never again, is dropped soon after it came, while it pushes
nothing out that is in use.
"""

from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

ENTRY_BYTES: Final = 288
"""What an entry takes beside its value (node, key, slot in the index): counted too, so that a cap holds for small
values as for large ones.
"""

K = TypeVar("K", bound=Hashable)
Evicted = Callable[[K, bytes, bool], None]
"""Hears of an entry that went to make room: its key, its value, and whether it was wanted while it was here."""


class _Node(Generic[K]):
    __slots__ = ("key", "newer", "older", "value", "visited", "wanted")

    def __init__(self, key: K, value: bytes, wanted: bool, older: "_Node[K] | None") -> None:
        self.key = key
        self.value = value
        self.visited = False
        self.wanted = wanted
        self.older = older
        self.newer: _Node[K] | None = None


class Sieve(Generic[K]):
    """Bytes by key, up to a cap: one list and one hand. Belongs to one thread; nothing here waits.

    >>> cache: Sieve[str] = Sieve(capacity_bytes=3 * (ENTRY_BYTES + 1))
    >>> [cache.put(key, key.encode()) for key in "abc"]
    [True, True, True]
    >>> cache.get("a")
    b'a'
    >>> cache.put("d", b"d")
    True
    >>> [key for key in "abcd" if key in cache]
    ['a', 'c', 'd']
    """

    __slots__ = (
        "_hand",
        "_newest",
        "_nodes",
        "_oldest",
        "_on_evict",
        "capacity_bytes",
        "evictions_count",
        "hits_count",
        "misses_count",
        "size_bytes",
    )

    def __init__(self, capacity_bytes: int, on_evict: Evicted[K] | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self.size_bytes = 0
        """What is taken, with `ENTRY_BYTES` for each entry: never more than the cap."""
        self.hits_count = self.misses_count = self.evictions_count = 0
        self._on_evict = on_evict
        self._nodes: dict[K, _Node[K]] = {}
        self._newest: _Node[K] | None = None
        self._oldest: _Node[K] | None = None
        self._hand: _Node[K] | None = None
        """The next to be looked at; None: the oldest."""

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, key: K) -> bool:
        """Without counting, and without a mark."""
        return key in self._nodes

    def get(self, key: K) -> bytes | None:
        """The value, counted as a hit; or None, counted as a miss."""
        node = self._nodes.get(key)
        if node is None:
            self.misses_count += 1
            return None
        node.visited = True
        self.hits_count += 1
        return node.value

    def peek(self, key: K) -> bytes | None:
        """As `get`, but a miss is not counted: who asks will ask again."""
        node = self._nodes.get(key)
        if node is None:
            return None
        node.visited = True
        self.hits_count += 1
        return node.value

    def put(self, key: K, value: bytes, *, wanted: bool = False) -> bool:
        """Keep a value, in place of the one under that key. False when it is larger than all the room there is.

        `wanted`: tell so when it is evicted, even if nobody asked for it meanwhile.
        """
        size = len(value) + ENTRY_BYTES
        old = self._nodes.get(key)
        if old is not None:
            self._unlink(old)
        if size > self.capacity_bytes:
            return False
        if self.size_bytes + size > self.capacity_bytes:
            self._evict_to(self.capacity_bytes - size)
        newest = self._newest
        node = _Node(key, value, wanted or (old is not None and (old.wanted or old.visited)), newest)
        if newest is None:
            self._oldest = node
        else:
            newest.newer = node
        self._newest = node
        self._nodes[key] = node
        self.size_bytes += size
        return True

    def wanted(self) -> list[tuple[K, bytes]]:
        """What would be told as wanted if it were evicted now."""
        return [(key, node.value) for key, node in self._nodes.items() if node.visited or node.wanted]

    def clear(self) -> int:
        """Forget everything, without a word to who hears of evictions; answers how many bytes went."""
        gone = self.size_bytes
        node = self._oldest
        while node is not None:  # else the nodes hold each other until a collection
            node.older, node.newer, node = None, None, node.newer
        self._nodes.clear()
        self._newest = self._oldest = self._hand = None
        self.size_bytes = 0
        return gone

    def _evict_to(self, limit_bytes: int) -> None:
        hand = self._hand or self._oldest
        while hand is not None and self.size_bytes > limit_bytes:
            if hand.visited:
                hand.visited = False
                hand.wanted = True
                hand = hand.newer or self._oldest
                continue
            self._unlink(hand)
            self.evictions_count += 1
            if self._on_evict is not None:
                self._on_evict(hand.key, hand.value, hand.wanted)
            hand = hand.newer or self._oldest
        self._hand = hand

    def _unlink(self, node: _Node[K]) -> None:
        older, newer = node.older, node.newer
        if older is None:
            self._oldest = newer
        else:
            older.newer = newer
        if newer is None:
            self._newest = older
        else:
            newer.older = older
        if self._hand is node:
            self._hand = newer
        del self._nodes[node.key]
        self.size_bytes -= len(node.value) + ENTRY_BYTES


class ShardedSieve(Generic[K]):
    """Several sieves behind the face of one, each with its share of the room: a key belongs to one of them for ever.

    Shards keep threads that lock them out of each other's way. Nothing here locks, since one thread is all there is:
    they are kept to measure, see docs/adr/0009-one-list-in-memory.md. An entry larger than a shard's share is refused.
    """

    __slots__ = ("_shards",)

    def __init__(self, capacity_bytes: int, shards_count: int, on_evict: Evicted[K] | None = None) -> None:
        self._shards = [Sieve[K](capacity_bytes // shards_count, on_evict) for _ in range(shards_count)]

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def __contains__(self, key: K) -> bool:
        return key in self._shards[hash(key) % len(self._shards)]

    @property
    def capacity_bytes(self) -> int:
        return sum(shard.capacity_bytes for shard in self._shards)

    @property
    def size_bytes(self) -> int:
        return sum(shard.size_bytes for shard in self._shards)

    @property
    def hits_count(self) -> int:
        return sum(shard.hits_count for shard in self._shards)

    @property
    def misses_count(self) -> int:
        return sum(shard.misses_count for shard in self._shards)

    @property
    def evictions_count(self) -> int:
        return sum(shard.evictions_count for shard in self._shards)

    def get(self, key: K) -> bytes | None:
        return self._shards[hash(key) % len(self._shards)].get(key)

    def peek(self, key: K) -> bytes | None:
        return self._shards[hash(key) % len(self._shards)].peek(key)

    def put(self, key: K, value: bytes, *, wanted: bool = False) -> bool:
        return self._shards[hash(key) % len(self._shards)].put(key, value, wanted=wanted)

    def wanted(self) -> list[tuple[K, bytes]]:
        return [entry for shard in self._shards for entry in shard.wanted()]

    def clear(self) -> int:
        return sum([shard.clear() for shard in self._shards])


Cache = Sieve[K] | ShardedSieve[K]


def make_cache(capacity_bytes: int, shards_count: int, on_evict: Evicted[K] | None = None) -> Cache[K]:
    """One list, or as many as there are shards."""
    if shards_count == 1:
        return Sieve(capacity_bytes, on_evict)
    return ShardedSieve(capacity_bytes, shards_count, on_evict)
