"""A disk in memory that remembers what was synced, and fails on demand. Pure trio: fit for a clock with autojump.

It is a verified fake: `tests/io/test_disk_contract.py` runs on it and on a real directory. It is harsher than most file
systems: each write that was not synced is kept, dropped or torn on its own, each unsynced change of a name is kept or
dropped on its own, and the sync of a file says nothing about its name.

Every choice is drawn from the `random.Random` that is handed in, so one seed gives one run.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import trio

from couchestord.errors import DiskError, DiskFailed, DiskFull, DiskTimeout, InvalidArgument, NoSuchFile
from couchestord.io.disk import Buffer, Capacity
from couchestord.io.folder import check_folder, check_path, check_range
from couchestord.io.joint import Joint

SECTOR_BYTES = 512
Result = TypeVar("Result")


def _overwrite(target: bytearray, offset: int, data: bytes) -> None:
    if offset > len(target):
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(data)] = data


class _File:
    """An inode: what a reader sees, what lies on the medium, and the writes between the two."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes]] = []

    def write(self, offset: int, data: bytes) -> None:
        if data:
            _overwrite(self.data, offset, data)
            self.pending.append((offset, data))

    def sync(self) -> None:
        for offset, data in self.pending:
            _overwrite(self.durable, offset, data)
        self.pending.clear()

    def settle(self, rng: random.Random) -> None:
        """What is pending reaches the medium, or does not, or in part."""
        for offset, data in self.pending:
            fate = rng.choice(("kept", "dropped", "torn"))
            if fate == "kept":
                _overwrite(self.durable, offset, data)
            elif fate == "torn":
                self._tear(offset, data, rng)
        self.pending.clear()

    def _tear(self, offset: int, data: bytes, rng: random.Random) -> None:
        start = 0
        while start < len(data):
            end = min(len(data), start + SECTOR_BYTES - (offset + start) % SECTOR_BYTES)
            if rng.random() < 0.5:
                _overwrite(self.durable, offset + start, data[start:end])
            start = end

    def copy(self) -> "_File":
        other = _File()
        other.data[:] = self.data
        other.durable[:] = self.durable
        other.pending = list(self.pending)
        return other


_NameChange = dict[str, _File | None]
"""One step on names, all of it or nothing: the file each name leads to after it, None for no file."""


def _folder_of(path: str) -> str:
    folder, slash, _ = path.rpartition("/")
    return folder if slash else ""


class SimDisk:
    """A `Disk` in memory. Beyond the protocol: faults to set, `crash`, counters, and what DirectoryDisk has beside it.

    gone: every call raises DiskFailed. capacity_bytes: sum of all sizes that may lie here. resident_ratio: how often
    read_nowait finds its bytes. `calls` counts asynchronous calls, `calls_by_name` each kind, read_nowait too.
    """

    def __init__(
        self, name: str, rng: random.Random, *, capacity_bytes: int = 1 << 40, deadline_s: float = 5.0
    ) -> None:
        self._name = name
        self._rng = rng
        self.capacity_bytes = capacity_bytes
        self.deadline_s = deadline_s
        self.gone = False
        self.resident_ratio = 0.5
        self.calls = 0
        self.calls_by_name: Counter[str] = Counter()
        self._names: dict[str, _File] = {}
        self._durable_names: dict[str, _File] = {}
        self._name_changes: list[_NameChange] = []
        self._neighbours = [self]
        self._folders: set[str] = {""}
        self._faults: dict[int, tuple[DiskError, bool]] = {}
        self._thawed: trio.Event | None = None
        self._failure: str | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def failure(self) -> str | None:
        """Why every call fails at once; None while the disk is well."""
        return self._failure

    def fail_at(self, count: int, error: DiskError, *, short: bool = False) -> None:
        """The `count`-th asynchronous call from now (1: the next) raises `error`.

        A write or sync leaves what was unsynced kept or lost on the medium, at random, and later syncs succeed without
        it. `short`: a write puts down a part of its bytes first. Other calls have no effect.
        """
        assert count > 0
        self._faults[self.calls + count] = (error, short)

    def share(self, other: "SimDisk") -> None:
        """Lie on the file system of `other` from now on, and have its capacity together."""
        self._neighbours = other._neighbours
        self._neighbours.append(self)
        self.capacity_bytes = other.capacity_bytes

    @property
    def frozen(self) -> bool:
        """Calls hang until their deadline, then raise DiskTimeout and fail the disk, as hung threads do."""
        return self._thawed is not None

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        if frozen and self._thawed is None:
            self._thawed = trio.Event()
        elif not frozen and self._thawed is not None:
            self._thawed.set()
            self._thawed = None

    def rot(self, path: str, offset: int, xor: int = 0xFF, length: int = 1) -> None:
        """Flip bits of bytes that lie here, seen by readers and left on the medium."""
        file = self._names[path]
        assert 0 < xor < 256
        assert offset + length <= len(file.data), "rot lies past the end of the file"
        _flip(file.data, offset, length, xor)
        _flip(file.durable, offset, length, xor)
        for index, (at, data) in enumerate(file.pending):
            written = bytearray(data)
            _flip(written, offset - at, length, xor)
            file.pending[index] = (at, bytes(written))

    def crash(self, *, keep_all: bool = False) -> "SimDisk":
        """What a restart finds after a power cut now, or after kill -9 (`keep_all`): a disk of its own, without faults.

        This one goes on as it was: draw again for another outcome, or set `gone` to stop what still uses it.
        """
        other = SimDisk(self._name, self._rng, capacity_bytes=self.capacity_bytes, deadline_s=self.deadline_s)
        other.resident_ratio = self.resident_ratio
        other._folders = set(self._folders)
        copies: dict[_File, _File] = {}

        def copy(file: _File) -> _File:
            if file not in copies:
                copies[file] = file.copy()
            return copies[file]

        other._durable_names = {path: copy(file) for path, file in self._durable_names.items()}
        if keep_all:
            other._names = {path: copy(file) for path, file in self._names.items()}
            other._name_changes = [
                {path: None if file is None else copy(file) for path, file in change.items()}
                for change in self._name_changes
            ]
            return other
        for change in self._name_changes:
            if self._rng.random() < 0.5:
                _apply(other._durable_names, {path: file and copy(file) for path, file in change.items()})
        for file in dict.fromkeys(other._durable_names.values()):
            file.settle(self._rng)
            file.data[:] = file.durable
        other._names = dict(other._durable_names)
        return other

    async def write_at(self, path: str, offset: int, buffers: Sequence[Buffer], *, sync: bool = False) -> None:
        check_path(path)
        check_range(offset, 0)

        def write() -> _File:
            file = self._make(path)
            self._put(file, offset, b"".join(memoryview(buffer).cast("B") for buffer in buffers))
            return file

        def fail(short: bool) -> None:
            if short:
                whole = b"".join(memoryview(buffer).cast("B") for buffer in buffers)
                self._make(path).write(offset, whole[: self._rng.randrange(max(1, len(whole)))])
            elif sync and path in self._names and self._rng.random() < 0.5:
                write().settle(self._rng)

        file = await self._call("write_at", write, fail)
        if sync:
            await trio.lowlevel.cancel_shielded_checkpoint()
            file.sync()

    def begin_write(self, path: str, offset: int, buffers: Sequence[Buffer], joint: Joint) -> Callable[[], None]:
        check_path(path)
        check_range(offset, 0)
        failures: list[Exception] = []

        async def write() -> None:
            try:
                await self.write_at(path, offset, buffers, sync=True)
            except Exception as error:
                failures.append(error)
            finally:
                joint.end()

        def end() -> None:
            for failure in failures:
                raise failure

        joint.begin()
        trio.lowlevel.spawn_system_task(write)
        return end

    async def read(self, path: str, offset: int, length: int) -> bytes:
        check_path(path)
        check_range(offset, length)
        return await self._call("read", lambda: bytes(self._find(path).data[offset : offset + length]))

    async def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        check_path(path)
        for offset, length in ranges:
            check_range(offset, length)

        def read() -> list[bytes]:
            data = self._find(path).data
            return [bytes(data[offset : offset + length]) for offset, length in ranges]

        return await self._call("read", read)

    def read_nowait(self, path: str, offset: int, length: int) -> bytes | None:
        self.calls_by_name["read_nowait"] += 1
        file = self._names.get(path)
        if self.gone or self._failure is not None or file is None or length < 0:
            return None
        if not 0 <= offset <= len(file.data) - length or self._rng.random() >= self.resident_ratio:
            return None
        return bytes(file.data[offset : offset + length])

    def read_into_nowait(self, path: str, offset: int, buffer: memoryview) -> bool:
        found = self.read_nowait(path, offset, len(buffer))
        if found is not None:
            buffer[:] = found
        return found is not None

    async def preallocate(self, path: str, offset: int, length: int) -> None:
        check_path(path)
        check_range(offset, length)

        def preallocate() -> None:
            file = self._make(path)
            if offset < len(file.data):
                raise InvalidArgument(f"preallocate at {offset} would erase bytes of {path}")
            self._put(file, offset, bytes(length))
            file.sync()

        await self._call("preallocate", preallocate)

    async def allocate(self, path: str, length: int) -> None:
        check_path(path)
        check_range(0, length)

        def allocate() -> None:
            file = self._make(path)
            size = len(file.data)
            if size < length:
                if self._free_bytes() < length - size:
                    raise DiskFull(f"{self._name}: ENOSPC")
                self._put(file, size, bytes(length - size))

        await self._call("allocate", allocate)

    async def sync(self, path: str) -> None:
        check_path(path)

        def fail(_short: bool) -> None:
            if path in self._names:
                self._names[path].settle(self._rng)

        await self._call("sync", lambda: self._find(path).sync(), fail)

    async def sync_dir(self, folder: str) -> None:
        check_folder(folder)
        await self._call("sync_dir", lambda: self._sync_names(folder))

    async def rename(self, path: str, to: str) -> None:
        check_path(path)
        check_path(to)

        def rename() -> None:
            file = self._find(path)
            self._check_shape(to)
            self._folders.add(_folder_of(to))
            if path != to:
                self._change_names({path: None, to: file})

        await self._call("rename", rename)

    async def unlink(self, path: str) -> None:
        check_path(path)

        def unlink() -> None:
            self._find(path)
            self._change_names({path: None})

        await self._call("unlink", unlink)

    async def let_go(self) -> None:
        """Nobody else removes what lies here."""

    async def list(self, folder: str) -> dict[str, int]:
        check_folder(folder)

        def sizes() -> dict[str, int]:
            if folder in self._names:
                raise DiskFailed(f"{self._name}: {folder}: ENOTDIR")
            return {
                path.rpartition("/")[2]: len(file.data)
                for path, file in self._names.items()
                if _folder_of(path) == folder
            }

        return await self._call("list", sizes)

    async def capacity(self) -> Capacity:
        return await self._call(
            "capacity", lambda: Capacity(self.capacity_bytes, self._free_bytes(), id(self._neighbours))
        )

    def close(self) -> None:
        self._failure = f"{self._name}: closed"

    def suspect(self, reason: str) -> None:
        if self._failure is None:
            self._failure = f"{self._name}: {reason}"

    def is_present(self) -> bool:
        return not self.gone

    async def _call(
        self, verb: str, effect: Callable[[], Result], fail: Callable[[bool], object] | None = None
    ) -> Result:
        """Count, meet the fault that waits for this call, else take effect. Others run before and after the effect."""
        self.calls += 1
        self.calls_by_name[verb] += 1
        fault = self._faults.pop(self.calls, None)
        if self._failure is not None:
            raise DiskFailed(self._failure)
        await trio.lowlevel.checkpoint()
        if self._thawed is not None:
            thawed = self._thawed
            with trio.CancelScope(shield=True, deadline=trio.current_time() + self.deadline_s):
                await thawed.wait()
            if not thawed.is_set():
                self._time_out(effect)
        if self.gone:
            raise DiskFailed(f"{self._name}: {verb}: EIO (gone)")
        if fault is not None:
            error, short = fault
            if fail is not None:
                fail(short)
            raise error
        result = effect()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return result

    def _time_out(self, effect: Callable[[], object]) -> None:
        if self._failure is None:
            self._failure = f"{self._name}: no answer within {self.deadline_s:g} s"
        if self._rng.random() < 0.5:
            with suppress(DiskError, InvalidArgument):
                effect()  # the hung thread came through after all: nobody hears of it
        raise DiskTimeout(self._failure)

    def _check_shape(self, path: str) -> None:
        if path in self._folders:
            raise DiskFailed(f"{self._name}: {path}: EISDIR")
        if _folder_of(path) in self._names:
            raise DiskFailed(f"{self._name}: {path}: ENOTDIR")

    def _find(self, path: str) -> _File:
        self._check_shape(path)
        if path not in self._names:
            raise NoSuchFile(f"{self._name}: {path}: no such file")
        return self._names[path]

    def _make(self, path: str) -> _File:
        self._check_shape(path)
        if path not in self._names:
            self._folders.add(_folder_of(path))
            self._change_names({path: _File()})
        return self._names[path]

    def _put(self, file: _File, offset: int, data: bytes) -> None:
        growth = offset + len(data) - len(file.data)
        if data and growth > 0 and (free := self._free_bytes()) < growth:
            fits = max(0, len(file.data) + free - offset)
            file.write(offset, data[:fits])
            raise DiskFull(f"{self._name}: ENOSPC")
        file.write(offset, data)

    def _free_bytes(self) -> int:
        used = sum(len(file.data) for disk in self._neighbours for file in disk._names.values())
        return max(0, self.capacity_bytes - used)

    def _change_names(self, change: _NameChange) -> None:
        _apply(self._names, change)
        self._name_changes.append(change)

    def _sync_names(self, folder: str) -> None:
        if folder not in self._folders:
            raise NoSuchFile(f"{self._name}: {folder}: no such folder")
        # Earlier changes of a name that a synced change touches are overtaken by it: they go along, in order.
        touched: set[str] = set()
        synced: list[_NameChange] = []
        left: list[_NameChange] = []
        for change in reversed(self._name_changes):
            if touched.isdisjoint(change) and all(_folder_of(path) != folder for path in change):
                left.append(change)
            else:
                touched.update(change)
                synced.append(change)
        for change in reversed(synced):
            _apply(self._durable_names, change)
        self._name_changes = left[::-1]


def _apply(names: dict[str, _File], change: _NameChange) -> None:
    for path, file in change.items():
        if file is None:
            names.pop(path, None)
        else:
            names[path] = file


def _flip(data: bytearray, offset: int, length: int, xor: int) -> None:
    for index in range(max(0, offset), min(len(data), offset + length)):
        data[index] ^= xor
