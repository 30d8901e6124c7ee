"""A start brings log and catalog together, whatever became of the catalog.

Seen to fail with: a catalog ahead of the log kept; the digest not compared; the sums of pages not looked at; the tail
applied to the catalog before it was renewed; a full file system taken for damage; a reserve that is not given up; a
catalog discarded before the new one is made.
"""

import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest
import trio
from catalog_check import check_catalog
from decide_rig import StepClock, put_request
from log_rig import SMALL_FILES, STORE_ID, entry, new_disks, restarted
from loops import LoopDisk, need
from simdisk import SimDisk

from couchestord.errors import (
    DiskError,
    DiskFailed,
    DiskFull,
    ForeignDisk,
    JournalDamaged,
    NoSpace,
    NoSuchFile,
    TooFewDisks,
    UnknownFormat,
)
from couchestord.io import disks as disks_module
from couchestord.io import requests as rq
from couchestord.io.catalog.catalog import FILE_SUFFIXES, Catalog, dump
from couchestord.io.catalog.pages import PAGE_BYTES, store_sums, verify_pages
from couchestord.io.catalog.reserve import Reserve
from couchestord.io.disk import Disk
from couchestord.io.disks import Disks, load_disks, read_superblock
from couchestord.io.indexing import Indexer
from couchestord.io.journal import Journal
from couchestord.io.recovery import chain, check_torn, scan
from couchestord.io.sqlite import checkpoint, open_writer
from couchestord.io.superblock import Slot
from couchestord.model import Conditions, Policy
from couchestord.service import Progress
from couchestord.store.decide import Decider
from couchestord.store.mounts import Mounts
from couchestord.store.start import Started, start
from couchestord.store.writer import Writer


async def no_snapshot(_: Path) -> bool:
    return False


async def begin(sims: list[SimDisk], path: Path) -> Started:
    return await start(await load_disks(sims), path, SMALL_FILES, no_snapshot, verify_pages)


@asynccontextmanager
async def running(sims: list[SimDisk], path: Path, seed: int) -> AsyncIterator[tuple[Disks, Started, Writer]]:
    """A start; at the end the catalog is left as a kill would leave it, but for its descriptors."""
    disks = await load_disks(sims)
    started = await start(disks, path, SMALL_FILES, no_snapshot, verify_pages)
    catalog = started.catalog
    decider = Decider(catalog, StepClock(seed), lambda: disks.epoch, Mounts(path.with_name("mounts.json")))
    writer = Writer(catalog, started.journal, disks, decider, Reserve(catalog.path, 0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        yield disks, started, writer
        nursery.cancel_scope.cancel()
    catalog.close()


async def work(sims: list[SimDisk], path: Path, seed: int, count: int = 60) -> None:
    """A start and some writes."""
    rng = random.Random(seed)
    async with running(sims, path, seed) as (_, started, writer):
        if started.catalog.reading.bucket("bucket") is None:
            await writer.submit(rq.MakeBucket("bucket", ""))
        for _ in range(count):
            key = b"d%d/%d" % (rng.randrange(5), rng.randrange(40))
            if rng.random() < 0.3:
                await writer.submit(rq.DeleteObject("bucket", key, None, Conditions()))
            else:
                await writer.submit(put_request("bucket", key, rng.randbytes(rng.randint(1, 900))))


async def index_all(sims: list[SimDisk], path: Path) -> None:
    started = await begin(sims, path)
    started.catalog.close()
    indexer = Indexer(await load_disks(sims), started.journal, records_min=1, closed_min=1)
    while await indexer.work() is Progress.BUSY:
        pass


def copy_catalog(path: Path, to: Path) -> None:
    for suffix in FILE_SUFFIXES:
        if Path(f"{path}{suffix}").exists():
            shutil.copy(f"{path}{suffix}", f"{to}{suffix}")


def deleted(path: Path, _older: Path) -> None:
    for suffix in FILE_SUFFIXES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def put_back_older(path: Path, older: Path) -> None:
    deleted(path, older)
    copy_catalog(older, path)


def without_wal(path: Path, _older: Path) -> None:
    assert Path(f"{path}-wal").stat().st_size
    Path(f"{path}-wal").unlink()


def checkpointed(path: Path, _older: Path) -> None:
    assert len(set(checkpoint(path))) == 1
    store_sums(path)


def overwritten_page(path: Path, older: Path) -> None:
    checkpointed(path, older)
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    with path.open("r+b") as file:
        file.seek(5 * PAGE_BYTES + 2000)
        file.write(b"rot")


def noise(path: Path, older: Path) -> None:
    deleted(path, older)
    path.write_bytes(b"no database at all. " * 1000)


def anothers(path: Path, _older: Path) -> None:
    Catalog.create(path, b"another store...", Policy())


def ahead(path: Path, _older: Path) -> None:
    connection = open_writer(path)
    connection.execute("update state set sequence=sequence+5")
    connection.close()
    store_sums(path)


def another_course(path: Path, _older: Path) -> None:
    connection = open_writer(path)
    connection.execute("update state set digest=x'0000000000000000'")
    connection.close()
    store_sums(path)


def untouched(_path: Path, _older: Path) -> None:
    pass


Rot = Callable[[list[SimDisk]], Awaitable[None]]
Harm = Callable[[Path, Path], None]
DISCARDED: list[Harm] = [overwritten_page, noise, anothers, ahead, another_course]
KEPT: list[Harm] = [untouched, checkpointed, put_back_older, without_wal]


@pytest.mark.parametrize("harm", [deleted, *DISCARDED, *KEPT])
@pytest.mark.parametrize("away", [(), (2,), (0, 5)])
async def test_the_catalog_is_as_it_was(tmp_path: Path, harm: Harm, away: tuple[int, ...]) -> None:
    path, older = tmp_path / "catalog.sqlite", tmp_path / "older.sqlite"
    sims = await new_disks(1)
    await work(sims, path, 1)
    copy_catalog(path, older)
    await work(sims, path, 2)
    before = dump(path)
    harm(path, older)
    started = await begin(restarted(sims, away), path)
    started.catalog.close()
    assert (started.rebuilt is not None) == (harm is deleted or harm in DISCARDED)
    assert dump(path) == before
    check_catalog(path)
    assert Path(f"{path}.discarded").exists() == (harm in DISCARDED)


async def test_a_rebuilt_catalog_is_kept_by_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(2)
    await work(sims, path, 1)
    overwritten_page(path, path)
    for rebuilt in (True, False, False):
        started = await begin(sims, path)
        started.catalog.close()
        assert (started.rebuilt is not None) == rebuilt


async def test_leftovers_that_cannot_be_removed_keep_no_store_from_starting(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(2)
    await work(sims, path, 1)
    Path(f"{path}.new").mkdir()
    started = await begin(sims, path)
    started.catalog.close()
    assert started.rebuilt is None


async def test_a_start_that_fails_leaves_the_catalog_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(3)
    await work(sims, path, 1)
    checkpointed(path, path)
    await work(sims, path, 2)
    before = dump(path)

    async def cut_off(_: Disks) -> int:
        raise RuntimeError("killed")

    monkeypatch.setattr(Disks, "take_epoch", cut_off)
    with pytest.raises(RuntimeError, match="killed"):
        await begin(restarted(sims), path)
    monkeypatch.undo()
    started = await begin(sims, path)
    started.catalog.close()
    assert started.rebuilt is None
    assert dump(path) == before


async def test_a_start_says_why_a_catalog_that_contradicts_the_log_cannot_be_made_anew(tmp_path: Path) -> None:
    path, older = tmp_path / "catalog.sqlite", tmp_path / "older.sqlite"
    sims = await new_disks(14)
    await work(sims, path, 1)
    copy_catalog(path, older)
    await work(sims, path, 2)
    put_back_older(path, older)
    with closing(open_writer(path)) as connection:
        connection.execute("drop table entry")
    store_sums(path)
    first = min([name for sim in sims for name in await sim.list("journal")])
    for sim in sims:
        with suppress(NoSuchFile):
            await sim.unlink(f"journal/{first}")
    with pytest.raises(JournalDamaged, match="records 1 to"):
        await begin(sims, path)
    assert not Path(f"{path}.discarded").exists()


async def test_a_long_log_is_applied_with_a_short_wal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(15)
    for seed in (1, 2):
        await work(sims, path, seed, 150)
    before, real = dump(path), Catalog.commit
    deleted(path, path)
    lengths: list[int] = []

    def commit(catalog: Catalog) -> None:
        real(catalog)
        lengths.append(catalog.wal_bytes())

    monkeypatch.setattr(Catalog, "commit", commit)
    monkeypatch.setattr("couchestord.store.replay.RECORDS_PER_TRANSACTION", 10)
    monkeypatch.setattr("couchestord.store.replay.WAL_BYTES_MAX", 150_000)
    started = await begin(sims, path)
    started.catalog.close()
    assert len(lengths) > 20
    assert max(lengths) < 300_000
    assert dump(path) == before
    verify_pages(path)
    check_catalog(path)


async def test_starts_cut_off_anywhere_lose_nothing(tmp_path: Path) -> None:
    path, lost = tmp_path / "catalog.sqlite", tmp_path / "lost.sqlite"
    sims = await new_disks(4)
    await work(sims, path, 1, 20)
    before = dump(path)
    for steps in range(0, 60, 3):
        again = restarted(sims)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def once(disks: list[SimDisk] = again, scope: trio.CancelScope = scope) -> None:
                    (await begin(disks, path)).catalog.close()
                    scope.cancel()

                nursery.start_soon(once)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        deleted(lost, lost)
        started = await begin(restarted(again), lost)
        started.catalog.close()
        assert dump(lost) == before, f"cut off after {steps} steps"


@pytest.mark.parametrize("indexed", [False, True])
async def test_damage_stops_the_start_unless_the_catalog_holds_what_it_said(tmp_path: Path, indexed: bool) -> None:
    """An index says that the records are there: that is found out when they are needed."""
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(5)
    await work(sims, path, 1, 150)
    if indexed:
        await index_all(sims, path)
    before = dump(path)
    names = [await sim.list("journal") for sim in sims]
    first = min(name for there in names for name in there)
    for sim, there in zip(sims, names, strict=True):
        if first in there:
            data = await sim.read(f"journal/{first}", 0, 1 << 20)
            sim.rot(f"journal/{first}", data.index(b"CJRC", 4096 + 500) + 20)
    started = await begin(sims, path)
    started.catalog.close()
    assert bool(started.chain.damage) != indexed
    assert dump(path) == before
    noise(path, path)
    unfit = path.read_bytes()
    for _ in range(2):
        with pytest.raises(JournalDamaged, match="Bring the missing disks back"):
            await begin(restarted(sims), path)
        assert path.read_bytes() == unfit
        assert {file.name for file in tmp_path.iterdir()} == {path.name}, "nothing was made that could take its place"


async def test_a_newer_catalog_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(6)
    await work(sims, path, 1, 5)
    connection = open_writer(path)
    connection.execute("update state set schema_version=99")
    connection.close()
    store_sums(path)
    before = path.read_bytes()
    with pytest.raises(UnknownFormat):
        await begin(sims, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("harm", [put_back_older, deleted, noise])
async def test_lack_of_room_is_no_damage(tmp_path: Path, harm: Harm) -> None:
    """On a file system that is really full: the reserve is used, and without one the catalog waits for room."""
    need("mkfs.ext4", "losetup", "mount")
    elsewhere, older, copy = (tmp_path / f"{name}.sqlite" for name in ("elsewhere", "older", "copy"))
    sims = await new_disks(8)
    await work(sims, elsewhere, 1, 20)
    copy_catalog(elsewhere, older)
    await work(sims, elsewhere, 2, 200)
    before = dump(elsewhere)
    loop = LoopDisk(tmp_path / "image", tmp_path / "data", "ext4", 32 << 20)
    try:
        loop.mount()
        path = loop.folder / "catalog.sqlite"
        reserve = Path(f"{path}.reserve")
        copy_catalog(elsewhere, path)
        harm(path, older)
        is_sound = harm is put_back_older
        for has_reserve in (False, True):
            if has_reserve:
                (loop.folder / "filler").unlink()
                assert Reserve(path, 4 << 20).make(0)
                if not is_sound:
                    # what the attempt before has left is as good as what was there then
                    assert not list(loop.folder.glob("*.discarded"))
            loop.fill()
            copy_catalog(path, copy)
            if not has_reserve:
                with pytest.raises(NoSpace, match="Make room there"):
                    await begin(restarted(sims), path)
                for suffix in ("", ".sums"):
                    there, was = Path(f"{path}{suffix}"), Path(f"{copy}{suffix}")
                    assert there.exists() == was.exists()
                    assert not was.exists() or there.read_bytes() == was.read_bytes()
                assert not list(loop.folder.glob("*.discarded"))
                assert not list(loop.folder.glob("*.new*"))
                continue
            started = await begin(restarted(sims), path)
            started.catalog.close()
            assert (started.rebuilt is None) == is_sound
            assert not reserve.exists()
            assert dump(path) == before
            assert bool(list(loop.folder.glob("*.discarded"))) == (harm is noise)
    finally:
        loop.destroy()


async def test_an_empty_store_starts(tmp_path: Path) -> None:
    sims = await new_disks(7)
    for rebuilt in (None, None):
        started = await begin(sims, tmp_path / "catalog.sqlite")
        started.catalog.close()
        assert (started.rebuilt, started.replayed_count) == (rebuilt, 0)
        assert started.catalog.applier.store_id == STORE_ID


# -- the end of the log is damaged on all its replicas -----------------------------------------------------------------


async def last_file(sims: list[SimDisk]) -> tuple[str, list[SimDisk], bytes]:
    """(path, its disks, its bytes) of the newest journal file."""
    names = [await sim.list("journal") for sim in sims]
    last = max(name for there in names for name in there)
    holders = [sim for sim, there in zip(sims, names, strict=True) if last in there]
    path = f"journal/{last}"
    return path, holders, await holders[0].read(path, 0, 1 << 20)


async def rot_last_record(sims: list[SimDisk]) -> None:
    path, holders, data = await last_file(sims)
    for sim in holders:
        sim.rot(path, data.rindex(b"CJRC") + 30)


async def rot_middle(sims: list[SimDisk]) -> None:
    path, holders, data = await last_file(sims)
    for sim in holders:
        sim.rot(path, data.index(b"CJRC", len(data.rstrip(b"\0")) // 2) + 30)


async def rot_header(sims: list[SimDisk]) -> None:
    path, holders, _ = await last_file(sims)
    for sim in holders:
        sim.rot(path, 10, length=50)


async def rot_all(sims: list[SimDisk]) -> None:
    path, holders, data = await last_file(sims)
    for sim in holders:
        sim.rot(path, 0, length=len(data))


async def lose_epoch(sims: list[SimDisk]) -> None:
    """What was written under the newest epoch."""
    path, _, _ = await last_file(sims)
    for sim in sims:
        for name in await sim.list("journal"):
            if name.partition("-")[0] == path.removeprefix("journal/").partition("-")[0]:
                await sim.unlink(f"journal/{name}")


async def lose_log(sims: list[SimDisk]) -> None:
    for sim in sims:
        for name in await sim.list("journal"):
            await sim.unlink(f"journal/{name}")


@pytest.mark.parametrize("rot", [rot_last_record, rot_middle, rot_header, rot_all, lose_epoch, lose_log])
async def test_a_catalog_that_knows_more_than_a_damaged_log_is_kept(tmp_path: Path, rot: Rot) -> None:
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(8)
    for seed in (1, 3):
        await work(sims, path, seed, 15)
    before = dump(path)
    await rot(sims)
    for _ in range(2):
        started = await begin(sims, path)
        started.catalog.close()
        assert started.rebuilt is None
        assert dump(path) == before
    assert Catalog(path).main_file_sequence() == started.catalog.applier.sequence or rot is rot_header
    # and the log goes on behind what it lost
    await work(sims, path, 2, 5)
    after = dump(path)
    started = await begin(restarted(sims), path)
    started.catalog.close()
    assert dump(path) == after != before


@pytest.mark.parametrize("rot", [rot_middle, rot_header, rot_all])
async def test_a_damaged_end_of_the_log_is_never_lost_unsaid(tmp_path: Path, rot: Rot) -> None:
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(9)
    await work(sims, path, 1, 30)
    before = dump(path)
    await rot(sims)
    deleted(path, path)
    if rot is rot_header:
        started = await begin(sims, path)
        started.catalog.close()
        assert dump(path) == before, "records say themselves what they are"
    else:
        with pytest.raises(JournalDamaged, match="damaged or missing on every disk"):
            await begin(sims, path)


async def test_a_catalog_that_ends_before_the_damage_is_refused_and_left_alone(tmp_path: Path) -> None:
    path, older = tmp_path / "catalog.sqlite", tmp_path / "older.sqlite"
    sims = await new_disks(10)
    await work(sims, path, 1, 30)
    copy_catalog(path, older)
    await work(sims, path, 2, 30)
    await rot_all(sims)
    put_back_older(path, older)
    before = dump(path)
    with pytest.raises(JournalDamaged):
        await begin(sims, path)
    assert dump(path) == before
    assert not Path(f"{path}.discarded").exists()


# -- stores that were torn ---------------------------------------------------------------------------------------------


async def test_parts_of_a_torn_store_are_never_mixed(tmp_path: Path) -> None:
    """2+2: two disks of four must be able to go on, so each half may, and only when they meet it is seen."""
    for more in (0, 3):
        sims = await new_disks(11 + more, count=4, k=2)
        path, halves = (
            tmp_path / f"{more}.sqlite",
            (tmp_path / f"{more}-left.sqlite", tmp_path / f"{more}-right.sqlite"),
        )
        await work(sims, path, 1, 10)
        for half in halves:
            copy_catalog(path, half)
        await work(sims[:2], halves[0], 2, 10)
        for seed in range(1 + more):
            await work(sims[2:], halves[1], 10 + seed, 10)
        left, right = dump(halves[0]), dump(halves[1])
        assert left != right
        for catalog in halves:
            with pytest.raises(ForeignDisk, match="both have gone on"):
                await begin(restarted(sims), catalog)
        disks = await load_disks(restarted(sims[2:]))
        with pytest.raises(ForeignDisk, match="both have gone on"):
            await disks.join(0, sims[0].crash(keep_all=True))
        assert 0 in disks.failures
        for part, catalog, rows in ((sims[:2], halves[0], left), (sims[2:], halves[1], right)):
            started = await begin(restarted(part), catalog)
            started.catalog.close()
            assert dump(catalog) == rows


async def test_an_epoch_that_only_a_disk_that_went_away_took_is_no_tear(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(12)
    await work(sims, path, 1, 10)
    alone = sims[0].crash(keep_all=True)
    disks = await load_disks([alone, *(sim.crash() for sim in sims[1:])])
    for index in range(1, 6):
        disks.get(index).fail_at(1, DiskFailed("EIO"))  # type: ignore[union-attr]
    with pytest.raises(TooFewDisks):
        await disks.take_epoch()
    rest = restarted(sims, [0])
    await work(rest, path, 2, 10)
    before = dump(path)
    started = await begin([alone, *restarted(rest)], path)
    started.catalog.close()
    assert dump(path) == before


async def test_a_disk_that_returned_may_hold_what_was_written_since(tmp_path: Path) -> None:
    sims = await new_disks(13)
    path = tmp_path / "catalog.sqlite"
    await work(sims, path, 1, 5)
    disks = await load_disks(sims[1:])
    started = await start(disks, path, SMALL_FILES, no_snapshot, verify_pages)
    await disks.join(0, sims[0])
    for index in (1, 2, 3):
        disks.set_tight(index, True)
    started.journal.roll()
    end = started.catalog.applier.sequence + 1
    await started.journal.append(end, [entry(b"meta", b"body")])
    started.catalog.close()
    assert (await chain_of(restarted(sims)))[end] == [0, 4, 5]
    disks = await load_disks(restarted(sims, (0,)))
    await disks.take_epoch()
    await disks.join(0, sims[0].crash(keep_all=True))


async def chain_of(sims: list[SimDisk]) -> dict[int, list[int]]:
    """Disks of each file that counts, after the check that nothing was torn."""
    disks = await load_disks(sims)
    found = await scan(disks)
    check_torn(disks, found)
    return {file.first: file.replicas for file in chain(found).files}


async def test_with_more_than_m_disks_missing_a_store_is_served_and_not_written(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(14)
    await work(sims, path, 1, 30)
    before = dump(path)
    some = restarted(sims, (1, 3, 5))
    started = await begin(some, path)
    assert "3 of 6 disks were missing at the start" in str(started.read_only)
    started.catalog.close()
    assert dump(path) == before
    for sim, old in zip(some, (sims[0], sims[2], sims[4]), strict=True):
        assert await read_superblock(sim) == await read_superblock(old), "no epoch is taken"
        assert await sim.list("journal") == await old.list("journal")
    deleted(path, path)
    with pytest.raises(TooFewDisks, match="bring them back"):
        await begin(some, path)
    started = await begin(restarted(sims), path)
    started.catalog.close()
    assert (dump(path), started.read_only) == (before, None)


async def put_on(disks: Disks, started: Started, writer: Writer, holders: tuple[int, ...]) -> None:
    """Acknowledge an object whose record lies on these disks only."""
    for index in range(6):
        disks.set_tight(index, index not in holders)
    started.journal.roll()
    await writer.submit(put_request("bucket", b"last", b"body"))
    assert set(started.journal.replicas(started.catalog.committed_sequence)[1]) == set(holders)


async def never_here(sims: list[SimDisk], path: Path) -> list[SimDisk]:
    """Disk 0 is away from before the start until after the end."""
    async with running(sims[1:], path, 2) as (disks, started, writer):
        await put_on(disks, started, writer, (1, 2))
    return sims


async def went_unnoticed(sims: list[SimDisk], path: Path) -> list[SimDisk]:
    """Disk 0 goes, and no write to it fails: nothing lay on it that was written then."""
    async with running(sims, path, 2) as (disks, started, writer):
        disks.fail(0, DiskFailed("gone"))
        await put_on(disks, started, writer, (1, 2))
    return sims


async def came_back(sims: list[SimDisk], path: Path) -> list[SimDisk]:
    """Disk 0 knows the epoch again, and holds nothing that was written under it."""
    async with running(sims[1:], path, 2) as (disks, started, writer):
        await put_on(disks, started, writer, (1, 2))
        await disks.join(0, sims[0])
    return sims


async def came_back_and_another_went(sims: list[SimDisk], path: Path) -> list[SimDisk]:
    """... and an epoch is taken for that, but nothing written under it."""
    async with running(sims[1:], path, 2) as (disks, started, writer):
        await put_on(disks, started, writer, (1, 2))
        await disks.join(0, sims[0])
        await disks.take_epoch()
    return sims


async def started_since(sims: list[SimDisk], path: Path) -> list[SimDisk]:
    """A start with all disks was cut off before it had repeated the tail of the log."""
    await never_here(sims, path)
    again = restarted(sims)
    await (await load_disks(again)).take_epoch()
    return again


async def is_empty(sims: list[SimDisk], path: Path) -> list[SimDisk]:
    """Disk 0 is another one in the place of the one that was there."""
    async with running(sims, path, 2) as (disks, started, writer):
        await put_on(disks, started, writer, (0, 1, 2))
    return [(await new_disks(99))[0], *sims[1:]]


async def is_an_old_copy(sims: list[SimDisk], path: Path) -> list[SimDisk]:
    copy = sims[0].crash(keep_all=True)
    async with running(sims, path, 2) as (disks, started, writer):
        await put_on(disks, started, writer, (0, 1, 2))
    return [copy, *sims[1:]]


async def is_empty_and_joined(sims: list[SimDisk], path: Path) -> list[SimDisk]:
    """The same, and the store was running."""
    async with running(sims, path, 2) as (disks, started, writer):
        await put_on(disks, started, writer, (0, 1, 2))
        disks.fail(0, DiskFailed("gone"))
        sims[0] = (await new_disks(99))[0]
        await disks.join(0, sims[0])
    return sims


Away = Callable[[list[SimDisk], Path], Awaitable[list[SimDisk]]]


@pytest.mark.parametrize(
    "how",
    [
        never_here,
        went_unnoticed,
        came_back,
        came_back_and_another_went,
        started_since,
        is_empty,
        is_an_old_copy,
        is_empty_and_joined,
    ],
)
async def test_a_disk_that_was_away_when_the_log_was_written_last_says_nothing_of_its_end(
    tmp_path: Path, how: Away
) -> None:
    """All copies of the last record lie on disks 1 and 2, which are missing, and disk 0 could not know of it."""
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(17)
    await work(sims, path, 1, 10)
    sims = await how(sims, path)
    before = dump(path)
    some = restarted(sims, (1, 2))
    started = await begin(some, path)
    started.catalog.close()
    assert "2 of 6 disks were missing at the start, 1 of the others" in str(started.read_only)
    assert (started.rebuilt, dump(path)) == (None, before)
    for sim, old in zip(some, (sims[0], *sims[3:]), strict=True):
        assert await read_superblock(sim) == await read_superblock(old), "no epoch is taken"
    kept = tmp_path / "kept.sqlite"
    path.rename(kept)
    with pytest.raises(TooFewDisks, match="bring them back"):
        await begin(some, path)
    kept.rename(path)
    async with running(restarted(sims, (2,)), path, 3) as (_, started, writer):
        assert (started.rebuilt, started.read_only, dump(path)) == (None, None, before)
        await writer.submit(put_request("bucket", b"more", b"body"))


@pytest.mark.parametrize("how", [never_here, came_back, is_empty])
async def test_a_disk_that_was_away_counts_again_once_the_log_goes_on_on_enough_disks(
    tmp_path: Path, how: Away
) -> None:
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(18)
    await work(sims, path, 1, 10)
    sims = restarted(await how(sims, path))
    started = await begin(sims, path)
    started.catalog.close()
    before = dump(path)
    started = await begin(restarted(sims, (1, 2)), path)
    started.catalog.close()
    assert (started.rebuilt, started.read_only, dump(path)) == (None, None, before)


async def test_a_disk_that_comes_back_counts_with_the_next_file(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(18)
    await work(sims, path, 1, 10)
    async with running(sims[1:], path, 2) as (disks, started, writer):
        await put_on(disks, started, writer, (1, 2))
        await disks.join(0, sims[0])
        assert {(await read_superblock(sim))[1].away for sim in sims} == {(0,)}
        for index in range(6):
            disks.set_tight(index, False)
        await writer.submit(put_request("bucket", b"next file", b"body"))
        file, holders = started.journal.replicas(started.catalog.committed_sequence)
        assert len(holders) == 3
        assert {(await read_superblock(sim))[1].away for sim in sims} == {()}
        await writer.submit(put_request("bucket", b"same file", b"body"))
        assert started.journal.replicas(started.catalog.committed_sequence)[0] == file


async def test_a_disk_that_was_away_counts_when_the_log_has_no_copy_less_for_it(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(18)
    await work(sims, path, 1, 10)
    async with running(sims[1:], path, 2) as (disks, started, writer):
        await put_on(disks, started, writer, (1, 2, 3))
        assert (disks.slot.away, disks.epoch) == ((), 2)
    before = dump(path)
    deleted(path, path)
    started = await begin(restarted(sims, (1, 2)), path)
    started.catalog.close()
    assert (started.read_only, dump(path)) == (None, before)


async def test_with_all_disks_here_it_does_not_matter_how_many_were_away(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(18)
    await work(sims, path, 1, 10)
    async with running(sims[2:], path, 2) as (disks, started, writer):
        await put_on(disks, started, writer, (2,))
        for index in (0, 1):
            await disks.join(index, sims[index])
        disks.fail(3, DiskFailed("gone"))
        await disks.take_epoch()
    before = dump(path)
    assert (await read_superblock(sims[4]))[1].away == (0, 1, 3)
    started = await begin(restarted(sims), path)
    started.catalog.close()
    assert (started.rebuilt, started.read_only, dump(path)) == (None, None, before)


@pytest.mark.parametrize("told", [(5,), (0,), (0, 1, 2), (0, 1, 2, 3), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize("is_new", [False, True], ids=["after writes", "the very first start"])
async def test_a_start_that_was_cut_off_while_it_took_its_epoch_hinders_none(
    tmp_path: Path, told: tuple[int, ...], is_new: bool
) -> None:
    """Disks that were not told of it have missed nothing: nothing was written under it."""
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(19)
    if not is_new:
        await work(sims, path, 1, 10)
        before = dump(path)
    for away in ((), (0, 1), (2, 5), (3, 4)):
        some = restarted(sims)
        for _ in range(2):
            taken = restarted(some)
            await (await load_disks(taken)).take_epoch()
            some = [taken[index] if index in told else some[index] for index in range(6)]
        copy = tmp_path / f"{away}.sqlite"
        if not is_new:
            copy_catalog(path, copy)
        started = await begin(restarted(some, away), copy)
        started.catalog.close()
        assert (started.read_only, started.rebuilt) == (None, None)
        assert is_new or dump(copy) == before


@pytest.mark.parametrize("error", [DiskFull("ENOSPC"), DiskFailed("EROFS")], ids=["full", "read-only"])
@pytest.mark.parametrize("refusing", [(0, 1, 2), (1, 2, 3), (3, 4, 5), (0, 1, 2, 3, 4)])
async def test_with_too_many_disks_that_refuse_an_epoch_a_store_is_served_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: DiskError, refusing: tuple[int, ...]
) -> None:
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(20)
    await work(sims, path, 1, 10)
    async with running(sims, path, 2) as (disks, started, writer):
        await put_on(disks, started, writer, (1, 2, 3))
    before = dump(path)
    write_slot = disks_module._write_slot

    async def refuse(disk: Disk, slot: Slot) -> None:
        if disk.name in {f"sim-{index}" for index in refusing}:
            raise error
        await write_slot(disk, slot)

    some = restarted(sims)
    for turn in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(disks_module, "_write_slot", refuse)
            started = await begin(some, path)
        started.catalog.close()
        assert "too many disks refused to be written at the start" in str(started.read_only)
        assert (started.rebuilt, dump(path)) == (None, before)
        epochs = {(await read_superblock(sim))[1].epoch for sim in some}
        assert epochs == {2, 2 + turn}, "no number is taken twice"
        some = restarted(some)
    async with running(some, path, 3) as (disks, started, writer):
        assert (started.rebuilt, started.read_only, dump(path), disks.epoch) == (None, None, before, 5)
        await writer.submit(put_request("bucket", b"more", b"body"))


async def test_what_only_disks_hold_that_refuse_an_epoch_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalog is behind, and with these disks given up the log would seem to end before what they hold."""
    path, older = tmp_path / "catalog.sqlite", tmp_path / "older.sqlite"
    sims = await new_disks(20)
    await work(sims, path, 1, 10)
    copy_catalog(path, older)
    async with running(sims, path, 2) as (disks, started, writer):
        await put_on(disks, started, writer, (1, 2, 3))
    before = dump(path)
    put_back_older(path, older)
    write_slot = disks_module._write_slot

    async def refuse(disk: Disk, slot: Slot) -> None:
        if disk.name in ("sim-1", "sim-2", "sim-3"):
            raise DiskFailed("EROFS")
        await write_slot(disk, slot)

    with monkeypatch.context() as patch:
        patch.setattr(disks_module, "_write_slot", refuse)
        with pytest.raises(TooFewDisks, match="3 of 6 disks took the new superblock"):
            await begin(restarted(sims), path)
    started = await begin(restarted(sims), path)
    started.catalog.close()
    assert (started.rebuilt, started.read_only, dump(path)) == (None, None, before)


@pytest.mark.parametrize("torn", [False, True])
async def test_a_start_cut_off_leaves_no_catalog_ahead_of_what_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bool
) -> None:
    """A group that nobody was answered lies whole on one disk, and that disk goes: it must not have happened."""
    path, older = tmp_path / "catalog.sqlite", tmp_path / "older.sqlite"
    sims = await new_disks(15)
    await work(sims, path, 1, 20)
    copy_catalog(path, older)
    before = dump(path)
    await work(sims, path, 3, 1)
    assert dump(path) != before
    put_back_older(path, older)
    file, holders, data = await last_file(sims)
    last, end = data.rindex(b"CJRC"), len(data.rstrip(b"\0"))
    for sim in holders[1:]:
        at = (last + end) // 2 if torn else last
        await sim.write_at(file, at, [bytes(end - at)], sync=True)

    async def cut_off(*_: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(Journal, "renew", cut_off)
    with pytest.raises(RuntimeError, match="killed"):
        await begin(restarted(sims), path)
    monkeypatch.undo()
    assert dump(path) == before
    started = await begin(restarted(sims, (sims.index(holders[0]),)), path)
    started.catalog.close()
    assert (started.rebuilt, dump(path)) == (None, before)


async def test_a_start_that_learns_of_a_stronger_policy_appends_to_more_disks(tmp_path: Path) -> None:
    """The superblock did not know of it when the tail was renewed."""
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(16)
    await work(sims, path, 1, 5)
    async with running(sims, path, 1) as (_, _, writer):
        await writer.submit(rq.PutPolicy(Policy(name="strong", k=2, m=3), None))
    disks = await load_disks(restarted(sims))
    assert disks.m == 2
    started = await start(disks, path, SMALL_FILES, no_snapshot, verify_pages)
    started.catalog.close()
    assert disks.m == 3
    end = started.catalog.applier.sequence + 1
    await started.journal.append(end, [entry(b"meta", b"body")])
    assert len(started.journal.replicas(end)[1]) == 4


async def test_a_start_that_cannot_note_a_policy_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(16)
    await work(sims, path, 1, 5)
    before = dump(path)

    async def set_m(*_: object, **__: object) -> bool:
        raise TooFewDisks("3 of 6 disks took the new superblock")

    with monkeypatch.context() as patch:
        patch.setattr(Disks, "set_m", set_m)
        started = await begin(sims, path)
    started.catalog.close()
    assert "3 of 6 disks took the new superblock" in str(started.read_only)
    started = await begin(restarted(sims), path)
    started.catalog.close()
    assert (started.read_only, dump(path)) == (None, before)


@pytest.mark.parametrize("kept", [False, True], ids=["nothing kept", "less kept than needed"])
async def test_with_no_room_for_the_tail_of_the_log_a_store_is_served_and_not_written(
    tmp_path: Path, kept: bool
) -> None:
    path = tmp_path / "catalog.sqlite"
    sims = await new_disks(15)
    await work(sims, path, 1, 30)
    started = await begin(sims, path)
    last = started.catalog.applier.sequence
    if kept:
        await started.journal.spares.work()
    disks = await load_disks(sims)
    writer = Writer(
        started.catalog,
        started.journal,
        disks,
        Decider(started.catalog, StepClock(2), lambda: 0, Mounts(tmp_path / "mounts.json")),
        Reserve(path, 0),
    )
    body = bytes(SMALL_FILES.spare_bytes + 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        await writer.submit(put_request("bucket", b"last", body))
        nursery.cancel_scope.cancel()
    started.catalog.close()
    before = dump(path)
    for sim in sims:
        sim.capacity_bytes = 1
    some = restarted(sims)
    for _ in range(2):
        started = await begin(some, path)
        started.catalog.close()
        assert isinstance(started.read_only, NoSpace)
        assert dump(path) == before
        assert await started.journal.read(last + 1, 0, 1 << 20) == body
        some = restarted(some)
    for sim in some:
        sim.capacity_bytes = 1 << 40
    started = await begin(some, path)
    started.catalog.close()
    assert (dump(path), started.read_only) == (before, None)
    assert await started.journal.read(last + 1, 0, 1 << 20) == body
