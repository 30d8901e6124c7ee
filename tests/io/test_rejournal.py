import shutil
from pathlib import Path

import pytest
import trio
from small_store import (
    SMALL,
    body_of,
    catalog_of,
    core_of,
    finish,
    flip,
    journal_files,
    look,
    make_store,
    put_all,
    read,
)

from couchestord.errors import DiskFailed, DiskFull
from couchestord.io.disk import Disk
from couchestord.io.journalfile import ShortFile
from couchestord.store.core import Core
from couchestord.store.door import ObjectStore

BODIES = {b"%d" % number: body_of(40_000, number) for number in range(60)}


def copies(path: Path) -> dict[str, set[str]]:
    """Disks by journal file."""
    found: dict[str, set[str]] = {}
    for file in journal_files(path):
        found.setdefault(file.name, set()).add(file.parent.parent.name)
    return found


async def filled(path: Path) -> None:
    """A store with several whole journal files."""
    await make_store(path)
    async with ObjectStore.open(path, SMALL) as store:
        await put_all(store, BODIES)


def victim(path: Path) -> Path:
    """A copy of the oldest file that bodies lie in."""
    return next(file for file in journal_files(path) if BODIES[b"1"] in file.read_bytes())


def next_copy(core: Core) -> tuple[ShortFile, Disk]:
    """What is to be copied next, and the disk that gets it."""
    short = core.journal.short_file()
    assert short is not None
    target = core.disks.get(short.target)
    assert target is not None
    return short, target


async def check_all(path: Path, *lost: str) -> None:
    """Every body is read with these disks away."""
    for name in lost:
        (path / name).rename(path / f"away-{name}")
    async with ObjectStore.open(path, SMALL) as store:
        for key, body in BODIES.items():
            assert await read(store, key) == body


async def test_well_copied_files_are_left_alone(tmp_path: Path) -> None:
    await filled(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await finish(core_of(store).jobs.rejournaler)
        assert core_of(store).jobs.rejournaler.copied_count == 0


async def test_copy_that_is_missing_is_made_again(tmp_path: Path) -> None:
    await filled(tmp_path)
    gone = victim(tmp_path)
    gone.unlink()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        rejournaler = core_of(store).jobs.rejournaler
        await finish(rejournaler)
        assert rejournaler.copied_count == 1
        await finish(rejournaler)
        assert rejournaler.copied_count == 1
    there = copies(tmp_path)[gone.name]
    assert len(there) == 3
    # the new copy alone is enough
    await check_all(tmp_path, *(sorted(there - {min(there - {gone.parent.parent.name})}))[:2])


async def test_copies_that_rotted_are_made_again_in_place(tmp_path: Path) -> None:
    await filled(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        rejournaler = core_of(store).jobs.rejournaler
        rotten = [file for file in journal_files(tmp_path) if BODIES[b"1"] in file.read_bytes()][:2]
        for file in rotten:
            flip(file, file.read_bytes().find(BODIES[b"1"]) + 100)
        assert await read(store, b"1") == BODIES[b"1"]
        await finish(rejournaler)
        assert rejournaler.copied_count == len(core_of(store).journal.damaged) + 2 == 2
        for file in rotten:
            assert BODIES[b"1"] in file.read_bytes()
        assert store.health().state == "healthy"


async def test_disk_that_failed_is_made_up_for_on_another(tmp_path: Path) -> None:
    await filled(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        lost = victim(tmp_path).parent.parent.name
        (tmp_path / lost).rename(tmp_path / "away")
        await core_of(store).jobs.monitor.work()
        await finish(core_of(store).jobs.rejournaler)
        active = core_of(store).journal._files[-1].path.partition("/")[2]
    for name, disks in copies(tmp_path).items():
        # m = 2 and one is missing already: two copies keep the promise
        assert len(disks - {lost}) >= (2 if name != active else 1), name


async def test_with_a_disk_missing_the_rest_still_survives(tmp_path: Path) -> None:
    await filled(tmp_path)
    lost = victim(tmp_path).parent.parent.name
    (tmp_path / lost).rename(tmp_path / f"away-{lost}")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await finish(core_of(store).jobs.rejournaler)
    second = next(file for file in journal_files(tmp_path) if BODIES[b"1"] in file.read_bytes()).parent.parent.name
    catalog_of(tmp_path).unlink()
    await check_all(tmp_path, second)


async def test_copies_that_were_cut_short_are_removed_by_a_start_and_when_their_disk_returns(tmp_path: Path) -> None:
    await filled(tmp_path)
    name = victim(tmp_path).name
    lefts = [tmp_path / f"disk-{index}" / "journal" / f"{name}.new" for index in (1, 4)]
    others = tmp_path / "disk-1" / "journal" / "notes.new"
    for file in (*lefts, others):
        file.write_bytes(b"half of it")
    (tmp_path / "disk-4").rename(tmp_path / "away")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        core = core_of(store)
        await core.jobs.rejournaler.work()
        assert not lefts[0].exists()
        (tmp_path / "away").rename(tmp_path / "disk-4")
        assert lefts[1].exists()
        await look(store)
        assert not lefts[1].exists()
        assert others.exists()


async def test_a_copy_is_never_written_onto_one_that_was_cut_short(tmp_path: Path) -> None:
    await filled(tmp_path)
    victim(tmp_path).unlink()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        core = core_of(store)
        short = core.journal.short_file()
        assert short is not None
        await core.jobs.rejournaler.sweep(short.target)
        core.jobs.rejournaler._swept = True
        left = tmp_path / f"disk-{short.target}" / f"{short.path}.new"
        left.parent.mkdir(exist_ok=True)
        left.write_bytes(b"?" * (2 << 20))
        await core.jobs.rejournaler.work()
        made = tmp_path / f"disk-{short.target}" / short.path
        assert b"???" not in made.read_bytes()
        assert not left.exists()


async def test_two_steps_at_once_take_turns(tmp_path: Path) -> None:
    await filled(tmp_path)
    victim(tmp_path).unlink()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        core = core_of(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.jobs.rejournaler.work)
            nursery.start_soon(core.jobs.rejournaler.work)
        assert not core.disks.failures
        assert core.jobs.rejournaler.copied_count == 1


async def test_copy_that_was_cut_off_is_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(tmp_path)
    gone = victim(tmp_path)
    gone.unlink()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        core = core_of(store)
        short, target = next_copy(core)

        async def fail(*_: object) -> None:
            raise DiskFailed("as the test wants it")

        monkeypatch.setattr(target, "sync", fail)
        await core.jobs.rejournaler.work()
        # a sync that failed is not tried again there: the disk is given up and another one takes the copy
        assert short.target in core.disks.failures
        assert not (tmp_path / f"disk-{short.target}" / short.path).exists()
        await finish(core.jobs.rejournaler)
        assert len(copies(tmp_path)[gone.name]) >= 2
    async with ObjectStore.open(tmp_path, SMALL) as store:
        for key, body in BODIES.items():
            assert await read(store, key) == body


async def test_file_of_which_no_good_copy_is_left_stops_nothing(tmp_path: Path) -> None:
    await filled(tmp_path)
    later = next(file for file in journal_files(tmp_path) if BODIES[b"30"] in file.read_bytes())
    holders = [file for file in journal_files(tmp_path) if BODIES[b"1"] in file.read_bytes()]
    assert later.name > holders[0].name
    later.unlink()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        core = core_of(store)
        for file in holders[:2]:
            flip(file, file.read_bytes().find(BODIES[b"1"]) + 100)
        assert await read(store, b"1") == BODIES[b"1"]
        # nobody has noticed yet that the copy that seems whole is not
        for file in holders:
            flip(file, file.read_bytes().find(BODIES[b"2"]) + 100)
        await finish(core.jobs.rejournaler)
        assert core.jobs.rejournaler.copied_count == 1
        assert len(copies(tmp_path)[later.name]) == 3
        assert await read(store, b"50") == BODIES[b"50"]


async def test_file_that_could_not_be_copied_is_when_a_disk_returns(tmp_path: Path) -> None:
    await filled(tmp_path)
    away, *holders = [file for file in journal_files(tmp_path) if BODIES[b"1"] in file.read_bytes()]
    home = away.parent.parent
    home.rename(tmp_path / "away")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        core = core_of(store)
        flip(holders[0], holders[0].read_bytes().find(BODIES[b"1"]) + 100)
        assert await read(store, b"1") == BODIES[b"1"]
        for file in holders:
            flip(file, file.read_bytes().find(BODIES[b"2"]) + 100)
        await finish(core.jobs.rejournaler)
        assert not [left for left in journal_files(tmp_path) if left.name.endswith(".new")]
        (tmp_path / "away").rename(home)
        await look(store)
        await finish(core.jobs.rejournaler)
    for file in holders:
        assert BODIES[b"2"] in file.read_bytes()


async def test_file_that_is_trimmed_while_it_is_copied_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(tmp_path)
    gone = victim(tmp_path)
    gone.unlink()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        core = core_of(store)
        short, target = next_copy(core)
        sync = target.sync

        async def trim_first(path: str) -> None:
            assert await core.journal.trim(short.end)
            await sync(path)

        monkeypatch.setattr(target, "sync", trim_first)
        await core.jobs.rejournaler.work()
        assert gone.name not in {file.name.removesuffix(".new") for file in journal_files(tmp_path)}


async def test_copy_leaves_nothing_on_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(tmp_path)
    victim(tmp_path).unlink()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        core = core_of(store)
        short, target = next_copy(core)

        async def fail(*_: object) -> None:
            raise DiskFull("as the test wants it")

        monkeypatch.setattr(target, "sync", fail)
        await core.jobs.rejournaler.work()
        assert core.disks.is_full(short.target)
        assert not [left for left in journal_files(tmp_path) if left.name.endswith(".new")]


async def test_copies_on_disks_that_return_after_a_start_without_them_are_read(tmp_path: Path) -> None:
    await filled(tmp_path)
    *away, left = [file.parent.parent for file in journal_files(tmp_path) if BODIES[b"1"] in file.read_bytes()]
    for home in away:
        home.rename(tmp_path / f"away-{home.name}")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        for home in away:
            (tmp_path / f"away-{home.name}").rename(home)
        await look(store)
        left.rename(tmp_path / "lost")
        await look(store)
        assert await read(store, b"1") == BODIES[b"1"]


@pytest.mark.parametrize("is_behind", [True, False])
async def test_an_old_copy_of_a_disk_is_not_taken_for_what_it_lacks(tmp_path: Path, is_behind: bool) -> None:
    """Its files are as long: zeroes are written ahead. `is_behind`: so its superblock says."""
    await make_store(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await put_all(store, {b"first": body_of(40_000)})
        active = core_of(store).journal.files()[-1]
        *others, cloned = (f"disk-{index}" for index in active.replicas)
        shutil.copytree(tmp_path / cloned, tmp_path / "old")
        # the last group a start repeats
        await put_all(store, {b"lacking": b"in a record behind", b"last": b"and one more"})
        assert core_of(store).journal.files()[-1] is active
        assert (tmp_path / "old" / active.path).stat().st_size >= active.end_offset
    shutil.rmtree(tmp_path / cloned)
    if is_behind:
        async with ObjectStore.open(tmp_path, SMALL) as store:
            await put_all(store, {b"later": b"in another file"})
    (tmp_path / "old").rename(tmp_path / cloned)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await look(store)
        await finish(core_of(store).jobs.rejournaler)
    for name in others:
        (tmp_path / name).rename(tmp_path / f"away-{name}")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert await read(store, b"lacking") == b"in a record behind"
