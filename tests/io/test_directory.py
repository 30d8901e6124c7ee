"""DirectoryDisk under real faults. Those that need a file system of their own need root and a loop device."""

import errno
import fcntl
import gc
import os
import random
import stat
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from couchestord.errors import DiskFailed, DiskFull, DiskLocked, DiskTimeout, NoSuchFile
from couchestord.io.descriptors import LANE_BYTES_MIN, LANES_MAX, LANES_PER_FILE_MAX, SKIPPED_BYTES
from couchestord.io.directory import VAIN_LOOKS_MAX, DirectoryDisk
from couchestord.io.folder import LISTED_AT_ONCE
from couchestord.io.joint import Joint
from couchestord.io.patience import LOOK_BYTES_MAX, LOOKS_MAX

IMAGE_BYTES = 16 << 20


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A small ext4 of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    image, folder = tmp_path / "image", tmp_path / "mounted"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    try:
        _run("mkfs.ext4", "-q", "-m", "0", str(image))
        _run("mount", "-o", "loop", str(image), str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no loop-mounted ext4 here: {error}")
    try:
        yield folder
    finally:
        subprocess.run(("fsfreeze", "-u", str(folder)), check=False, capture_output=True)
        subprocess.run(("umount", "-l", str(folder)), check=False, capture_output=True)


async def test_full_file_system(mounted: Path) -> None:
    disk = DirectoryDisk(mounted)
    try:
        await disk.write_at("kept", 0, [b"kept"], sync=True)
        with pytest.raises(DiskFull, match="ENOSPC"):
            await disk.preallocate("a/big", 0, 2 * IMAGE_BYTES)
        with pytest.raises(DiskFull):
            await disk.allocate("a/room", 2 * IMAGE_BYTES)
        with pytest.raises(DiskFull):
            await disk.write_at("a/more", 0, [bytes(IMAGE_BYTES)], sync=True)
        assert await disk.read("kept", 0, 9) == b"kept"
        assert disk.failure is None
        for name in await disk.list("a"):
            await disk.unlink(f"a/{name}")
        await disk.write_at("a/again", 0, [bytes(1 << 20)], sync=True)
        assert await disk.read("a/again", 0, 2 << 20) == bytes(1 << 20)
    finally:
        disk.close()


async def test_read_only_file_system_is_still_read(mounted: Path) -> None:
    disk = DirectoryDisk(mounted)
    await disk.write_at("a/x", 0, [b"x"], sync=True)
    disk.close()
    _run("mount", "-o", "remount,ro", str(mounted))
    disk = DirectoryDisk(mounted)
    try:
        assert await disk.read("a/x", 0, 9) == b"x"
        with pytest.raises(DiskFailed, match="EROFS"):
            await disk.write_at("a/x", 0, [b"y"], sync=True)
        with pytest.raises(DiskFailed, match="EROFS"):
            await disk.unlink("a/x")
        assert await disk.read("a/x", 0, 9) == b"x"
        assert disk.failure is None
    finally:
        disk.close()


async def test_frozen_disk_times_out_then_fails_at_once_until_it_is_opened_again(mounted: Path) -> None:
    disk = DirectoryDisk(mounted, deadline_s=0.5)
    try:
        await disk.write_at("x", 0, [b"before"], sync=True)
        _run("fsfreeze", "-f", str(mounted))
        with pytest.raises(DiskTimeout):
            await disk.write_at("x", 0, [b"hanging"], sync=True)
        assert disk.failure is not None
        assert disk.read_nowait("x", 0, 1) is None
        threads = threading.active_count()
        for _ in range(100):
            with pytest.raises(DiskFailed, match="no answer"):
                await disk.read("x", 0, 1)
        assert threading.active_count() <= threads
        _run("fsfreeze", "-u", str(mounted))
        disk.close()
        disk = await DirectoryDisk.open(mounted)
        assert disk.failure is None
        await disk.write_at("y", 0, [b"after"], sync=True)
        assert await disk.read("y", 0, 9) == b"after"
        with pytest.raises(DiskLocked):
            DirectoryDisk(mounted)
    finally:
        disk.close()


async def test_unmounted_folder_is_noticed(mounted: Path) -> None:
    disk = DirectoryDisk(mounted)
    try:
        assert disk.is_present()
        _run("umount", "-l", str(mounted))
        assert not disk.is_present()
        await disk.write_at("x", 0, [b"x"], sync=True)
        assert os.listdir(mounted) == [], "a write fell through to the folder under the mount"
    finally:
        disk.close()


def test_second_process_is_refused(tmp_path: Path) -> None:
    disk = DirectoryDisk(tmp_path)
    program = (
        "import sys, pathlib\n"
        "from couchestord.errors import DiskLocked\n"
        "from couchestord.io.directory import DirectoryDisk\n"
        "try: DirectoryDisk(pathlib.Path(sys.argv[1])).close()\n"
        "except DiskLocked as error: print(error)\n"
        "else: print('opened')\n"
    )
    command = (sys.executable, "-c", program, str(tmp_path))
    root = Path(__file__).parents[2]
    try:
        told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout
        assert str(tmp_path) in told
        assert f"process {os.getpid()}:" in told
    finally:
        disk.close()
    assert subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout == "opened\n"


async def test_descriptors_are_bounded_and_given_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    disk = DirectoryDisk(tmp_path, descriptors_max=8, threads_count=2)
    async with trio.open_nursery() as nursery:
        for index in range(100):
            nursery.start_soon(disk.write_at, f"a/{index}", 0, [b"%d" % index])
    rng = random.Random(1)
    for index in rng.sample(range(100), 100):
        assert await disk.read(f"a/{index}", 0, 9) == b"%d" % index
        memory = bytearray(len(b"%d" % index))
        assert disk.read_into_nowait(f"a/{index}", 0, memoryview(memory))
        assert not disk.read_into_nowait(f"a/{index}", 9, memoryview(memory))
        assert memory == b"%d" % index
        assert len(os.listdir("/proc/self/fd")) <= before + 8 + 4
    disk.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def lanes_open(folder: Path) -> Counter[str]:
    """How often each file of a disk is open, by name."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing itself
            found.append(Path(os.readlink(f"/proc/self/fd/{number}")))
    return Counter(path.name for path in found if path.parent == folder)


PIECE_BYTES = 2 * LANE_BYTES_MIN
"""Long enough that no look is taken before a thread is asked."""


async def read_piece(disk: DirectoryDisk, name: str, offset: int, *, in_thread: bool = False) -> bytes:
    if in_thread:
        return await disk.read(f"a/{name}", offset, PIECE_BYTES)
    memory = bytearray(PIECE_BYTES)
    assert disk.read_into_nowait(f"a/{name}", offset, memoryview(memory))
    return bytes(memory)


@pytest.mark.parametrize("in_thread", [False, True])
async def test_who_reads_on_and_on_has_a_lane(tmp_path: Path, *, in_thread: bool) -> None:
    """The system looks ahead by opening: many who read one file would confuse it."""
    disk, data = DirectoryDisk(tmp_path), random.Random(1).randbytes(64 * PIECE_BYTES)
    await disk.write_at("a/f", 0, [data])
    ends = {0: 0, 20: 20 * PIECE_BYTES, 40: 40 * PIECE_BYTES}
    for step in range(20):
        for begin, at in ends.items():
            assert await read_piece(disk, "f", at, in_thread=in_thread) == data[at : at + PIECE_BYTES]
            # a header in between that is read by itself, or that is known
            ends[begin] = at + PIECE_BYTES + (SKIPPED_BYTES if step % 3 == 0 and begin == 0 else 0)
            assert await disk.read("a/f", at + 7, 9) == data[at + 7 : at + 16]
    assert lanes_open(tmp_path / "a") == {"f": 1 + 3}
    # a look in vain keeps its lane
    memory = memoryview(bytearray(PIECE_BYTES))
    assert not disk.read_into_nowait("a/f", len(data) - PIECE_BYTES + 1, memory)
    assert not disk.read_into_nowait("a/f", len(data) - PIECE_BYTES + 1, memory)
    assert lanes_open(tmp_path / "a") == {"f": 1 + 4}
    for piece in random.Random(2).sample(range(64), 64):
        at = piece * PIECE_BYTES
        assert await read_piece(disk, "f", at, in_thread=in_thread) == data[at : at + PIECE_BYTES]
    assert lanes_open(tmp_path / "a") == {"f": 1 + LANES_PER_FILE_MAX}
    await disk.unlink("a/f")
    assert lanes_open(tmp_path / "a") == {}
    disk.close()


async def test_lanes_are_bounded_and_given_back(tmp_path: Path) -> None:
    disk, data = DirectoryDisk(tmp_path), random.Random(1).randbytes(10 * PIECE_BYTES)
    for name in "123456789":
        await disk.write_at(f"a/{name}", 0, [data])
    for _ in range(2):
        for name in "123456789":
            for at in random.Random(name).sample(range(0, len(data), PIECE_BYTES), 10):
                assert await read_piece(disk, name, at) == data[at : at + PIECE_BYTES]
            found = lanes_open(tmp_path / "a")
            assert found[name] > 1, "who reads now has one"
            assert found.total() <= 9 + LANES_MAX
    disk.close()
    assert lanes_open(tmp_path / "a") == {}


async def test_without_a_lane_all_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, data = DirectoryDisk(tmp_path), random.Random(1).randbytes(4 * PIECE_BYTES)
    await disk.write_at("a/f", 0, [data])

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "open", refuse)
    for at in range(0, len(data), PIECE_BYTES):
        for in_thread in (False, True):
            assert await read_piece(disk, "f", at, in_thread=in_thread) == data[at : at + PIECE_BYTES]
    monkeypatch.undo()
    assert lanes_open(tmp_path / "a") == {"f": 1}
    disk.close()


async def test_threads_leave_after_close(tmp_path: Path) -> None:
    disk = DirectoryDisk(tmp_path, threads_count=3)
    await disk.list("")
    mine = [thread for thread in threading.enumerate() if thread.name.startswith(str(tmp_path))]
    assert len(mine) == 3
    disk.close()
    for thread in mine:
        await trio.to_thread.run_sync(thread.join, 30)
        assert not thread.is_alive()


async def test_what_was_written_is_freed_once_it_is_written(tmp_path: Path) -> None:
    class Body(bytearray):
        pass

    disk = DirectoryDisk(tmp_path, deadline_s=600.0)
    body = Body(b"12345")
    gone = weakref.ref(body)
    await disk.write_at("a", 0, [body])
    del body
    gc.collect()
    assert gone() is None
    disk.close()


async def test_files_that_another_process_removed_or_replaced_are_let_go(tmp_path: Path) -> None:
    """Until then they take their room, and are read in place of what their names lead to now."""
    writer = DirectoryDisk(tmp_path)
    beside = DirectoryDisk(tmp_path, read_only=True)
    try:
        for name in ("kept", "removed", "replaced"):
            await writer.write_at(f"a/{name}", 0, [b"old"])
            assert await beside.read(f"a/{name}", 0, 9) == b"old"
        await writer.unlink("a/removed")
        await writer.write_at("a/new", 0, [b"new"])
        await writer.rename("a/new", "a/replaced")
        assert await beside.read("a/replaced", 0, 9) == b"old"
        before = len(os.listdir("/proc/self/fd"))
        await beside.let_go()
        assert len(os.listdir("/proc/self/fd")) == before - 2
        assert beside.read_nowait("a/kept", 0, 3) == b"old"
        assert await beside.read("a/replaced", 0, 9) == b"new"
        with pytest.raises(NoSuchFile):
            await beside.read("a/removed", 0, 9)
    finally:
        beside.close()
        writer.close()


async def test_folder_moved_away_or_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    disk = DirectoryDisk(folder, create=True)
    try:
        await disk.write_at("x", 0, [b"x"])
        folder.rename(tmp_path / "moved")
        assert not disk.is_present()
        folder.mkdir()
        assert not disk.is_present()
        await disk.write_at("y", 0, [b"y"])
        assert os.listdir(folder) == []
        for path in (tmp_path / "moved").iterdir():
            path.unlink()
        (tmp_path / "moved").rmdir()
        for call in (disk.read("z", 0, 1), disk.list(""), disk.list("a"), disk.write_at("z", 0, [b"z"])):
            with pytest.raises(DiskFailed):
                await call
    finally:
        disk.close()


async def test_missing_folder_is_not_made_unasked(tmp_path: Path) -> None:
    with pytest.raises(DiskFailed, match="ENOENT"):
        await DirectoryDisk.open(tmp_path / "missing")
    assert os.listdir(tmp_path) == []


async def test_only_the_owner_may_look(tmp_path: Path) -> None:
    disk = await DirectoryDisk.open(tmp_path / "disk", create=True)
    try:
        await disk.write_at("a/x", 0, [b"x"])
    finally:
        disk.close()
    modes = {str(path.name): stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "disk").rglob("*")}
    assert modes == {"lock": 0o600, "a": 0o700, "x": 0o600}
    assert stat.S_IMODE((tmp_path / "disk").stat().st_mode) == 0o700


async def test_suspected_disk_fails_at_once_with_the_first_reason(tmp_path: Path) -> None:
    disk = DirectoryDisk(tmp_path)
    try:
        disk.suspect("smoke")
        disk.suspect("fire")
        with pytest.raises(DiskFailed, match="smoke"):
            await disk.list("")
    finally:
        disk.close()


async def test_write_goes_on_after_a_partial_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def stingy(number: int, buffers: list[memoryview], offset: int) -> int:
        return real(number, [memoryview(b"".join(buffers))[:7]], offset)

    disk = DirectoryDisk(tmp_path)
    try:
        monkeypatch.setattr(os, "pwritev", stingy)
        pieces = [bytes([index]) * (index % 5) for index in range(40)]
        await disk.write_at("x", 3, pieces)
        assert await disk.read("x", 0, 999) == bytes(3) + b"".join(pieces)
    finally:
        disk.close()


async def test_sync_that_fails_is_told_and_does_not_mark_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_number: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    disk = DirectoryDisk(tmp_path, descriptors_max=1)
    try:
        monkeypatch.setattr(os, "fdatasync", fail)
        with pytest.raises(DiskFailed, match="EIO"):
            await disk.write_at("x", 0, [b"x"], sync=True)
        assert disk.failure is None
        await disk.write_at("y", 0, [b"y"])  # evicts x, whose bytes are not known to be safe: nobody else would tell
        assert disk.failure is not None
    finally:
        disk.close()


async def test_names_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a new folder too; no file system here forgets a name that was not, so the call itself is looked at."""
    synced: list[str] = []
    fails = False
    original = os.fsync

    def fsync(number: int) -> None:
        if fails:
            raise OSError(errno.EIO, "as the test wants it")
        original(number)
        synced.append(os.readlink(f"/proc/self/fd/{number}"))

    disk = DirectoryDisk(tmp_path)
    try:
        monkeypatch.setattr(os, "fsync", fsync)
        await disk.write_at("folder/name", 0, [b"bytes"], sync=True)
        assert synced == [str(tmp_path)]
        await disk.sync_dir("folder")
        await disk.sync_dir("")
        assert synced == [str(tmp_path), str(tmp_path / "folder"), str(tmp_path)]
        fails = True
        with pytest.raises(DiskFailed, match="EIO"):
            await disk.sync_dir("folder")
    finally:
        disk.close()


async def test_hung_call_keeps_its_lock_and_threads_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After close with a hung thread: the folder is free for another, and descriptors go when the thread comes back."""
    stuck, go_on = threading.Event(), threading.Event()

    def hang(_number: int) -> None:
        stuck.set()
        go_on.wait(30)

    before = len(os.listdir("/proc/self/fd"))
    disk = DirectoryDisk(tmp_path, deadline_s=0.1, threads_count=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", hang)
        async with trio.open_nursery() as nursery:

            async def never_begun() -> None:
                with pytest.raises(DiskTimeout):
                    await disk.write_at("queued", 0, [b"late"])

            nursery.start_soon(never_begun)
            with pytest.raises(DiskTimeout):
                await disk.write_at("x", 0, [b"x"], sync=True)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(str(tmp_path))]
    disk.close()
    other = DirectoryDisk(tmp_path)
    go_on.set()
    for thread in threads:
        await trio.to_thread.run_sync(thread.join, 30)
    other.close()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert stuck.is_set()
    assert not (tmp_path / "queued").exists(), "a call that had timed out was begun"
    with (tmp_path / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Syncs:
    """`os.fdatasync` that waits where it is told to, by the folder that the file lies in."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.held: dict[str, threading.Event] = {}
        self.done: list[str] = []
        self._real = os.fdatasync
        patch.setattr(os, "fdatasync", self._sync)

    def _sync(self, number: int) -> None:
        folder = Path(os.readlink(f"/proc/self/fd/{number}")).parent.name
        if folder in self.held:
            assert self.held[folder].wait(30)
        self._real(number)
        self.done.append(folder)


async def test_a_joint_is_over_when_its_last_write_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Syncs(monkeypatch)
    disks = [DirectoryDisk(tmp_path / name, create=True, deadline_s=60.0) for name in "abc"]
    try:
        for late in "abc":
            syncs.held, syncs.done = {late: threading.Event()}, []
            joint = Joint()
            ends = [disk.begin_write("x", 0, [b"x"], joint) for disk in disks]
            over = trio.Event()

            async def wait(joint: Joint = joint, over: trio.Event = over) -> None:
                begun_s = trio.current_time()
                await joint.wait()
                assert trio.current_time() < begun_s + 40, "nobody said that the last one is back"
                over.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                while len(syncs.done) < 2:
                    await trio.lowlevel.checkpoint()
                # what another call of that disk announces takes up the write, and does not end the joint
                await disks[0].read("x", 0, 1) if late != "a" else await disks[1].read("x", 0, 1)
                assert not over.is_set()
                syncs.held[late].set()
            assert sorted(syncs.done) == ["a", "b", "c"]
            for end in ends:
                end()
    finally:
        for disk in disks:
            disk.close()


async def test_a_joint_outlives_a_disk_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others have announced nothing: whoever gives the late call up ends theirs."""
    syncs = Syncs(monkeypatch)
    patient = [DirectoryDisk(tmp_path / name, create=True, deadline_s=30.0) for name in "ac"]
    hung = DirectoryDisk(tmp_path / "b", create=True, deadline_s=0.1, threads_count=1)
    held = syncs.held = {"b": threading.Event()}
    try:
        joint = Joint()
        begin = [disk.begin_write for disk in (patient[0], hung, patient[1])]
        ends = [call("x", 0, [b"x"], joint) for call in begin]
        with trio.fail_after(20):
            await joint.wait()
        ends[0]()
        ends[2]()
        with pytest.raises(DiskTimeout):
            ends[1]()
        with pytest.raises(DiskFailed):
            hung.begin_write("x", 0, [b"x"], Joint())
        assert sorted(syncs.done) == ["a", "c"]
        # and with one that is closed meanwhile
        syncs.held = {"c": threading.Event()}
        joint = Joint()
        ends = [disk.begin_write("x", 0, [b"x"], joint) for disk in patient]
        patient[1].close()
        with trio.fail_after(20):
            await joint.wait()
        ends[0]()
        with pytest.raises(DiskFailed):
            ends[1]()
        syncs.held["c"].set()
    finally:
        held["b"].set()
        for disk in (*patient, hung):
            disk.close()


async def test_file_replaced_while_it_is_being_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor opened just before a rename over its name must not stay in the cache for that name."""
    disk = DirectoryDisk(tmp_path)
    real, opened, go_on = os.open, threading.Event(), threading.Event()

    def slow(path: str, *arguments: int, dir_fd: int | None = None, **rest: int) -> int:
        number = real(path, *arguments, dir_fd=dir_fd, **rest)
        if path == "x" and not opened.is_set():
            opened.set()
            go_on.wait(30)
        return number

    (tmp_path / "x").write_bytes(b"old")
    await disk.write_at("y", 0, [b"new"])
    try:
        monkeypatch.setattr(os, "open", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.read, "x", 0, 9)
            await trio.to_thread.run_sync(opened.wait, 30)
            await disk.rename("y", "x")
            go_on.set()
        assert await disk.read("x", 0, 9) == b"new"
    finally:
        disk.close()


class Looks:
    """Looks into the page cache of one disk: how many there were, and which of them find something."""

    def __init__(self, disk: DirectoryDisk, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.in_vain = 0
        """So many of the next ones, however often they are made."""
        self.threads_count = 0
        folder = disk._folder
        look, read_ranges = folder.read_into_nowait, folder.read_ranges

        def counted(path: str, offset: int, buffer: bytearray | memoryview) -> bool:
            self.count += 1
            self.in_vain -= 1
            return self.in_vain < 0 and look(path, offset, buffer)

        def in_thread(path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
            self.threads_count += 1
            return read_ranges(path, ranges)

        monkeypatch.setattr(folder, "read_into_nowait", counted)
        monkeypatch.setattr(folder, "read_ranges", in_thread)


async def test_what_comes_soon_takes_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = DirectoryDisk(tmp_path)
    await disk.write_at("a", 0, [bytes(range(250)) * 1000])
    looks = Looks(disk, monkeypatch)
    for in_vain in (0, 1, LOOKS_MAX - 1):
        looks.in_vain, looks.count = in_vain, 0
        assert await disk.read("a", 251, 3) == b"\1\2\3"
        assert looks.count == in_vain + 1
    looks.in_vain = 3
    assert list(await disk.read_ranges("a", ((1, 2), (252, 1)))) == [b"\1\2", b"\2"]
    assert looks.threads_count == 0
    looks.count = 0
    assert len(await disk.read("a", 0, LOOK_BYTES_MAX + 1)) == LOOK_BYTES_MAX + 1
    assert (looks.count, looks.threads_count) == (0, 1), "a long one is not looked for"
    disk.close()


async def test_looks_in_vain_become_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = DirectoryDisk(tmp_path)
    await disk.write_at("a", 0, [b"12345"])
    looks = Looks(disk, monkeypatch)
    looks.in_vain = 1 << 30
    for _ in range(500):
        assert await disk.read("a", 1, 3) == b"234"
    assert looks.threads_count == 500
    assert LOOKS_MAX <= looks.count <= 15 * LOOKS_MAX
    looks.in_vain = looks.threads_count = 0
    for _ in range(200):
        assert await disk.read("a", 1, 3) == b"234"
    assert looks.threads_count < 64, "once one was not in vain, each read looks"
    assert await disk.read("a", 3, 9) == b"45", "what is short is read by a thread, which knows where the file ends"
    disk.close()


@pytest.mark.parametrize("into", [False, True])
async def test_a_device_that_answers_nothing_is_not_looked_at_on_and_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, into: bool
) -> None:
    """Each look would be one more request to it, and once its queue is full the loop would wait there."""
    disk = DirectoryDisk(tmp_path, deadline_s=600.0)
    await disk.write_at("a", 0, [bytes(range(250)) * 1000])
    asked, is_cold, may_end = [0], True, threading.Event()
    real, read = os.preadv, disk._folder.read

    def preadv(number: int, buffers: Sequence[bytearray | memoryview], offset: int, flags: int = 0) -> int:
        asked[0] += 1
        if is_cold:
            raise BlockingIOError
        return real(number, buffers, offset, flags)

    def hang(path: str, offset: int, length: int) -> bytes:
        assert may_end.wait(30)
        return read(path, offset, length)

    def look(offset: int) -> bool:
        if into:
            return disk.read_into_nowait("a", offset, memoryview(bytearray(4)))
        return disk.read_nowait("a", offset, 4) is not None

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(disk._folder, "read", hang)
    async with trio.open_nursery() as nursery:
        for offset in range(10 * VAIN_LOOKS_MAX):
            assert not disk.read_nowait("not open", offset, 4)
            assert not look(offset)
            if offset < 2:  # so that there are threads left
                nursery.start_soon(disk.read, "a", offset, 4)
                await trio.testing.wait_all_tasks_blocked()
        assert VAIN_LOOKS_MAX <= asked[0] <= VAIN_LOOKS_MAX + 2 * LOOKS_MAX
        is_cold = False
        assert not look(0), "nothing has come home"
        await disk.write_at("a", 0, [b"more"])
        assert not look(0), "what is written may lie in memory only"
        may_end.set()
    assert look(0), "it is well again"
    is_cold = True
    for offset in range(10 * VAIN_LOOKS_MAX):
        assert not look(offset)
        await disk.read("a", offset, 4)
    is_cold = False
    assert look(0)
    disk.close()


async def test_what_is_found_after_a_while_came_from_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a read that a thread brings home: a fast device is looked at however often it is."""
    disk = DirectoryDisk(tmp_path)
    await disk.write_at("a", 0, [bytes(range(250)) * 1000])
    looks = Looks(disk, monkeypatch)
    for offset in range(10 * VAIN_LOOKS_MAX):
        looks.in_vain = 3
        assert disk.read_nowait("a", offset, 3) is None
        assert disk.read_nowait("a", offset + 1, 3) is None
        assert len(await disk.read("a", offset, 3)) == 3
    assert looks.threads_count == 0
    disk.close()


async def test_a_read_that_hangs_keeps_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of other disks, whether they look or go to a thread; nor looks of its own."""
    hung, well = DirectoryDisk(tmp_path / "hung", create=True), DirectoryDisk(tmp_path / "well", create=True)
    for disk in (hung, well):
        await disk.write_at("a", 0, [b"12345"])
    released, looks = threading.Event(), Looks(hung, monkeypatch)
    others = Looks(well, monkeypatch)
    read_ranges = hung._folder.read_ranges

    def hang(path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        released.wait()
        return read_ranges(path, ranges)

    monkeypatch.setattr(hung._folder, "read_ranges", hang)
    came: list[bytes] = []

    async def wait_for_it() -> None:
        came.append(await hung.read("a", 0, 5))

    async with trio.open_nursery() as nursery:
        looks.in_vain = LOOKS_MAX
        nursery.start_soon(wait_for_it)
        while not hung._threads.depth:
            await trio.lowlevel.checkpoint()
        for in_vain in (0, 1 << 30):
            others.in_vain = in_vain
            for _ in range(20):
                assert await well.read("a", 0, 5) == b"12345"
        assert others.threads_count == 20
        assert hung.read_nowait("a", 1, 2) == b"23"
        assert not came
        released.set()
    assert came == [b"12345"]
    for disk in (hung, well):
        disk.close()


async def test_many_files_are_listed_in_calls_that_a_slow_disk_answers_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is looked at, which takes a disk a seek, and there may be hundreds of thousands."""
    disk = DirectoryDisk(tmp_path)
    run, scandir = disk._threads.run, os.scandir
    calls_count, listed = 0, Counter[int]()

    async def counted(function: Any, *arguments: Any) -> Any:
        nonlocal calls_count
        calls_count += 1
        return await run(function, *arguments)

    @contextmanager
    def watched(folder: int) -> Iterator[Iterator[os.DirEntry[str]]]:
        def each(entries: Iterator[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
            for entry in entries:
                listed[calls_count] += 1
                yield entry

        with scandir(folder) as entries:
            yield each(entries)

    monkeypatch.setattr(disk._threads, "run", counted)
    monkeypatch.setattr(os, "scandir", watched)
    try:
        for count in (1, 2 * LISTED_AT_ONCE, 2 * LISTED_AT_ONCE + 3):
            (tmp_path / "a").mkdir(exist_ok=True)
            for number in range(count):
                (tmp_path / "a" / f"{number}").write_bytes(b"x" * (number % 7))
            listed.clear()
            descriptors = len(os.listdir("/proc/self/fd"))
            assert await disk.list("a") == {f"{number}": number % 7 for number in range(count)}
            assert sum(listed.values()) == count
            assert max(listed.values()) <= LISTED_AT_ONCE
            assert len(os.listdir("/proc/self/fd")) == descriptors
        with trio.CancelScope() as scope:
            scope.cancel()
            await disk.list("a")
        assert len(os.listdir("/proc/self/fd")) == descriptors
    finally:
        disk.close()
