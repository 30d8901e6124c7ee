"""A real store with a bucket behind it, whose jobs are stepped by hand."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from catalog_check import check_catalog
from memory_backend import MemoryBackend
from publish_rig import QUICK
from small_store import SMALL, HandClock, catalog_of, core_of, finish, shard_files

from couchestord.cache import CacheConfig
from couchestord.errors import RemoteUnavailable
from couchestord.remote.options import UploadOptions
from couchestord.store.door import ObjectStore
from couchestord.store.l3 import L3
from couchestord.store.options import L3Options, StoreOptions, Watermarks

UNCACHED = replace(SMALL, cache=CacheConfig(0))
NOW = UploadOptions(linger_s=0.0, retry_s=0.0)


class BucketRig:
    """A store in a folder and its bucket, both of which outlive a start."""

    def __init__(self, path: Path, mode: Literal["cache", "tiered"] = "cache", upload: UploadOptions = NOW) -> None:
        self.path = path
        self.backend = MemoryBackend(keys_per_page=100)
        l3 = L3Options(lambda _clock: self.backend, mode, upload, Watermarks(0, 0), publish=QUICK)
        self.options: StoreOptions = replace(UNCACHED, l3=l3)
        self._starts_count = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[ObjectStore]:
        """Each start has its own randomness, as has a process: with the same, two would make the same claim."""
        self._starts_count += 1
        async with ObjectStore.open(self.path, self.options, clock=HandClock(self._starts_count)) as store:
            yield store
        check_catalog(catalog_of(self.path))

    def set_mode(self, mode: Literal["cache", "tiered"]) -> None:
        """From the next start on."""
        assert self.options.l3 is not None
        self.options = replace(self.options, l3=replace(self.options.l3, mode=mode))

    def blobs(self) -> list[str]:
        return [key for key in self.backend.objects if key.startswith("blobs/")]


def l3_of(store: ObjectStore) -> L3:
    found = core_of(store).jobs.l3
    assert found is not None
    return found


def lose_stripes(path: Path) -> None:
    """Nothing of the shards is left but the headers of their files."""
    for file in shard_files(path):
        file.write_bytes(file.read_bytes()[:4096])


async def upload(store: ObjectStore, *, destage: bool = True) -> None:
    """Destage everything, then let the bucket's jobs come to their ends."""
    if destage:
        await core_of(store).destage_all()
    for job in l3_of(store).services():
        await finish(job)


async def upload_until_older_catalogs_are_gone(store: ObjectStore) -> None:
    """From the bucket: those that name what was dropped by now."""
    for _ in range(4):
        await upload(store)


async def seal_all(store: ObjectStore) -> None:
    for row in core_of(store).catalog.reading.segments_open():
        await core_of(store).pool.retire(row.id)


def set_tight(store: ObjectStore, *, tight: bool = True) -> None:
    for index in core_of(store).disks.good():
        core_of(store).disks.set_tight(index, tight=tight)


def fail(_call: str, _key: str) -> None:
    raise RemoteUnavailable("the bucket is away")
