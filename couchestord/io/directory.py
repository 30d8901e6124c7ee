"""A disk that is a directory: of a file system of its own, best, or of any."""

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

import trio

from couchestord.errors import DiskError, DiskFailed, DiskFull, DiskTimeout, NoSuchFile
from couchestord.io.disk import Buffer, Capacity
from couchestord.io.folder import FOLDER_MODE, LockedFolder, check_folder, check_path, check_range
from couchestord.io.joint import Joint
from couchestord.io.patience import LOOK_BYTES_MAX, LOOKS_MAX, Patience
from couchestord.io.threads import DiskThreads

VAIN_LOOKS_MAX: Final = 8
"""A look that finds nothing makes the system ask the device, there and then. The queue of a device that answers no more
is full after 64 or 128 requests, of which a look may make several and each process makes its own, and the next look
would wait in the kernel, and the loop with it: so after this many in vain there are none until a read has come home,
which of a disk that is well the next one soon does.
"""
_VERBS_FOR_PRESENT_FILES = frozenset(("read", "sync", "sync_dir", "rename", "unlink"))

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class DirectoryDisk:
    """A `Disk` (which see) over the directory `folder`, which must exist unless `create` is given.

    `read_only`: without a lock, beside the process that has it; whoever asks for it writes nothing.
    Used from one trio loop at a time. The constructor opens and locks the folder at once, so it may wait for a slow
    disk; `open` does it in a thread, within the deadline. Both raise DiskLocked, DiskFailed, DiskFull. A call that
    times out marks the disk failed; any other error does not: the caller judges, and calls `suspect`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        threads_count: int = 4,
        deadline_s: float = 5.0,
        descriptors_max: int = 256,
        create: bool = False,
        read_only: bool = False,
    ) -> None:
        self._name = str(folder)
        self._suspicion: str | None = None
        self._closed = False
        self._patience = Patience()
        self._vain_looks_count = 0
        """Since the last read came home."""
        self._threads = DiskThreads(self._name, threads_count, deadline_s)
        try:
            if create:
                os.makedirs(folder, FOLDER_MODE, exist_ok=True)
            self._folder = LockedFolder(folder, descriptors_max, self.suspect, read_only=read_only)
        except OSError as error:
            raise self._translate(error, "open", "") from error

    @classmethod
    async def open(
        cls,
        folder: Path,
        *,
        threads_count: int = 4,
        deadline_s: float = 5.0,
        descriptors_max: int = 256,
        create: bool = False,
        read_only: bool = False,
    ) -> "DirectoryDisk":
        """As the constructor, off the loop and within the deadline: DiskTimeout when the disk does not answer."""
        made: list[DirectoryDisk] = []
        given_up = False

        def build() -> DirectoryDisk:
            disk = cls(
                folder,
                threads_count=threads_count,
                deadline_s=deadline_s,
                descriptors_max=descriptors_max,
                create=create,
                read_only=read_only,
            )
            made.append(disk)
            if given_up:
                disk.close()
            return disk

        threads = DiskThreads(str(folder), 1, deadline_s)
        try:
            return await threads.run(build)
        except DiskTimeout:
            given_up = True
            for disk in made:
                disk.close()
            raise
        finally:
            threads.close()

    @property
    def name(self) -> str:
        return self._name

    @property
    def failure(self) -> str | None:
        """Why every call fails at once with DiskFailed, for good; None while the disk is well."""
        return self._suspicion or self._threads.failure

    def suspect(self, reason: str) -> None:
        """Trust this disk no more: every later call raises DiskFailed. The first reason stays. Any thread may call."""
        if self._suspicion is None:
            self._suspicion = f"{self._name}: {reason}"

    def is_present(self) -> bool:
        """Whether the path still leads to the directory that was opened: False once it is moved, deleted or unmounted.

        Blocking: call it in a thread that may hang.
        """
        return self._folder.is_present()

    async def write_at(self, path: str, offset: int, buffers: Sequence[Buffer], *, sync: bool = False) -> None:
        check_path(path)
        check_range(offset, 0)
        await self._call("write", path, self._folder.write, path, offset, tuple(buffers), sync)

    def begin_write(self, path: str, offset: int, buffers: Sequence[Buffer], joint: Joint) -> Callable[[], None]:
        check_path(path)
        check_range(offset, 0)
        if self._suspicion is not None:
            raise DiskFailed(self._suspicion)
        call = self._threads.begin(joint, self._folder.write, path, offset, tuple(buffers), True)

        def end() -> None:
            try:
                call.outcome()
            except OSError as error:
                raise self._translate(error, "write", path) from error

        return end

    async def read(self, path: str, offset: int, length: int) -> bytes:
        check_path(path)
        check_range(offset, length)
        found = await self._look_again(path, ((offset, length),))
        if found is not None:
            return found[0]
        data = await self._call("read", path, self._folder.read, path, offset, length)
        self._vain_looks_count = 0
        return data

    async def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        check_path(path)
        for offset, length in ranges:
            check_range(offset, length)
        found = await self._look_again(path, ranges)
        if found is not None:
            return found
        found = await self._call("read", path, self._folder.read_ranges, path, tuple(ranges))
        self._vain_looks_count = 0
        return found

    async def _look_again(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """What the page cache has within a few turns of the loop, all of it or None: a thread costs twice as much."""
        if sum([length for _, length in ranges]) > LOOK_BYTES_MAX or not self._folder.descriptors.has(path):
            return None
        if self._vain_looks_count >= VAIN_LOOKS_MAX or not self._patience.begins():
            return None
        found: list[bytes] = []
        for _ in range(LOOKS_MAX):
            await trio.lowlevel.checkpoint()
            for offset, length in ranges[len(found) :]:
                piece = self._find(path, offset, length)
                if piece is None:
                    break
                found.append(bytes(piece))
            if len(found) == len(ranges):
                self._patience.has_paid()
                self._vain_looks_count = 0
                return found
        self._patience.was_in_vain()
        return None

    def read_nowait(self, path: str, offset: int, length: int) -> bytes | bytearray | None:
        """As the protocol says. None too while the file is not open, for opening may wait; `read` leaves it open."""
        if self._vain_looks_count >= VAIN_LOOKS_MAX:
            return None
        found = self._find(path, offset, length)
        if found is None:
            self._count_vain_look(path)
        return found

    def read_into_nowait(self, path: str, offset: int, buffer: memoryview) -> bool:
        """As the protocol says. False too while the file is not open."""
        if self._suspicion is not None or self._threads.failure is not None:
            return False
        if self._vain_looks_count >= VAIN_LOOKS_MAX:
            return False
        found = self._folder.read_into_nowait(path, offset, buffer)
        if not found:
            self._count_vain_look(path)
        return found

    def _find(self, path: str, offset: int, length: int) -> bytes | bytearray | None:
        if self._suspicion is not None or self._threads.failure is not None:
            return None
        return self._folder.read_nowait(path, offset, length)

    def _count_vain_look(self, path: str) -> None:
        if self._folder.descriptors.has(path):  # else the device was not asked
            self._vain_looks_count += 1

    async def preallocate(self, path: str, offset: int, length: int) -> None:
        check_path(path)
        check_range(offset, length)
        await self._call("preallocate", path, self._folder.preallocate, path, offset, length)

    async def allocate(self, path: str, length: int) -> None:
        check_path(path)
        check_range(0, length)
        await self._call("allocate", path, self._folder.allocate, path, length)

    async def sync(self, path: str) -> None:
        check_path(path)
        await self._call("sync", path, self._folder.sync, path)

    async def sync_dir(self, folder: str) -> None:
        check_folder(folder)
        await self._call("sync_dir", folder, self._folder.sync_dir, folder)

    async def rename(self, path: str, to: str) -> None:
        check_path(path)
        check_path(to)
        await self._call("rename", path, self._folder.rename, path, to)

    async def unlink(self, path: str) -> None:
        check_path(path)
        await self._call("unlink", path, self._folder.unlink, path)

    async def let_go(self) -> None:
        await self._call("let go", "", self._folder.descriptors.forget_unlinked)

    async def list(self, folder: str) -> dict[str, int]:
        check_folder(folder)
        listing = self._folder.listing(folder)
        while await self._call("list", folder, listing.go_on):
            pass
        return listing.sizes

    async def capacity(self) -> Capacity:
        return await self._call("capacity", "", self._folder.capacity)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        idle = self.failure is None and self._threads.depth == 0
        self._suspicion = self._suspicion or f"{self._name}: closed"
        self._folder.unlock()
        if idle:
            self._threads.close()
            self._folder.close()
        else:
            # Closing may wait for a disk that does not answer, and a thread may still be at work in the folder.
            self._threads.close(last=self._folder.close)

    async def _call(
        self, verb: str, path: str, function: Callable[[*Arguments], Result], *arguments: *Arguments
    ) -> Result:
        if self._suspicion is not None:
            raise DiskFailed(self._suspicion)
        try:
            return await self._threads.run(function, *arguments)
        except OSError as error:
            if error.errno == errno.ENOENT and verb in _VERBS_FOR_PRESENT_FILES:
                # In a directory that was itself deleted every file seems missing: that is the disk's failure.
                if await self._threads.run(self._folder.is_deleted):
                    raise DiskFailed(f"{self._name}: the folder was deleted") from error
                raise NoSuchFile(f"{self._name}: {verb} {path}: no such file") from error
            raise self._translate(error, verb, path) from error

    def _translate(self, error: OSError, verb: str, path: str) -> DiskError:
        name = errno.errorcode.get(error.errno or 0, "?")
        message = f"{self._name}: {verb} {path}".rstrip() + f": {name} ({error.strerror or error})"
        return DiskFull(message) if error.errno in (errno.ENOSPC, errno.EDQUOT) else DiskFailed(message)
