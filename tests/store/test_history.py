"""What a store publishes is what it knows, whatever its jobs do meanwhile."""

from contextlib import aclosing
from pathlib import Path

import pytest
from memory_backend import MemoryBackend
from publish_rig import QUICK, run
from small_store import body_of, catalog_of, core_of, new_store, put_all

from couchestord.clock import SystemClock
from couchestord.errors import DataLost
from couchestord.io.catalog.catalog import Catalog, dump
from couchestord.remote.publisher import Publisher
from couchestord.remote.restoring import fetch_catalog
from couchestord.remote.root import Founding
from couchestord.remote.roots import Roots
from couchestord.store.core import Core
from couchestord.store.history import StoreHistory


def history_of(core: Core) -> StoreHistory:
    return StoreHistory(core.disks, core.catalog, core.journal, core.stripes, core.pins, core.jobs.snapshotter.ask)


async def no_claim() -> None:
    return None


async def publish(core: Core, backend: MemoryBackend, epoch: int = 1) -> tuple[Roots, Publisher]:
    history = history_of(core)
    roots = Roots(backend, core.disks.store_id)
    publisher = Publisher(
        history, roots, core.disks.store_id, epoch, history.founding(), no_claim, SystemClock().now_ns, QUICK
    )
    await run(publisher)
    return roots, publisher


async def fetched(roots: Roots, path: Path) -> dict[str, list[tuple[object, ...]]]:
    """The rows that a node made anew from what was published has, before the log is applied."""
    await fetch_catalog(roots, path, lambda *_: None)
    return dump(path)


async def test_the_snapshot_and_the_records_behind_it(tmp_path: Path) -> None:
    async with new_store(tmp_path / "store") as store:
        core = core_of(store)
        await put_all(store, {b"%d" % number: body_of(20_000, number) for number in range(60)})
        await store.destage()
        published_at = core.jobs.snapshotter.sequence
        with core.catalog.snapshot():
            pass
        await store.put("box", b"later", b"in the log")
        await store.delete("box", b"7")
        roots, publisher = await publish(core, MemoryBackend())
        assert publisher.sequence == core.catalog.committed_sequence > published_at
        (name,) = await roots.names()
        root = await roots.read_root(name)
        assert root.sequence == published_at
        assert root.founding == Founding(4, 2, 64 << 10, 0, core.disks.identity.created_ns)
        assert len(root.pieces) > 2
        rows = await fetched(roots, tmp_path / "fetched")
        assert rows["state"][0][2] == published_at
        assert len(rows["entry"]) == 60
        history = history_of(core)
        records = [entry async for _, entry in history.records(published_at + 1)]
        assert [entry async for _, entry, _ in roots.entries(root)] == records
        assert len(records) == core.catalog.committed_sequence - published_at


async def test_a_store_without_a_snapshot(tmp_path: Path) -> None:
    async with new_store(tmp_path / "store") as store:
        core = core_of(store)
        await store.put("box", b"one", b"body")
        roots, _ = await publish(core, MemoryBackend())
        (name,) = await roots.names()
        root = await roots.read_root(name)
        assert (root.sequence, root.pieces) == (0, ())
        entries = [sequence async for sequence, _, _ in roots.entries(root)]
        assert entries == list(range(1, core.catalog.committed_sequence + 1))


async def test_the_pieces_stay_while_they_are_read(tmp_path: Path) -> None:
    """A snapshot that is replaced meanwhile: its segments are emptied, and dropped only then."""
    async with new_store(tmp_path / "store") as store:
        core = core_of(store)
        await put_all(store, {b"%d" % number: body_of(2000, number) for number in range(400)})
        await store.destage()
        history = history_of(core)
        async with history.snapshot() as snapshot, aclosing(snapshot.pieces) as pieces:
            found = [bytes(await anext(pieces))]
            for turn in range(3):
                core.jobs.snapshotter._whole = True
                await store.put("box", b"turn %d" % turn, b"body")
                assert await core.jobs.snapshotter.take()
                for _ in range(20):
                    await core.jobs.compactor.work()
            found += [bytes(piece) async for piece in pieces]
        assert history.snapshot_sequence() > snapshot.sequence
        (tmp_path / "file").write_bytes(b"".join(found))
        catalog = Catalog(tmp_path / "file")
        assert catalog.applier.sequence == snapshot.sequence
        catalog.close()


async def test_records_that_were_trimmed(tmp_path: Path) -> None:
    async with new_store(tmp_path / "store") as store:
        core = core_of(store)
        await put_all(store, {b"%d" % number: body_of(20_000, number) for number in range(20)})
        await store.destage()
        assert core.journal.first_sequence is not None
        assert core.journal.first_sequence > 1
        with pytest.raises(DataLost):
            await anext(history_of(core).records(1))
        assert catalog_of(tmp_path / "store").exists()


async def test_a_snapshot_that_is_asked_for_is_taken_once(tmp_path: Path) -> None:
    async with new_store(tmp_path / "store") as store:
        core = core_of(store)
        assert not core.jobs.snapshotter.is_due()
        history_of(core).ask_for_snapshot()
        assert core.jobs.snapshotter.is_due()
        await core.jobs.snapshotter.work()
        assert core.jobs.snapshotter.taken_count == 1
        assert history_of(core).snapshot_sequence() > 0
        assert not core.jobs.snapshotter.is_due()
