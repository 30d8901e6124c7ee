"""What every Disk does alike: one suite, run on a real directory and on the simulated disk, which it so verifies."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio
from simdisk import SimDisk

from couchestord.errors import DiskFailed, InvalidArgument, NoSuchFile
from couchestord.io.directory import DirectoryDisk
from couchestord.io.disk import Disk
from couchestord.io.joint import Joint

OpenDisk = Callable[[], AbstractAsyncContextManager[Disk]]


@pytest.fixture(params=["directory", "simulated"])
def open_disk(request: pytest.FixtureRequest, tmp_path: Path) -> OpenDisk:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Disk]:
        disk: Disk
        if request.param == "directory":
            disk = DirectoryDisk(tmp_path / "disk", create=True, descriptors_max=4)
        else:
            disk = SimDisk("disk", random.Random(1))
        try:
            yield disk
        finally:
            disk.close()

    return opened


async def test_reads_back_what_was_written(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        await disk.write_at("a/x", 0, [b"hello ", bytearray(b"wide "), memoryview(b"-world-")[1:-1]])
        assert await disk.read("a/x", 0, 16) == b"hello wide world"
        await disk.write_at("a/x", 6, [b"WIDE"], sync=True)
        assert await disk.read("a/x", 4, 8) == b"o WIDE w"
        await disk.sync("a/x")
        await disk.sync_dir("a")
        await disk.sync_dir("")
        assert await disk.list("a") == {"x": 16}


async def test_buffers_of_wider_elements_are_written_as_bytes(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        await disk.write_at("x", 0, [memoryview(bytes(range(8))).cast("I"), b"", b"z"])
        assert await disk.read("x", 0, 99) == bytes(range(8)) + b"z"


async def test_more_buffers_than_one_system_call_takes(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        buffers = [index.to_bytes(2, "big") for index in range(3000)]
        await disk.write_at("x", 1, buffers, sync=True)
        assert await disk.read("x", 0, 1 << 20) == b"\0" + b"".join(buffers)


async def test_write_past_the_end_leaves_zeroes(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        await disk.write_at("x", 5000, [b"end"])
        assert await disk.read("x", 0, 9000) == bytes(5000) + b"end"


async def test_write_of_nothing_makes_the_file(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        await disk.write_at("a/x", 100, [])
        assert await disk.list("a") == {"x": 0}
        assert await disk.read("a/x", 0, 10) == b""


async def test_read_is_short_only_at_the_end(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        await disk.write_at("x", 0, [b"12345"])
        assert await disk.read("x", 3, 10) == b"45"
        assert await disk.read("x", 5, 10) == b""
        assert await disk.read("x", 50, 10) == b""
        assert await disk.read("x", 0, 0) == b""


async def test_several_ranges_are_read_in_one_call(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        with pytest.raises(NoSuchFile):
            await disk.read_ranges("x", ((0, 1),))
        await disk.write_at("x", 0, [b"12345"])
        assert list(await disk.read_ranges("x", ((3, 10), (0, 2), (5, 1), (1, 0), (1, 3)))) == [
            b"45", b"12", b"", b"", b"234",
        ]  # fmt: skip
        assert list(await disk.read_ranges("x", ())) == []
        for bad in (((-1, 1),), ((0, 1), (0, -1))):
            with pytest.raises(InvalidArgument):
                await disk.read_ranges("x", bad)


async def test_read_into_nowait_fills_the_whole_or_says_no(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        memory = bytearray(5)
        part = memoryview(memory)[1:4]
        assert not disk.read_into_nowait("x", 0, part)
        await disk.write_at("x", 0, [b"12345"])
        assert any([disk.read_into_nowait("x", 1, part) for _ in range(50)])
        assert memory == b"\x00234\x00"
        assert not disk.read_into_nowait("x", 3, part)
        assert not disk.read_into_nowait("x", -1, part)
        await disk.unlink("x")
        assert not disk.read_into_nowait("x", 0, part)


async def test_read_nowait_gives_the_whole_or_none(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        assert disk.read_nowait("x", 0, 1) is None
        await disk.write_at("x", 0, [b"12345"])
        found = [each for _ in range(50) if (each := disk.read_nowait("x", 1, 3)) is not None]
        assert found
        assert all(each == b"234" for each in found)
        assert disk.read_nowait("x", 3, 3) is None
        assert disk.read_nowait("x", -1, 3) is None
        assert disk.read_nowait("x", 1, -1) is None
        await disk.unlink("x")
        assert disk.read_nowait("x", 0, 1) is None


async def test_preallocated_bytes_are_zeroes(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        await disk.preallocate("a/x", 0, (2 << 20) + 7)
        assert await disk.list("a") == {"x": (2 << 20) + 7}
        await disk.preallocate("a/x", (2 << 20) + 100, 5)
        assert await disk.read("a/x", 0, 4 << 20) == bytes((2 << 20) + 105)


async def test_preallocate_never_erases(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        await disk.write_at("x", 0, [b"12345"])
        with pytest.raises(InvalidArgument):
            await disk.preallocate("x", 4, 100)
        assert await disk.read("x", 0, 100) == b"12345"


async def test_rename_replaces(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        await disk.write_at("x", 0, [b"new"])
        await disk.write_at("a/y", 0, [b"older"])
        assert await disk.read("a/y", 0, 9) == b"older"
        await disk.rename("x", "a/y")
        assert await disk.read("a/y", 0, 9) == b"new"
        assert disk.read_nowait("a/y", 0, 3) in (b"new", None)
        assert await disk.list("") == {}
        await disk.rename("a/y", "b/z")
        assert await disk.read("b/z", 0, 9) == b"new"
        await disk.rename("b/z", "b/z")
        assert await disk.list("b") == {"z": 3}
        await disk.write_at("b/z", 3, [b"er"])
        assert await disk.read("b/z", 0, 9) == b"newer"


async def test_a_name_used_again_is_another_file(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        await disk.write_at("x", 0, [b"first one"])
        await disk.unlink("x")
        await disk.write_at("x", 0, [b"second"])
        assert await disk.read("x", 0, 99) == b"second"


async def test_missing_files(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        await disk.write_at("a/there", 0, [b"."])
        calls: list[Awaitable[object]] = []
        for path in ("x", "a/x", "b/x"):
            calls += [disk.read(path, 0, 1), disk.unlink(path), disk.sync(path)]
            calls += [disk.rename(path, "c/z"), disk.rename(path, "z")]
        for call in (*calls, disk.sync_dir("b")):
            with pytest.raises(NoSuchFile):
                await call
        assert await disk.list("b") == {}
        assert await disk.list("a") == {"there": 1}
        await disk.unlink("a/there")
        assert await disk.list("a") == {}


async def test_a_folder_is_no_file_and_a_file_no_folder(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        await disk.write_at("a/x", 0, [b"x"])
        await disk.write_at("f", 0, [b"f"])
        assert await disk.list("") == {"f": 1}
        for call in (
            disk.read("a", 0, 1),
            disk.write_at("a", 0, [b"y"]),
            disk.unlink("a"),
            disk.rename("f", "a"),
            disk.list("f"),
            disk.read("f/x", 0, 1),
            disk.write_at("f/x", 0, [b"y"]),
        ):
            with pytest.raises(DiskFailed):
                await call


BAD_PATHS = ("", "/", "/x", "x/", "a/b/c", ".", "..", "../x", "a/..", "a/.", "./x", "a//b", "x\0", "x y", "x\n", "\xe9")


@pytest.mark.parametrize("path", [*BAD_PATHS, "lock", "x" * 256])
async def test_paths_that_are_refused(open_disk: OpenDisk, path: str) -> None:
    async with open_disk() as disk:
        await disk.write_at("fine", 0, [b"x"])
        for call in (
            disk.write_at(path, 0, [b"x"]),
            disk.read(path, 0, 1),
            disk.preallocate(path, 0, 1),
            disk.allocate(path, 1),
            disk.sync(path),
            disk.unlink(path),
            disk.rename(path, "y"),
            disk.rename("fine", path),
        ):
            with pytest.raises(InvalidArgument):
                await call
        assert disk.read_nowait(path, 0, 1) is None
        for folder_call in (disk.list("a/b"), disk.sync_dir(".."), disk.list(".")):
            with pytest.raises(InvalidArgument):
                await folder_call
        assert await disk.list("") == {"fine": 1}


@pytest.mark.parametrize("path", ["a/lock", "lock/x", "..a", "...", "a/..b", ".x", "x" * 255])
async def test_paths_that_only_look_odd(open_disk: OpenDisk, path: str) -> None:
    if path == "lock/x":
        pytest.skip("the lock is a file on one kind of disk only")
    async with open_disk() as disk:
        await disk.write_at(path, 0, [b"x"])
        assert await disk.read(path, 0, 9) == b"x"


async def test_negative_ranges(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        await disk.write_at("x", 0, [b"x"])
        reads = (disk.read("x", -1, 1), disk.read("x", 0, -1))
        calls = (*reads, disk.preallocate("x", 1, -1), disk.allocate("x", -1), disk.write_at("x", -1, []))
        for call in calls:
            with pytest.raises(InvalidArgument):
                await call


async def test_capacity_counts(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        capacity = await disk.capacity()
        assert 0 < capacity.free_bytes <= capacity.total_bytes


async def test_reading_while_names_change_gives_one_file_or_none(open_disk: OpenDisk) -> None:
    """Rename and unlink under readers, with fewer descriptors than files: never another file's bytes."""
    async with open_disk() as disk:
        wrong: list[bytes] = []

        async def read(name: str) -> None:
            for _ in range(60):
                try:
                    data = await disk.read(name, 0, 4096)
                except NoSuchFile:
                    continue
                if data and data != name[0].encode() * 4096:
                    wrong.append(data[:8])

        async def churn(letter: str) -> None:
            for turn in range(30):
                await disk.write_at(f"{letter}.new", 0, [letter.encode() * 4096])
                await disk.rename(f"{letter}.new", letter)
                if turn % 3 == 0:
                    await disk.unlink(letter)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for letter in "stuvwxyz":
                    nursery.start_soon(churn, letter)
                    nursery.start_soon(read, letter)
        assert not wrong
        assert all([await disk.read(letter, 0, 4096) == letter.encode() * 4096 for letter in "stuvwxyz"])


async def test_a_cancelled_write_is_whole_or_not_begun(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        with trio.CancelScope() as scope:
            scope.cancel()
            await disk.write_at("x", 0, [b"never"])
        assert scope.cancelled_caught
        assert await disk.list("") == {}
        ended = []

        async def write() -> None:
            await disk.write_at("y", 0, [b"y" * 100_000], sync=True)
            ended.append("written")
            await trio.lowlevel.checkpoint()
            ended.append("not cancelled")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            while not await disk.list(""):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert "not cancelled" not in ended or ended == ["written", "not cancelled"]
        assert await disk.read("y", 0, 200_000) == b"y" * 100_000


async def test_writes_of_a_joint_are_over_together(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        await disk.write_at("a/zero", 0, [b"x"])  # else whichever comes first decides what "a" is
        joint = Joint()
        ends = [disk.begin_write(f"a/{name}", 0, [name.encode(), b"!"], joint) for name in ("one", "two")]
        # a folder has that name
        ends.append(disk.begin_write("a", 0, [b"x"], joint))
        await joint.wait()
        for end in ends[:2]:
            end()
        with pytest.raises(DiskFailed):
            ends[2]()
        assert await disk.read("a/one", 0, 9) == b"one!"
        assert await disk.read("a/two", 0, 9) == b"two!"
        with pytest.raises(InvalidArgument):
            disk.begin_write("..", 0, [b"x"], Joint())
        with pytest.raises(InvalidArgument):
            disk.begin_write("x", -1, [b"x"], Joint())
        await Joint().wait()
        disk.close()
        failing = Joint()
        with pytest.raises(DiskFailed):  # noqa: PT012 - at once, or in the end
            end = disk.begin_write("x", 0, [b"x"], failing)
            await failing.wait()
            end()


async def test_after_close_every_call_fails(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        await disk.write_at("x", 0, [b"x"])
        disk.close()
        assert disk.read_nowait("x", 0, 1) is None
        for call in (disk.read("x", 0, 1), disk.write_at("x", 0, [b"y"]), disk.list(""), disk.capacity()):
            with pytest.raises(DiskFailed):
                await call
        disk.close()


async def test_allocated_room_keeps_what_was_there(open_disk: OpenDisk) -> None:
    async with open_disk() as disk:
        await disk.write_at("a/x", 0, [b"12345"])
        await disk.allocate("a/x", 5000)
        assert await disk.read("a/x", 0, 9000) == b"12345" + bytes(4995)
        await disk.allocate("a/x", 100)
        assert await disk.list("a") == {"x": 5000}
        await disk.allocate("b/y", 0)
        assert await disk.list("b") == {"y": 0}
