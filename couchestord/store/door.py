"""ObjectStore: the one door to everything that is kept."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from couchestord.clock import Clock, SystemClock
from couchestord.model import NO_CONDITIONS
from couchestord.store.caching import Caches
from couchestord.store.core import Core
from couchestord.store.handed import HandedOver
from couchestord.store.health import Health, describe_object, health, status
from couchestord.store.members import Members
from couchestord.store.opening import create_directories, open_directories
from couchestord.store.options import StoreOptions
from couchestord.store.policies import Policies
from couchestord.store.store import Objects


class ObjectStore(Objects):
    """Objects in buckets, kept on this node's disks; `Objects` says how.

    ::

        async with ObjectStore.open("data") as store:
            await store.create_bucket("photos")
            await store.put("photos", b"2026/one.jpg", body)
            async with await store.get("photos", b"2026/one.jpg") as reader:
                async for piece in reader:
                    ...
    """

    def __init__(self, core: Core) -> None:
        """Over a running core; use `open`."""
        super().__init__(core)
        self.core = core
        """The parts below, for what serves them to other processes."""
        self.policies = Policies(core)
        self.disks = Members(core)
        self.caches = Caches(core)
        self.handed_over = HandedOver(core)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, path: Path | str, options: StoreOptions | None = None, *, clock: Clock | None = None
    ) -> "AsyncIterator[ObjectStore]":
        """Open the store in the data folder `path`: its disks (`options.disks`, else `disk-0`, ...) and its catalog.

        Starts with disks missing, as far as it can, and never makes a missing one anew. Raises NotAStore when no disk
        holds a superblock, DiskLocked when another process has it open, ForeignDisk, UnknownFormat, JournalDamaged
        when acknowledged records are on none of the disks, TooFewDisks.
        """
        async with open_directories(Path(path), options or StoreOptions(), clock or SystemClock()) as core:
            yield cls(core)

    @classmethod
    async def create(cls, path: Path | str, options: StoreOptions | None = None, *, clock: Clock | None = None) -> None:
        """Make an empty store in the data folder `path`. Raises StoreExists when a disk belongs to one, DiskError."""
        await create_directories(Path(path), options or StoreOptions(), clock or SystemClock())

    # -- operation -------------------------------------------------------------------------------------------------

    def health(self) -> Health:
        """How the store is, with reasons."""
        return health(self.core)

    async def status(self) -> dict[str, Any]:
        """Everything an operator asks, ready for JSON."""
        return await status(self.core, self.caches.beside.stats()) | {"caches": self.caches.stats()}

    async def describe(self, bucket: str, key: bytes) -> dict[str, Any]:
        """Where every extent, shard and replica of an object lies, ready for JSON. Raises NoSuchKey."""
        row, info = self._find(bucket, key, None, NO_CONDITIONS)
        return describe_object(self.core, row, info)

    async def destage(self) -> None:
        """Move everything that can be from the journal to stripes, and free the journal. For tools and tests."""
        await self.core.destage_all()

    async def wait_until_better(self) -> None:
        """Until a store that was opened read only may be written when it is opened again; for ever for any other."""
        await self.core.better.wait()

    async def drain(self) -> None:
        """Refuse new writes (ShuttingDown) and wait for those under way."""
        await self.core.writer.drain()
