"""The second cache on disks of which a test decides what happens to them."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from couchestord.cache.compressor import Lz4
from couchestord.cache.l2 import L2
from couchestord.cache.l2folder import L2Options, Standing
from couchestord.cache.l2format import Mark
from couchestord.cache.l2map import L2Map
from couchestord.io.disk import Disk

SIZE_BYTES = 8 << 20
"""Seven segments of a MiB."""
STORE_ID = bytes(range(16))


Opener = Callable[[], Awaitable[Disk]]


class SimLog:
    """What the cache asks of a store: the epoch that it is in, and the next id when it was started."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = random.Random(seed)
        self.store_id = STORE_ID
        self.mark = Mark(1, self._rng.randbytes(8))
        self.next_id = 16

    def take_epoch(self) -> None:
        self.mark = Mark(self.mark.epoch + 1, self._rng.randbytes(8))

    def start(self) -> Standing:
        """The store is started, and takes an epoch."""
        before = self.mark
        self.take_epoch()
        return Standing(self.store_id, before, self.next_id, lambda: self.mark)


def make_l2(open_disk: Opener, standing: Standing, *, seed: int = 0, shared: L2Map | None = None, **options: Any) -> L2:
    chosen = replace(L2Options(Path("unused"), SIZE_BYTES), **options)
    return L2(chosen, standing, Lz4(), random.Random(f"{seed} {standing.now()}").randbytes, open_disk, shared)


@asynccontextmanager
async def running(where: Disk | Opener, standing: Standing, **options: Any) -> AsyncIterator[L2]:
    """The cache on a disk, or what opens one, until the body ends. It was tried to turn it on when the body begins."""

    async def open_disk() -> Disk:
        return await where() if callable(where) else where

    l2 = make_l2(open_disk, standing, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(l2.run)
        yield l2
        nursery.cancel_scope.cancel()


def chunk_of(extent: int, chunk: int = 0, length: int = 700) -> bytes:
    """Bytes that are the same for the same chunk, different for others; every third can be made smaller."""
    rng = random.Random(f"{extent} {chunk}")
    if extent % 3:
        return rng.randbytes(length)
    return (rng.randbytes(50) * (length // 50 + 1))[:length]
