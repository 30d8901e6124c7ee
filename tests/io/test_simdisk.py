"""What the simulated disk does beyond the contract: crashes and faults. Other tests stand on this."""

import random

import pytest
import trio
import trio.testing
from simdisk import SECTOR_BYTES, SimDisk

from couchestord.errors import DiskFailed, DiskFull, DiskTimeout

SEEDS = range(60)


def _disk(seed: int = 1) -> SimDisk:
    return SimDisk("disk", random.Random(seed))


async def test_synced_bytes_and_names_survive_every_crash() -> None:
    disk = _disk()
    await disk.write_at("a/x", 0, [b"x" * 3000], sync=True)
    await disk.preallocate("a/y", 0, 5000)
    await disk.sync_dir("a")
    await disk.write_at("a/x", 1000, [b"?" * 100])
    for _ in SEEDS:
        after = disk.crash()
        data = await after.read("a/x", 0, 9999)
        assert data[:1000] + data[1100:] == b"x" * 2900
        assert await after.read("a/y", 0, 9999) == bytes(5000)


async def test_each_unsynced_write_is_kept_dropped_or_torn_on_its_own() -> None:
    disk = _disk()
    await disk.preallocate("x", 0, 8 * SECTOR_BYTES)
    await disk.sync_dir("")
    await disk.write_at("x", 0, [b"1" * 4 * SECTOR_BYTES])
    await disk.write_at("x", 4 * SECTOR_BYTES, [b"2" * 4 * SECTOR_BYTES])
    seen = set()
    for _ in SEEDS:
        data = await (disk.crash()).read("x", 0, 9999)
        sectors = [data[at : at + SECTOR_BYTES] for at in range(0, len(data), SECTOR_BYTES)]
        assert all(len(set(sector)) == 1 for sector in sectors), "a sector is written whole or not at all"
        first, second = set(data[:2048]), set(data[2048:])
        seen.add((min(len(first), 2), max(first) > 0, max(second) > 0))
    assert {(1, True, False), (1, False, True), (1, False, False), (1, True, True), (2, True, True)} <= seen


async def test_unsynced_names_are_kept_or_dropped() -> None:
    disk = _disk()
    await disk.write_at("old", 0, [b"old"], sync=True)
    await disk.write_at("gone", 0, [b"gone"], sync=True)
    await disk.sync_dir("")
    await disk.write_at("new", 0, [b"new"], sync=True)
    await disk.rename("new", "old")
    await disk.unlink("gone")
    outcomes = set()
    for _ in SEEDS:
        after = disk.crash()
        names = await after.list("")
        outcomes.add((await after.read("old", 0, 9), "new" in names, "gone" in names))
    assert {old for old, _, _ in outcomes} == {b"old", b"new"}
    assert {new for _, new, _ in outcomes} == {gone for _, _, gone in outcomes} == {True, False}
    await disk.sync_dir("")
    for _ in SEEDS:
        after = disk.crash()
        assert await after.list("") == {"old": 3}
        assert await after.read("old", 0, 9) == b"new"


async def test_kill_keeps_all_and_a_later_power_cut_does_not() -> None:
    disk = _disk()
    await disk.write_at("x", 0, [b"x"])
    killed = disk.crash(keep_all=True)
    assert await killed.read("x", 0, 9) == b"x"
    await disk.write_at("x", 0, [b"y"])
    assert await killed.read("x", 0, 9) == b"x", "the copy is a disk of its own"
    assert {bool(await killed.crash().list("")) for _ in SEEDS} == {True, False}


async def test_failed_sync_loses_data_that_a_later_sync_does_not_bring_back() -> None:
    kept = set()
    for seed in SEEDS:
        disk = _disk(seed)
        await disk.write_at("x", 0, [b"?" * 100])
        await disk.sync_dir("")
        disk.fail_at(1, DiskFailed("EIO"))
        with pytest.raises(DiskFailed):
            await disk.sync("x")
        await disk.sync("x")
        assert await disk.read("x", 0, 999) == b"?" * 100, "the page cache still shows it"
        kept.add(await disk.crash().read("x", 0, 999))
    assert kept == {b"", b"?" * 100}


async def test_faults_come_at_the_call_named_and_once() -> None:
    disk = _disk()
    disk.fail_at(2, DiskFull("full"))
    disk.fail_at(3, DiskFailed("EIO"), short=True)
    await disk.write_at("x", 0, [b"1"])
    with pytest.raises(DiskFull):
        await disk.write_at("x", 1, [b"2"])
    with pytest.raises(DiskFailed):
        await disk.write_at("y", 0, [b"12345678"])
    assert len(await disk.read("y", 0, 99)) < 8
    assert await disk.read("x", 0, 99) == b"1"
    assert disk.calls == 5
    assert disk.calls_by_name == {"write_at": 3, "read": 2}


async def test_capacity_is_a_limit_and_unlink_gives_room() -> None:
    disk = SimDisk("disk", random.Random(1), capacity_bytes=1000)
    await disk.write_at("x", 0, [bytes(900)], sync=True)
    with pytest.raises(DiskFull):
        await disk.write_at("y", 0, [bytes(200)])
    assert (await disk.capacity()).free_bytes == 0
    await disk.write_at("x", 0, [b"in place"])
    await disk.unlink("x")
    await disk.write_at("y", 0, [bytes(200)])


async def test_gone_disk_fails_every_call() -> None:
    disk = _disk()
    await disk.write_at("x", 0, [b"x"])
    disk.gone = True
    with pytest.raises(DiskFailed):
        await disk.read("x", 0, 1)
    assert all(disk.read_nowait("x", 0, 1) is None for _ in SEEDS)
    assert not disk.is_present()


async def test_rot_flips_what_is_read_and_what_is_on_the_medium() -> None:
    disk = _disk()
    await disk.write_at("x", 0, [b"\x00" * 10], sync=True)
    await disk.sync_dir("")
    await disk.write_at("x", 10, [b"\x00" * 10])
    disk.rot("x", 9, 0x0F, 2)
    await disk.sync("x")
    expected = bytes(9) + b"\x0f\x0f" + bytes(9)
    assert await disk.read("x", 0, 99) == expected
    assert await disk.crash().read("x", 0, 99) == expected


def test_frozen_disk_times_out_then_fails_at_once() -> None:
    async def main() -> None:
        outcomes = set()
        for seed in SEEDS:
            disk = _disk(seed)
            disk.frozen = True
            start = trio.current_time()
            with pytest.raises(DiskTimeout):
                await disk.write_at("x", 0, [b"x"])
            assert trio.current_time() - start == pytest.approx(5.0)
            with pytest.raises(DiskFailed):
                await disk.list("")
            outcomes.add("x" in disk._names)
        assert outcomes == {True, False}, "a call that timed out took effect, or not"

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_thaw_before_the_deadline_lets_calls_through() -> None:
    async def main() -> None:
        disk = _disk()
        disk.frozen = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.write_at, "x", 0, [b"x"])
            await trio.sleep(1)
            assert disk.calls == 1
            disk.frozen = False
        assert await disk.read("x", 0, 9) == b"x"

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
