"""A node made anew: what has a copy is there byte for byte, what has none is named, wherever it was cut off."""

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from bucket_rig import UNCACHED, BucketRig, l3_of, upload
from memory_backend import MemoryBackend
from remake_rig import Lost, copy_all, lose_node, publish, read_copies
from small_store import SMALL, HandClock, body_of, catalog_of, core_of, faults_of, fingerprints, make_store, read
from upload_rig import Crash

from couchestord.errors import (
    Corrupt,
    DataLost,
    InvalidArgument,
    JournalDamaged,
    NotAStore,
    RemoteUnavailable,
    StoreExists,
    TooFewDisks,
)
from couchestord.io import mutations as mu
from couchestord.io import superblock as sb
from couchestord.io.catalog.catalog import dump, put_in_place
from couchestord.io.catalog.lost import LostObject
from couchestord.io.newdisk import write_superblock
from couchestord.store.door import ObjectStore
from couchestord.store.fsck import Finding, check_store
from couchestord.store.recover import recover_catalog
from couchestord.store.remake import Remade, remake_store


class Elsewhere(NamedTuple):
    """What a store that is lost has left."""

    objects: dict[str, bytes]
    bodies: dict[bytes, bytes | None]

    def backend(self) -> MemoryBackend:
        backend = MemoryBackend(1000)
        backend.objects = dict(self.objects)
        return backend


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    backend = MemoryBackend(1000)
    bodies = trio.run(lose_node, tmp_path_factory.mktemp("lost"), SMALL, backend)
    return Elsewhere(backend.objects, bodies)


async def remake(path: Path, backend: MemoryBackend, seed: int = 1) -> Remade:
    return await remake_store(path, SMALL, backend, HandClock(seed))


async def check(path: Path, backend: MemoryBackend, bodies: dict[bytes, bytes | None]) -> None:
    """The store in `path` has these objects and no others; twice, the second time without its catalog."""
    for turn in range(2):
        async with ObjectStore.open(path, SMALL) as store:
            assert core_of(store).started.rebuilt is None or turn
            await core_of(store).jobs.snapshotter.work()
            page = await store.list("box", max_keys=1000)
            assert {entry.key for entry in page.entries} == set(bodies)
            for key, body in bodies.items():
                if body is None:
                    with pytest.raises(Lost):
                        await read_copies(store, backend, key)
                    with pytest.raises(DataLost):
                        await read(store, key)
                else:
                    assert await read_copies(store, backend, key) == body
        assert faults_of(path) == []
        for file in path.glob("catalog.sqlite*"):
            file.unlink()


async def test_a_node_made_anew(elsewhere: Elsewhere, tmp_path: Path) -> None:
    backend, bodies = elsewhere.backend(), elsewhere.bodies
    said: list[tuple[str, int, int]] = []
    made = await remake_store(
        tmp_path / "new", SMALL, backend, HandClock(), lambda what, done, total: said.append((what, done, total))
    )
    assert made.lost_objects == 2
    assert made.lost_names == (LostObject("box", b"in stripes", 0), LostObject("box", b"in the log", 0))
    assert made.lost_bytes == 300_005
    assert made.replayed_records > 5
    assert made.blobs > 3
    assert made.missing_blobs == 0
    assert made.copied_bytes == 18 * 5000 + 6000 + 900_000
    assert {what for what, _, _ in said} == {"catalog", "log", "snapshot"}
    assert await check_store(tmp_path / "new", SMALL) == [
        Finding("lost", "box/in stripes", "its bytes are nowhere"),
        Finding("lost", "box/in the log", "its bytes are nowhere"),
    ]
    await check(tmp_path / "new", backend, bodies)


async def test_the_new_node_goes_on(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """Writes, starts, publishes, and is lost again."""
    backend, bodies = elsewhere.backend(), elsewhere.bodies
    await remake(tmp_path / "new", backend)
    async with ObjectStore.open(tmp_path / "new", SMALL) as store:
        core = core_of(store)
        await store.put("box", b"unknown", b"of the new node")
        assert await read(store, b"unknown") == b"of the new node"
        await store.delete("box", b"in stripes")
        await store.delete("box", b"a/7")
        await store.put("box", b"long", body_of(500_000, "new"))
        await core.destage_all()
        await copy_all(core, backend)
        await publish(core, backend)
        assert core.jobs.snapshotter.sequence > 0
    assert faults_of(tmp_path / "new") == []
    bodies = {key: body for key, body in bodies.items() if key not in (b"in stripes", b"a/7")}
    bodies |= {b"unknown": b"of the new node", b"long": body_of(500_000, "new")}
    await remake(tmp_path / "third", backend)
    await check(tmp_path / "third", backend, bodies)


async def test_the_old_node_may_change_nothing_from_then_on(tmp_path: Path) -> None:
    backend = MemoryBackend(1000)
    await make_store(tmp_path / "old")
    async with ObjectStore.open(tmp_path / "old", SMALL) as store:
        core = core_of(store)
        await publish(core, backend)
        await remake(tmp_path / "new", backend)
        before = dict(backend.objects)
        await store.put("box", b"more", b"body")
        with pytest.raises(AssertionError, match="copy of this store"):
            await publish(core, backend)
        assert backend.objects == before
    async with ObjectStore.open(tmp_path / "new", SMALL) as store:
        (claimed,) = [key for key in backend.objects if key.startswith("claims/")]
        assert core_of(store).disks.epoch > int(claimed[-16:], 16)


async def test_the_old_node_has_the_bucket_no_more_however_often_it_starts(tmp_path: Path) -> None:
    await make_store(tmp_path / "old", UNCACHED)
    old, new = BucketRig(tmp_path / "old"), BucketRig(tmp_path / "new")
    new.backend, new.options = old.backend, old.options
    async with old.open() as store:
        await store.put("box", b"key", body_of(200_000))
        await upload(store)
    await remake(tmp_path / "new", old.backend)
    async with ObjectStore.open(new.path, new.options) as there:
        await there.put("box", b"key", body_of(300_000))
        await upload(there)
        assert not l3_of(there).reasons()
        for _ in range(4):
            before = dict(old.backend.objects)
            async with ObjectStore.open(old.path, old.options) as store:
                await store.put("box", b"old", body_of(200_000))
                await core_of(store).destage_all()
                for job in l3_of(store).services():
                    await job.work()
                assert "copy of this store" in " ".join(l3_of(store).reasons())
            assert old.backend.objects == before
        await there.put("box", b"another", body_of(300_000))
        await upload(there)
        assert not l3_of(there).reasons()
    async with ObjectStore.open(new.path, new.options) as there:
        await upload(there)
        assert not l3_of(there).reasons()


async def test_ids_that_clients_may_know_are_not_given_again(tmp_path: Path) -> None:
    backend = MemoryBackend(1000)
    await make_store(tmp_path / "old")
    async with ObjectStore.open(tmp_path / "old", SMALL) as store:
        await store.set_versioning("box", "Enabled")
        await publish(core_of(store), backend)
        lost = {(await store.put("box", b"key", b"never published")).version_id for _ in range(30)}
    await remake(tmp_path / "new", backend)
    async with ObjectStore.open(tmp_path / "new", SMALL) as store:
        versions = {(await store.put("box", b"key", b"%d" % turn)).version_id for turn in range(20)}
    assert not lost & versions


async def test_lost_versions_parts_and_pieces_are_named(tmp_path: Path) -> None:
    backend = MemoryBackend(1000)
    await make_store(tmp_path / "old")
    async with ObjectStore.open(tmp_path / "old", SMALL) as store:
        await store.set_versioning("box", "Enabled")
        for turn in range(2):
            await store.put("box", b"dir/one", b"version %d" % turn)
        upload = (await store.create_upload("box", b"parts")).upload_id
        etags = [(await store.put_part("box", b"parts", upload, n, body_of(5 << 20, n))).etag for n in (1, 2)]
        await store.complete_upload("box", b"parts", upload, [(1, etags[0]), (2, etags[1])])
        other = (await store.create_upload("box", b"open")).upload_id
        await store.put_part("box", b"open", other, 1, b"part")
        await publish(core_of(store), backend)
    made = await remake(tmp_path / "new", backend)
    assert [(name.bucket, name.key, bool(name.version)) for name in made.lost_names] == [
        ("box", b"parts", False),
        ("box", b"dir/one", False),
        ("box", b"dir/one", True),
    ]
    assert made.lost_objects == 3
    assert made.lost_parts == 1


async def test_a_blob_that_is_gone_is_told(elsewhere: Elsewhere, tmp_path: Path) -> None:
    backend = elsewhere.backend()
    for key in [key for key in backend.objects if key.startswith("blobs/")][:2]:
        del backend.objects[key]
    made = await remake(tmp_path / "new", backend)
    assert made.missing_blobs == 2


async def test_an_empty_store(tmp_path: Path) -> None:
    backend = MemoryBackend(1000)
    await ObjectStore.create(tmp_path / "old", SMALL)
    async with ObjectStore.open(tmp_path / "old", SMALL) as store:
        await publish(core_of(store), backend)
    made = await remake(tmp_path / "new", backend)
    assert made.lost_extents == made.copied_extents == 0
    async with ObjectStore.open(tmp_path / "new", SMALL) as store:
        await store.create_bucket("box")
        await store.put("box", b"key", b"body")
        assert await read(store, b"key") == b"body"
    assert faults_of(tmp_path / "new") == []


# -- what it is cut off by ---------------------------------------------------------------------------------------------


async def test_wherever_the_backend_fails_it_can_be_run_again(elsewhere: Elsewhere, tmp_path: Path) -> None:
    backend, bodies = elsewhere.backend(), elsewhere.bodies
    kept = dict(backend.objects)
    for fail_at in itertools.count(1):
        path = tmp_path / f"new {fail_at}"
        calls = itertools.count(1)

        def fail(call: str, key: str, calls: Iterator[int] = calls, fail_at: int = fail_at) -> None:
            if next(calls) == fail_at:
                raise RemoteUnavailable(f"{call} {key}")

        backend.objects = dict(kept)
        backend.before = fail
        try:
            await remake(path, backend)
            assert fail_at > 12
            return
        except RemoteUnavailable:
            backend.before = lambda _call, _key: None
        assert not catalog_of(path).exists()
        with pytest.raises(NotAStore):
            async with ObjectStore.open(path, SMALL):
                pass
        if fail_at % 5 == 0:
            await remake(path, backend)
            await check(path, backend, bodies)
        shutil.rmtree(path, ignore_errors=True)


POINTS = ("superblock 0", "superblock 3", "superblock 5", "superblocks", "sums", "catalog", "snapshot")


@pytest.mark.parametrize("point", POINTS)
async def test_wherever_it_is_cut_off_it_can_be_run_again(
    point: str, elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the catalog has its name there is no store that starts; from then on there is one."""
    backend, bodies = elsewhere.backend(), elsewhere.bodies
    path = tmp_path / "new"
    with monkeypatch.context() as patched:
        cut(patched, point)
        with pytest.raises(Crash):
            await remake(path, backend)
    if point == "snapshot":
        assert dump(catalog_of(path))["job"] == [], "they were about other disks"
        with pytest.raises(StoreExists, match="start that store"):
            await remake(path, backend, 2)
    else:
        with pytest.raises((NotAStore, TooFewDisks, JournalDamaged)):
            async with ObjectStore.open(path, SMALL):
                pass
        assert not catalog_of(path).exists()
        await remake(path, backend, 2)
    await check(path, backend, bodies)


def cut(patched: pytest.MonkeyPatch, point: str) -> None:
    """Let the process end at a point."""
    module = "couchestord.store.remake"
    if point.startswith("superblock "):
        written = itertools.count()

        async def write_some(*arguments: object) -> None:
            if next(written) == int(point.split()[1]):
                raise Crash
            await write_superblock(*arguments)  # type: ignore[arg-type]

        patched.setattr("couchestord.io.newdisk.write_superblock", write_some)
    elif point == "snapshot":

        async def crash(*_: object) -> None:
            raise Crash

        patched.setattr(f"{module}._take_snapshot", crash)
    else:

        def put_some(made: Path, to: Path) -> None:
            if point == "sums":
                Path(f"{made}.sums").replace(f"{to}.sums")
            elif point == "catalog":
                put_in_place(made, to)
                to.unlink()
            raise Crash

        patched.setattr(f"{module}.put_in_place", put_some)


async def test_a_catalog_that_is_lost_before_there_is_a_snapshot(
    elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log does not reach back: nothing is made up, and an empty catalog least of all."""
    backend, bodies = elsewhere.backend(), elsewhere.bodies
    path = tmp_path / "new"
    with monkeypatch.context() as patched:
        cut(patched, "snapshot")
        with pytest.raises(Crash):
            await remake(path, backend)
    for writes in (False, True):
        if writes:
            async with ObjectStore.open(path, SMALL) as store:
                await store.put("box", b"more", b"body")
        away = catalog_of(path).rename(tmp_path / "away")
        Path(f"{catalog_of(path)}-wal").unlink(missing_ok=True)
        with pytest.raises(JournalDamaged):
            async with ObjectStore.open(path, SMALL):
                pass
        with pytest.raises(JournalDamaged):
            await recover_catalog(path, SMALL)
        away.rename(catalog_of(path))
    async with ObjectStore.open(path, SMALL) as store:
        assert core_of(store).jobs.snapshotter.is_due()
        assert await read(store, b"more") == b"body"
        await store.delete("box", b"more")
    await check(path, backend, bodies)


# -- what it refuses ---------------------------------------------------------------------------------------------------


async def test_disks_that_are_not_empty(tmp_path: Path) -> None:
    backend = MemoryBackend(1000)
    await lose_node(tmp_path / "old", SMALL, backend)
    other = await make_store(tmp_path / "other")
    catalog_of(other).unlink()
    (tmp_path / "files" / "disk-2").mkdir(parents=True)
    (tmp_path / "files" / "disk-2" / "photo.jpg").write_bytes(b"mine")
    shutil.copytree(tmp_path / "old", tmp_path / "same")
    catalog_of(tmp_path / "same").unlink()
    for path in ("other", "files", "same", "old"):
        before, objects = fingerprints([tmp_path / path]), dict(backend.objects)
        with pytest.raises(InvalidArgument if path == "files" else StoreExists):
            await remake(tmp_path / path, backend)
        assert fingerprints([tmp_path / path]) == before
        assert backend.objects == objects, "nothing is claimed either"


async def test_superblocks_are_taken_for_what_an_attempt_left_only_when_all_disks_are(
    elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, path = elsewhere.backend(), tmp_path / "new"
    with monkeypatch.context() as patched:
        cut(patched, "superblock 3")
        with pytest.raises(Crash):
            await remake(path, backend)
    offset, page = sb.pack_slot(sb.Slot(2, 100))
    with (path / "disk-2" / sb.PATH).open("r+b") as file:
        file.seek(offset)
        file.write(page)
    before = fingerprints([path])
    with pytest.raises(StoreExists, match="disk-2 belongs to a store"):
        await remake(path, backend)
    assert fingerprints([path]) == before


async def test_too_few_disks(elsewhere: Elsewhere, tmp_path: Path) -> None:
    backend, bodies = elsewhere.backend(), elsewhere.bodies
    few = replace(SMALL, disks_count=3)
    with pytest.raises(InvalidArgument, match="4\\+2 needs 6 disks"):
        await remake_store(tmp_path / "new", few, backend, HandClock())
    await remake_store(tmp_path / "new", replace(few, shards_per_disk=2), backend, HandClock())
    await check(tmp_path / "new", backend, bodies)


async def test_several_stores_in_one_backend(elsewhere: Elsewhere, tmp_path: Path) -> None:
    backend = MemoryBackend(1000)
    with pytest.raises(NotAStore, match="no store has published"):
        await remake(tmp_path / "new", backend)
    backend.objects, bodies = dict(elsewhere.objects), elsewhere.bodies
    await make_store(tmp_path / "other")
    async with ObjectStore.open(tmp_path / "other", SMALL) as store:
        await publish(core_of(store), backend)
        other_id = core_of(store).disks.store_id
    with pytest.raises(InvalidArgument, match="several stores"):
        await remake(tmp_path / "new", backend)
    (store_id,) = {bytes.fromhex(key.split("/")[1]) for key in backend.objects if key.startswith("roots/")} - {other_id}
    with pytest.raises(NotAStore, match="published no catalog"):
        await remake_store(tmp_path / "new", SMALL, backend, HandClock(), store_id=b"x" * 16)
    made = await remake_store(tmp_path / "new", SMALL, backend, HandClock(), store_id=store_id)
    assert made.store_id == store_id.hex()
    await check(tmp_path / "new", backend, bodies)


async def test_a_log_that_contradicts_the_catalog(
    elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = elsewhere.backend()
    with monkeypatch.context() as patched:
        patched.setattr("couchestord.store.remake.mu.decode", lambda _meta: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await remake(tmp_path / "new", backend)
    with monkeypatch.context() as patched:
        patched.setattr("couchestord.store.remake.mu.decode", lambda _meta: mu.ShardPlaced(1 << 50, 0, 0))
        with pytest.raises(Corrupt, match="cannot be applied"):
            await remake(tmp_path / "new", backend)
    assert not catalog_of(tmp_path / "new").exists()
    await remake(tmp_path / "new", backend)
