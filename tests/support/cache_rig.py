"""A source that counts and can be held up, and a tier that is a dictionary."""

from collections import Counter
from collections.abc import Callable

import trio

from couchestord.cache.tier import CHUNK_BYTES, TierStats
from couchestord.errors import DataLost


def extent_bytes(extent: int, size: int) -> bytes:
    """Bytes that differ from chunk to chunk and from extent to extent."""
    words = (b"%08d%08d" % (extent, at) for at in range(0, size, 16))
    return b"".join(words)[:size]


class CountingSource:
    """An extent of `size` bytes. Loads wait for `gate` when there is one; ranges that touch `lost` are lost."""

    def __init__(self, extent: int, size: int) -> None:
        self.data = extent_bytes(extent, size)
        self.loads: list[tuple[int, int]] = []
        self.held_count = 0
        self.held_max = 0
        self.gate: trio.Event | None = None
        self.lost: range = range(0)
        self.begun = trio.Event()

    async def load(self, first: int, length: int) -> bytes:
        self.loads.append((first, length))
        self.begun.set()
        if self.gate is not None:
            await self.gate.wait()
        await trio.lowlevel.checkpoint()
        if self.lost and first < self.lost.stop and first + length > self.lost.start:
            raise DataLost("it is gone")
        return self.data[first : first + length]

    def hold(self) -> None:
        self.held_count += 1
        self.held_max = max(self.held_max, self.held_count)

    def release(self) -> None:
        self.held_count -= 1


class DictTier:
    """Keeps everything it is given. What is `cold` takes a wait."""

    def __init__(self) -> None:
        self.chunks: dict[tuple[int, int], bytes] = {}
        self.cold = False
        self.counts: Counter[str] = Counter()
        self.on_get: Callable[[], None] | None = None

    def get_nowait(self, extent: int, chunk: int) -> bytes | None:
        found = None if self.cold else self.chunks.get((extent, chunk))
        self.counts["hits"] += found is not None
        return found

    def holds(self, extent: int, chunk: int) -> bool:
        return (extent, chunk) in self.chunks

    async def get(self, extent: int, chunk: int) -> bytes | None:
        await trio.lowlevel.checkpoint()
        if self.on_get is not None:
            self.on_get()
        found = self.chunks.get((extent, chunk))
        self.counts["hits" if found is not None else "misses"] += 1
        return found

    def put(self, extent: int, chunk: int, data: bytes) -> None:
        assert len(data) <= CHUNK_BYTES
        self.counts["puts"] += 1
        self.chunks.setdefault((extent, chunk), data)

    async def flush(self) -> None: ...

    async def evict(self) -> int:
        gone = sum(map(len, self.chunks.values()))
        self.chunks.clear()
        return gone

    def stats(self) -> TierStats:
        size = sum(map(len, self.chunks.values()))
        return TierStats("l2", 1 << 30, size, len(self.chunks), self.counts["hits"], self.counts["misses"], 0)
