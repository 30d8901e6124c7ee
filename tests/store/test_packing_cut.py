"""The power goes while blobs are packed anew: each extent is in an old blob or in the new one, and no garbage stays."""

import itertools
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from bucket_rig import NOW, l3_of, seal_all
from catalog_check import check_catalog
from memory_backend import MemoryBackend
from publish_rig import QUICK
from simstore import SimMachine, run_seeded, small_options
from small_store import body_of, core_of, finish, put_all, read
from upload_rig import Crash

from couchestord.cache import CacheConfig
from couchestord.remote.blob import BlobName, Held
from couchestord.store.door import ObjectStore
from couchestord.store.ledger import CatalogLedger
from couchestord.store.options import L3Options, Watermarks

BODY_BYTES = 10_000
BLOBS = 2
Kept = dict[bytes, bytes]


class CutRig:
    """`at` is called before and after whatever lasts: of the bucket, and records of the job."""

    def __init__(self, path: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.backend = MemoryBackend(keys_per_page=100)
        self.backend.before = lambda call, _key: self.at(f"before {call}")
        self.backend.after = lambda call, _key: self.at(f"after {call}")
        l3 = L3Options(lambda _clock: self.backend, "tiered", NOW, Watermarks(0, 0), publish=QUICK)
        options = replace(small_options(4, 2, 6), l3=l3, cache=CacheConfig(0))
        self.machine = SimMachine(path, options, self.random)
        self.at: Callable[[str], None] = lambda _event: None

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Records of the job."""
        begin, replace_ = CatalogLedger.begin, CatalogLedger.replace

        async def watched_begin(ledger: CatalogLedger, ids: int = 0) -> BlobName:
            self.at("before begin")
            name = await begin(ledger, ids)
            self.at("after begin")
            return name

        async def watched_replace(
            ledger: CatalogLedger, name: BlobName, index: Sequence[Held], moved: Sequence[Held], old: int
        ) -> int:
            self.at("before replace")
            count = await replace_(ledger, name, index, moved, old)
            self.at("after replace")
            return count

        patch.setattr(CatalogLedger, "begin", watched_begin)
        patch.setattr(CatalogLedger, "replace", watched_replace)


async def fill(store: ObjectStore) -> Kept:
    """Two blobs of four objects each, of which one lives, in the bucket only; answers these."""
    kept: Kept = {}
    await store.create_bucket("box")
    for blob in range(BLOBS):
        bodies = {b"%d-%d" % (blob, number): body_of(BODY_BYTES, (blob, number)) for number in range(4)}
        await put_all(store, bodies)
        await jobs(store, "upload")
        kept[b"%d-0" % blob] = bodies[b"%d-0" % blob]
    await seal_all(store)
    await jobs(store, "evict", "evict", "metadata")
    for blob, number in itertools.product(range(BLOBS), range(1, 4)):
        await store.delete("box", b"%d-%d" % (blob, number))
    return kept


async def jobs(store: ObjectStore, *names: str) -> None:
    for name in names:
        await finish(next(service for service in l3_of(store).services() if service.name == name))


async def check(store: ObjectStore, kept: Kept) -> None:
    page = await store.list("box")
    assert {entry.key for entry in page.entries} == set(kept)
    for key, body in kept.items():
        assert await read(store, key) == body, key


async def cut_off(path: Path, cut_at: int, patch: pytest.MonkeyPatch) -> bool:
    """False when the job came to its end before."""
    rig = CutRig(path, cut_at)
    rig.watch(patch)
    machine = rig.machine
    await machine.create()
    async with machine.running() as (_, store):
        kept = await fill(store)
        events = itertools.count(1)

        def cut(event: str) -> None:
            if next(events) == cut_at:
                machine.cut(rig.random.sample(range(6), rig.random.randrange(7)))
                raise Crash(event)

        rig.at = cut
        with suppress(Crash):
            await jobs(store, "pack-bucket")
        rig.at = lambda _event: None
        if not machine.is_cut:
            assert next(events) > 14
    is_cut = machine.is_cut
    async with machine.running() as (_, store):
        await check(store, kept)
        for _ in range(5):
            await jobs(store, "upload", "pack-bucket", "leftovers")
            await core_of(store).jobs.snapshotter.take()
            await jobs(store, "metadata", "clean-bucket")
        await check(store, kept)
        found = l3_of(store).status()
        assert (found["blobs"], found["only_bytes"]) == (1, BLOBS * BODY_BYTES)
        assert len([key for key in rig.backend.objects if key.startswith("blobs/")]) == 1
    check_catalog(machine.catalog_path)
    return is_cut


def test_wherever_the_power_goes(tmp_path: Path) -> None:
    for cut_at in range(1, 99):
        path = tmp_path / f"{cut_at}"
        path.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            if not run_seeded(cut_at, partial(cut_off, path, cut_at, patch)):
                return
    raise AssertionError("it never came through")
