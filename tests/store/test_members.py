"""Empty disks that take the places of lost ones, and old ones that turn up again."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from small_store import (
    SMALL,
    STRIPE_BYTES,
    body_of,
    core_of,
    faults_of,
    fingerprints,
    finish,
    flip,
    make_store,
    new_store,
    put_all,
    read,
    segments,
    shard_files,
)

from couchestord.ec.opensegment import FIRST_STRIPE
from couchestord.ec.rebuild import Rebuilder
from couchestord.errors import DiskInUse, ForeignDisk, InvalidArgument, StoreExists, TooFewDisks
from couchestord.io.disk import Capacity
from couchestord.io.folder import LockedFolder
from couchestord.io.requests import LoseShards
from couchestord.store.door import ObjectStore

BODIES = {b"%d" % number: body_of(size, number) for number, size in enumerate((10, 70_000, 6 * STRIPE_BYTES, 900_000))}
MORE = {b"more/" + key: body + b"more" for key, body in BODIES.items()}


async def lose(store: ObjectStore, index: int, folder: Path) -> None:
    """The disk is gone, moved away: its folder is not there any more."""
    (folder.parent / f"disk-{index}").rename(folder)
    await core_of(store).jobs.monitor.work()
    assert index in core_of(store).disks.failures


async def replace_disk(store: ObjectStore, path: Path, index: int) -> None:
    """An empty one is mounted, made a member, and taken in."""
    (path / f"disk-{index}").mkdir()
    done = await store.disks.replace(index)
    assert (done.index, done.folder, done.is_new) == (index, path / f"disk-{index}", True)
    await take_in(store)


async def take_in(store: ObjectStore) -> None:
    """What is here joins and is compared, and what is missing is made anew."""
    jobs = core_of(store).jobs
    await jobs.monitor.work()
    assert core_of(store).disks.failures == {}
    await settle(store)


async def settle(store: ObjectStore) -> None:
    jobs = core_of(store).jobs
    with trio.fail_after(60):
        while jobs.monitor.uncompared:
            await jobs.monitor.work()
            await trio.lowlevel.checkpoint()
    await finish(jobs.rebuilder)
    await finish(jobs.rejournaler)
    assert store.health().state == "healthy"


async def check_without(store: ObjectStore, gone: tuple[int, int], bodies: dict[bytes, bytes]) -> None:
    """Every byte is there though two disks are not: so what lies on the others is what the catalog says."""
    disks = core_of(store).disks
    for index in gone:
        disks.fail(index, "as the test wants it")
    for key, body in bodies.items():
        assert await read(store, key) == body


async def reopened_without(path: Path, gone: tuple[int, int], bodies: dict[bytes, bytes]) -> None:
    async with ObjectStore.open(path, SMALL) as store:
        await settle(store)  # those that the store gave up before it was closed are compared
        await check_without(store, gone, bodies)
    assert faults_of(path) == []


@pytest.mark.parametrize("index", [0, 3, 5])
async def test_all_that_the_lost_disk_held_is_made_anew(tmp_path: Path, index: int) -> None:
    """Shards of segments that were sealed or open, and copies of journal files, on exactly k+m disks."""
    async with new_store(tmp_path) as store:
        await put_all(store, BODIES)
        await store.destage()
        await store.put("box", b"open", body_of(3 * STRIPE_BYTES))
        await put_all(store, MORE)
        await lose(store, index, tmp_path / "away")
        await store.put("box", b"meanwhile", body_of(2 * STRIPE_BYTES, 9))
        await replace_disk(store, tmp_path, index)
        await store.put("box", b"after", body_of(2 * STRIPE_BYTES, 10))
        bodies = {**BODIES, **MORE, b"open": body_of(3 * STRIPE_BYTES), b"meanwhile": body_of(2 * STRIPE_BYTES, 9)}
        bodies[b"after"] = body_of(2 * STRIPE_BYTES, 10)
        assert all(not row.missing for row in segments(store))
        assert len(shard_files(tmp_path)) == 6 * len(segments(store))
        await check_without(store, ((index + 1) % 6, (index + 4) % 6), bodies)
    await reopened_without(tmp_path, ((index + 2) % 6, (index + 3) % 6), bodies)
    await reopened_without(tmp_path, ((index + 1) % 6, (index + 5) % 6), bodies)


async def test_journal_is_not_continued_on_a_disk_that_lacks_its_beginning(tmp_path: Path) -> None:
    """Nothing is written while the new disk goes and the old one comes: no call has failed on it."""
    small = {b"small": b"few bytes", b"next": b"more bytes"}
    async with new_store(tmp_path) as store:
        core = core_of(store)
        await lose(store, 0, tmp_path / "old")
        await replace_disk(store, tmp_path, 0)
        while 0 not in core.journal.files()[-1].replicas:
            core.journal.roll()
            await put_all(store, {b"small": b"few bytes"})
        [*_, file] = core.journal.files()
        epoch, end = core.disks.epoch, file.end
        await lose(store, 0, tmp_path / "new")
        (tmp_path / "old").rename(tmp_path / "disk-0")
        await core.jobs.monitor.work()
        assert core.disks.epoch > epoch
        await put_all(store, {b"next": b"more bytes"})
        assert (file.end, core.journal.files()[-1].epoch) == (end, core.disks.epoch)
        await settle(store)
        others = [index for index in file.replicas if index]
        await check_without(store, (others[0], others[1]), small)
    await reopened_without(tmp_path, (others[0], others[1]), small)


async def test_segment_that_waits_open_is_not_continued_on_a_disk_that_lacks_its_beginning(tmp_path: Path) -> None:
    """A stream has it all the time, while the disk is lost, replaced and compared."""
    async with new_store(tmp_path) as store:
        core = core_of(store)
        for writes_on in (False, True):
            key, body = b"%d" % writes_on, body_of(2 * STRIPE_BYTES, writes_on)
            done, may_end = trio.Event(), trio.Event()
            await store.put("box", key, body)

            async def stream(done: trio.Event, may_end: trio.Event, writes_on: bool) -> None:
                async with core.pool.writer() as writer:
                    await writer.append(body_of(STRIPE_BYTES))
                    await writer.sync()
                    done.set()
                    await may_end.wait()
                    if writes_on:
                        await writer.append(body_of(STRIPE_BYTES))
                        await writer.sync()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream, done, may_end, writes_on)
                await done.wait()
                row = segments(store)[-1]
                await lose(store, row.disks[1], tmp_path / f"away-{writes_on}")
                (tmp_path / f"disk-{row.disks[1]}").mkdir()
                await store.disks.replace(row.disks[1])
                await core.jobs.monitor.work()
                with trio.fail_after(60):
                    while core.jobs.monitor.uncompared:
                        await trio.lowlevel.checkpoint()
                # a kill now leaves it open: the next start seals it, and compares nothing
                assert next(each for each in segments(store) if each.id == row.id).missing == 2
                may_end.set()
            await core.pool.aclose()
            assert next(each for each in segments(store) if each.id == row.id).missing == 2
            await settle(store)
            assert await read(store, key) == body
            assert await core.stripes.count_headers(row, FIRST_STRIPE) == 6


async def test_replaced_while_nothing_runs(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await put_all(store, BODIES)
    (tmp_path / "disk-2").rename(tmp_path / "away")
    (tmp_path / "disk-2").mkdir()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert (await store.disks.replace(2)).is_new
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert "disk 2 was away and is being compared with the catalog" in store.health().reasons
        await settle(store)
    await reopened_without(tmp_path, (0, 4), BODIES)


@pytest.mark.parametrize("cut", ["before the superblock", "before it joins", "before it is compared", "while compared"])
async def test_cut_off_at_any_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str) -> None:
    """Every start compares the disk, until all that it lacks is recorded."""
    async with new_store(tmp_path / "store") as store:
        await put_all(store, BODIES)
        await store.destage()
        count = len(segments(store))
    assert count > 1
    (tmp_path / "store/disk-2").rename(tmp_path / "away")
    (tmp_path / "store/disk-2").mkdir()
    is_cut = trio.Event()

    async def stay(*_: object, **__: object) -> Any:
        is_cut.set()
        await trio.sleep_forever()

    async def lose_one(rebuilder: Rebuilder, index: int, **__: object) -> Any:
        [*_, row] = rebuilder._catalog.segments()
        await rebuilder._submit(LoseShards(row.id, 1 << row.disks.index(index)))
        await stay()

    at, instead = {
        "before the superblock": ("couchestord.store.members.replace_member", stay),
        "before it joins": ("couchestord.io.disks.Disks.join", stay),
        "before it is compared": ("couchestord.ec.rebuild.Rebuilder.check_returned", stay),
        "while compared": ("couchestord.ec.rebuild.Rebuilder.check_returned", lose_one),
    }[cut]

    async def run(store: ObjectStore) -> None:
        await store.disks.replace(2)
        await core_of(store).jobs.monitor.work()

    async with ObjectStore.open(tmp_path / "store", SMALL) as store, trio.open_nursery() as nursery:
        with monkeypatch.context() as patch:
            patch.setattr(at, instead)
            nursery.start_soon(run, store)
            with trio.fail_after(60):
                await is_cut.wait()
            # nobody writes now: this is what a kill leaves
            shutil.copytree(tmp_path / "store", tmp_path / "left")
            nursery.cancel_scope.cancel()
    with monkeypatch.context() as patch:
        patch.setattr(Rebuilder, "check_returned", stay)
        for _ in range(2):
            async with ObjectStore.open(tmp_path / "left", SMALL) as store:
                assert store.health().state == "degraded"
    async with ObjectStore.open(tmp_path / "left", SMALL) as store:
        if cut == "before the superblock":
            assert (await store.disks.replace(2)).is_new
            await core_of(store).jobs.monitor.work()
        await settle(store)
    await reopened_without(tmp_path / "left", (0, 4), BODIES)


@pytest.mark.parametrize("running", [True, False])
async def test_old_disk_that_turns_up_instead_of_the_new_one_and_the_new_one_again(
    tmp_path: Path, running: bool
) -> None:
    """Each is compared when it comes: neither has what was written to the other."""
    old, new, here = tmp_path / "old", tmp_path / "new", tmp_path / "disk-3"
    bodies = dict(BODIES)

    async def swap(store: ObjectStore, away: Path, back: Path) -> None:
        await lose(store, 3, away)
        back.rename(here)
        await take_in(store)

    async def write(store: ObjectStore, when: bytes) -> None:
        written = {when + key: when + body for key, body in BODIES.items()}
        await put_all(store, written)
        await core_of(store).pool.aclose()
        bodies.update(written)

    async with new_store(tmp_path) as store:
        await put_all(store, BODIES)
        await store.destage()
        await lose(store, 3, old)
        await replace_disk(store, tmp_path, 3)
        await write(store, b"new/")
        if running:
            await swap(store, new, old)
            await write(store, b"old/")
            await swap(store, old, new)
            await write(store, b"again/")
    for away, back in () if running else ((new, old), (old, new), (new, old)):
        here.rename(away)
        back.rename(here)
        async with ObjectStore.open(tmp_path, SMALL) as store:
            assert "disk 3 was away and is being compared with the catalog" in store.health().reasons
            await settle(store)
            await write(store, back.name.encode() + b"%d/" % len(bodies))
    for gone in ((0, 1), (2, 4), (4, 5)):
        await reopened_without(tmp_path, gone, bodies)


async def test_old_disk_in_the_new_ones_place_within_one_epoch(tmp_path: Path) -> None:
    """The journal wrote to neither when it went: no epoch was begun for that."""
    async with new_store(tmp_path) as store:
        core = core_of(store)
        await put_all(store, BODIES)
        [*_, file] = core.journal.files()
        index = next(index for index in range(6) if index not in file.replicas)
        await lose(store, index, tmp_path / "old")
        await replace_disk(store, tmp_path, index)
        await put_all(store, MORE)
        await core.pool.aclose()
    (tmp_path / f"disk-{index}").rename(tmp_path / "new")
    (tmp_path / "old").rename(tmp_path / f"disk-{index}")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert list(core_of(store).disks.stale) == [index]
        await settle(store)
    await reopened_without(tmp_path, (file.replicas[0], file.replicas[1]), BODIES | MORE)


async def test_both_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The running store keeps the one that it has; a start says which to take away."""
    async with new_store(tmp_path) as store:
        await put_all(store, BODIES)
        await lose(store, 3, tmp_path / "old")
        await replace_disk(store, tmp_path, 3)
        (tmp_path / "old").rename(tmp_path / "disk-6")
        core_of(store).jobs.monitor.watch([*core_of(store).jobs.monitor.folders, tmp_path / "disk-6"])
        core_of(store).disks.fail(5, "as the test wants it")
        await core_of(store).jobs.monitor.work()
        assert core_of(store).disks.name(3) == str(tmp_path / "disk-3")
        assert "claims to be disk 3, which is here already" in caplog.text
    with pytest.raises(ForeignDisk, match=f"one took the place of the other; take {tmp_path / 'disk-6'} away"):
        async with ObjectStore.open(tmp_path, SMALL):
            pass
    (tmp_path / "disk-6").rename(tmp_path / "old")
    await reopened_without(tmp_path, (0, 1), BODIES)


async def test_what_is_refused(tmp_path: Path) -> None:
    other = await make_store(tmp_path / "other")
    here = tmp_path / "one/disk-2"
    async with new_store(tmp_path / "one") as store:
        replace_ = store.disks.replace
        await put_all(store, BODIES)
        with pytest.raises(DiskInUse, match=f"disk 2 is in use, in {here}: unmount it first"):
            await replace_(2)
        for index in (-1, 6):
            with pytest.raises(InvalidArgument, match="the store has disks 0 to 5"):
                await replace_(index)
        await lose(store, 2, tmp_path / "one/away")
        with pytest.raises(InvalidArgument, match=f"there is no folder {here}: make it, or mount the new disk there"):
            await replace_(2)
        with pytest.raises(InvalidArgument, match="is none of the folders that the store looks for its disks in"):
            await replace_(2, tmp_path)
        with pytest.raises(StoreExists, match="disk-3 is disk 3 of this store, and is not touched"):
            await replace_(2, tmp_path / "one/disk-3")
        for content, why in (
            (other / "disk-2", "disk-2 belongs to another store, and is not touched.*free are: none"),
            (tmp_path / "one/disk-4", "disk-2 is disk 4 of this store"),
        ):
            shutil.copytree(content, here)
            await untouched(store, here, StoreExists, why)
        shutil.copytree(other / "disk-2", here)
        flip(here / "superblock", 30)
        await untouched(
            store, here, StoreExists, "disk-2 holds a superblock that cannot be read .superblock page fails"
        )
        here.mkdir()
        for number in range(7):
            (here / f"file-{number}").touch()
        await untouched(store, here, InvalidArgument, "it holds file-0, file-1, file-2, file-3, file-4 and 2 more")
        here.mkdir()
        for index in (0, 1):
            (tmp_path / f"one/disk-{index}").rename(tmp_path / f"one/away-{index}")
        await core_of(store).jobs.monitor.work()
        await untouched(store, here, TooFewDisks, "3 of 6 disks are missing, more than 2: bring the others back")
    here.mkdir()
    async with ObjectStore.open(tmp_path / "one", SMALL) as store:
        await untouched(store, here, TooFewDisks, "3 of 6 disks are missing")


async def untouched(store: ObjectStore, here: Path, error: type[Exception], why: str) -> None:
    """Refused, and the folder is as it was. Removes it."""
    before = fingerprints([here])
    with pytest.raises(error, match=why):
        await store.disks.replace(2)
    assert fingerprints([here]) == before
    shutil.rmtree(here)


async def test_store_that_may_not_be_written_makes_no_disk(tmp_path: Path) -> None:
    """Too few disks were here at the start: whether the log ends on others is not known, though they are back."""
    await make_store(tmp_path)
    for index in (0, 1, 2):
        (tmp_path / f"disk-{index}").rename(tmp_path / f"away-{index}")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        core_of(store).disks.failures.pop(0)
        (tmp_path / "disk-2").mkdir()
        core_of(store).disks.get = lambda index: None  # type: ignore[method-assign]
        with pytest.raises(TooFewDisks, match="were missing at the start"):
            await store.disks.replace(2, force=True)
    assert not (tmp_path / "disk-2/superblock").exists()


async def test_what_mkfs_and_a_cut_leave_is_no_content(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await lose(store, 2, tmp_path / "away")
        (tmp_path / "disk-2/lost+found").mkdir(parents=True)
        (tmp_path / "disk-2/lock").touch()
        (tmp_path / "disk-2/superblock.new").write_bytes(b"?" * 99_999)
        assert (await store.disks.replace(2)).is_new
        assert (tmp_path / "disk-2/superblock").stat().st_size == 3 * 4096
        again = await store.disks.replace(2)
        assert (again.index, again.folder, again.is_new) == (2, tmp_path / "disk-2", False)
        await take_in(store)


async def test_another_folder_of_the_store(tmp_path: Path) -> None:
    folders = tuple(tmp_path / f"mnt-{letter}" for letter in "abcdefg")
    options = replace(SMALL, disks=folders[:6])
    await make_store(tmp_path / "data", options)
    options = replace(SMALL, disks=folders)
    folders[6].mkdir()
    async with ObjectStore.open(tmp_path / "data", options) as store:
        await put_all(store, BODIES)
        folders[1].rename(tmp_path / "away")
        await core_of(store).jobs.monitor.work()
        (tmp_path / "link").symlink_to(folders[6])
        assert (await store.disks.replace(1, tmp_path / "link")).folder == folders[6]
        folders[1].mkdir()
        with pytest.raises(DiskInUse, match=f"disk 1 is in {folders[6]}: unmount it, or take it away, first"):
            await store.disks.replace(1)
        await take_in(store)
        assert core_of(store).disks.name(1) == str(folders[6])
        await check_without(store, (0, 2), BODIES)


async def test_folder_under_a_mount_point_that_is_not_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are on file systems of their own; that of the empty folder is the data folder's, or another disk's."""
    async with new_store(tmp_path) as store:
        await lose(store, 2, tmp_path / "away")
        (tmp_path / "disk-2").mkdir()
        devices = {tmp_path / "disk-2": 1}
        monkeypatch.setattr(
            LockedFolder, "capacity", lambda folder: Capacity(1 << 40, 1 << 40, 10 + int(str(folder._folder)[-1]))
        )
        monkeypatch.setattr("couchestord.store.members._device", lambda path: devices.get(path, 1))
        for device in (1, 15):
            devices[tmp_path / "disk-2"] = device
            with pytest.raises(InvalidArgument, match="most likely not mounted"):
                await store.disks.replace(2)
        assert os.listdir(tmp_path / "disk-2") == []
        devices[tmp_path / "disk-2"] = 12
        assert (await store.disks.replace(2)).is_new
        (tmp_path / "disk-2/superblock").unlink()
        devices[tmp_path / "disk-2"] = 1
        assert (await store.disks.replace(2, force=True)).is_new


async def test_list(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        core = core_of(store)
        core.disks.set_tight(1, True)
        core.disks.fail(2, "as the test wants it")
        core.jobs.monitor.uncompared.add(3)
        rows = await store.disks.list()
        assert [row["disk"] for row in rows] == list(range(6))
        assert [row["state"] for row in rows] == ["good", "full", "missing", "comparing", "good", "good"]
        assert [row["reason"] for row in rows] == [None, None, "as the test wants it", None, None, None]
        assert [row["folder"] for row in rows] == [
            None if index == 2 else str(tmp_path / f"disk-{index}") for index in range(6)
        ]
        assert {row["class"] for row in rows} == {"default"}
        assert [row["if_lost"] for row in rows] == [row["if_lost"] for row in (await store.status())["disks"]]
        core.jobs.monitor.uncompared.clear()
