"""A real store on real folders, small, whose background jobs are stepped by hand."""

import hashlib
import random
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio
from modes import l2_folder, mode

from couchestord.io.catalog.check import find_faults
from couchestord.io.catalog.read import SegmentRow
from couchestord.io.journalfile import JournalOptions
from couchestord.io.sqlite import open_reader
from couchestord.service import Progress, Service
from couchestord.store.core import Core
from couchestord.store.door import ObjectStore
from couchestord.store.opening import CATALOG_NAME
from couchestord.store.options import StoreOptions
from couchestord.store.store import Objects

STRIPE_BYTES = 64 << 10
SEGMENT_BYTES = 1 << 20
JOURNAL = JournalOptions(size_bytes=64 << 20, file_bytes=1 << 20, preallocate_bytes=64 << 10, spare_below_bytes=1 << 60)
SMALL = StoreOptions(
    stripe_bytes=STRIPE_BYTES,
    segment_bytes=SEGMENT_BYTES,
    engine="zfec",
    reserve_bytes=0,
    journal=JOURNAL,
    disk_deadline_s=120.0,  # a sync of a loaded machine takes seconds: no disk is to be given up for that
    rebuild_grace_s=0.0,
    background_bytes_per_s=1 << 40,
    services=False,
    cache=mode().config(l2_folder()),
)


class HandClock:
    """Wall time that moves when told to, and randomness with a seed."""

    def __init__(self, seed: int = 0) -> None:
        self.ns = 1_700_000_000_000_000_000
        self._rng = random.Random(seed)

    def now_ns(self) -> int:
        self.ns += 1
        return self.ns

    def random_bytes(self, count: int) -> bytes:
        return self._rng.randbytes(count)


def body_of(length: int, seed: object = 0) -> bytes:
    """Bytes that differ everywhere, the same for the same arguments."""
    return random.Random(f"{length} {seed}").randbytes(length)


def md5_of(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


async def stream(body: bytes, piece_bytes: int = 10_000) -> AsyncIterator[bytes]:
    """A body in pieces that fit nothing."""
    for at in range(0, len(body), piece_bytes):
        yield body[at : at + piece_bytes]


async def make_store(path: Path, options: StoreOptions = SMALL) -> Path:
    """A new store in `path`, with the bucket `box`."""
    await ObjectStore.create(path, options)
    async with ObjectStore.open(path, options) as store:
        await store.create_bucket("box")
    return path


@asynccontextmanager
async def new_store(path: Path, **changes: Any) -> AsyncIterator[ObjectStore]:
    """A new store, open, with the bucket `box`."""
    options = replace(SMALL, **changes)
    await make_store(path, options)
    async with ObjectStore.open(path, options) as store:
        yield store


def core_of(store: ObjectStore) -> Core:
    """The parts of a store, for tests that step its jobs or look below the door."""
    return store.core


async def finish(service: Service) -> None:
    """Step a service until it has nothing to do."""
    for _ in range(1000):
        if await service.work() in (Progress.IDLE, Progress.DONE):
            return
    raise AssertionError(f"{service.name} does not come to an end")


async def compared(core: Core) -> None:
    """Until no disk that returned is being compared any more."""
    while core.jobs.monitor._comparing:
        await trio.sleep(0.001)


async def look(store: ObjectStore) -> None:
    """A step of the monitor, and what it began."""
    await core_of(store).jobs.monitor.work()
    await compared(core_of(store))


async def read(store: Objects, key: bytes, bucket: str = "box", **how: Any) -> bytes:
    async with await store.get(bucket, key, **how) as reader:
        return await reader.read()


def segments(store: ObjectStore) -> list[SegmentRow]:
    return core_of(store).catalog.reading.segments()


def shard_files(path: Path) -> list[Path]:
    """Every shard file of the store in `path`."""
    return sorted(path.glob("disk-*/segments/*"))


def journal_files(path: Path) -> list[Path]:
    return sorted(path.glob("disk-*/journal/*"))


def flip(path: Path, offset: int, length: int = 1) -> None:
    """Rot."""
    with path.open("r+b") as file:
        file.seek(offset)
        was = file.read(length)
        assert len(was) == length, "rot lies past the end of the file"
        file.seek(offset)
        file.write(bytes(byte ^ 0xFF for byte in was))


def fingerprints(paths: Iterable[Path]) -> dict[Path, str]:
    """Sum of every file below these folders, but for the locks."""
    return {
        file: hashlib.sha256(file.read_bytes()).hexdigest()
        for path in paths
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "lock"
    }


def catalog_of(path: Path) -> Path:
    return path / CATALOG_NAME


def faults_of(path: Path) -> list[str]:
    """What contradicts itself in the catalog of a store in `path`."""
    connection = open_reader(catalog_of(path))
    try:
        return find_faults(connection)
    finally:
        connection.close()


@contextmanager
def other_reader(path: Path) -> Iterator[None]:
    """A reader beside the store's own that stays at what its catalog holds now."""
    with closing(open_reader(catalog_of(path))) as connection:
        connection.execute("begin")
        connection.execute("select sequence from state").fetchone()
        yield


async def put_all(store: ObjectStore, bodies: dict[bytes, bytes]) -> None:
    for key, body in bodies.items():
        await store.put("box", key, body)
