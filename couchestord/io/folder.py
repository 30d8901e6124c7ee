"""The blocking half of a directory disk: what its threads run. Raises OSError as the kernel gives it.

Every name is looked up under the directory's open descriptor, so a file system mounted over it, or a directory
moved away, never sends a write elsewhere. File names are ours: ASCII, at most one folder deep. The file `lock` in
the directory belongs to this module: its lock keeps a second process out.
"""

import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path

from couchestord.errors import DiskLocked, InvalidArgument
from couchestord.io.descriptors import FILE_MODE, LANE_BYTES_MIN, Descriptor, Descriptors, Lane
from couchestord.io.disk import Buffer, Capacity

FOLDER_MODE = 0o700
LOCK_NAME = "lock"
_ZEROES_BYTES = 1 << 20
_READ_BYTES_MAX = 64 << 20
_BUFFERS_MAX = 1024  # IOV_MAX of Linux
LISTED_AT_ONCE = 256

_NAME = r"(?!\.{1,2}(?:/|\Z))[!-.0-~]{1,255}"
_PATH = re.compile(rf"{_NAME}(?:/{_NAME})?")
_FOLDER = re.compile(rf"(?:{_NAME})?")


def check_path(path: str) -> None:
    """InvalidArgument unless `path` is `name` or `folder/name`: printable ASCII, not `.`, `..` or the lock's name."""
    if _PATH.fullmatch(path) is None or path == LOCK_NAME:
        raise InvalidArgument(f"not the name of a file on a disk: {path!r}")


def check_folder(folder: str) -> None:
    """InvalidArgument unless `folder` is one name, or `""` for the disk's root."""
    if _FOLDER.fullmatch(folder) is None or folder == LOCK_NAME:
        raise InvalidArgument(f"not the name of a folder on a disk: {folder!r}")


def check_range(offset: int, length: int) -> None:
    """InvalidArgument when either is negative."""
    if offset < 0 or length < 0:
        raise InvalidArgument(f"negative offset or length: {offset}, {length}")


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable. Blocks."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _open_locked(folder: Path, read_only: bool) -> tuple[int, int | None]:
    """Descriptors of the folder and of its lock, which is held. DiskLocked, OSError."""
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return root, None if read_only else _take_lock(folder, root)
    except BaseException:
        os.close(root)
        raise


def _take_lock(folder: Path, root: int) -> int:
    try:
        lock = os.open(LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE, dir_fd=root)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        lock = os.open(LOCK_NAME, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=root)  # read-only: still worth reading from
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        who = f"process {holder}" if holder.isdigit() else "another process"
        raise DiskLocked(f"{folder} is in use by {who}: stop it first, or name another folder") from None
    except BaseException:
        os.close(lock)
        raise
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    except OSError:
        pass  # full or read-only: the lock holds, only the courtesy of a name is missing
    return lock


def _write_all(number: int, offset: int, buffers: Sequence[Buffer]) -> None:
    """pwritev until all is written."""
    left = [memoryview(buffer).cast("B") for buffer in buffers if memoryview(buffer).nbytes]
    start = 0
    while start < len(left):
        written = os.pwritev(number, left[start : start + _BUFFERS_MAX], offset)
        if written == 0:
            raise OSError(errno.EIO, "write made no progress")
        offset += written
        while written and written >= left[start].nbytes:
            written -= left[start].nbytes
            start += 1
        if written:
            left[start] = left[start][written:]


def _read_all(number: int, offset: int, length: int) -> bytes:
    """pread until all is read, or the file ends."""
    pieces: list[bytes] = []
    while True:
        piece = os.pread(number, min(length, _READ_BYTES_MAX), offset)
        if len(piece) == length and not pieces:
            return piece
        pieces.append(piece)
        length -= len(piece)
        offset += len(piece)
        if not piece or not length:
            return b"".join(pieces)


def _identify(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


class LockedFolder:
    """A directory, open and locked for this process. Methods may wait for the disk and are called from any thread.

    Names and ranges are the caller's to check. `on_lost` is told when data written without sync could not be kept.
    `read_only`: beside the process that has it locked, and without a lock: nothing may be written.
    """

    def __init__(
        self, folder: Path, descriptors_max: int, on_lost: Callable[[str], None], *, read_only: bool = False
    ) -> None:
        self._folder = folder
        self._root, self._lock = _open_locked(folder, read_only)
        self._identity = _identify(os.fstat(self._root))
        self.descriptors = Descriptors(self._root, descriptors_max, on_lost)

    def unlock(self) -> None:
        """Let another process have the folder. Never waits."""
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give all descriptors back; once, when no call is under way."""
        self.descriptors.close()
        os.close(self._root)
        if self._lock is not None:
            os.close(self._lock)

    def is_present(self) -> bool:
        """Whether the path still leads to the directory that was opened."""
        try:
            return _identify(os.stat(self._folder)) == self._identity
        except OSError:
            return False

    def write(self, path: str, offset: int, buffers: Sequence[Buffer], sync: bool) -> None:
        descriptor = self._acquire_for_write(path)
        try:
            _write_all(descriptor.number, offset, buffers)
            if sync:
                self._sync_descriptor(descriptor)
        finally:
            self.descriptors.release(descriptor)

    def _acquire_for_write(self, path: str) -> Descriptor:
        try:
            return self.descriptors.acquire(path, write=True)
        except FileNotFoundError:
            if "/" not in path:
                raise
            self._make_folder(path)
            return self.descriptors.acquire(path, write=True)

    def _make_folder(self, path: str) -> None:
        """The folder of `path`, durably: callers sync names in folders, the name of a folder is this module's
        affair."""
        with suppress(FileExistsError):  # made by another thread, which may not have synced it yet
            os.mkdir(path.partition("/")[0], FOLDER_MODE, dir_fd=self._root)
        os.fsync(self._root)

    def _sync_descriptor(self, descriptor: Descriptor) -> None:
        writes = descriptor.writes
        os.fdatasync(descriptor.number)
        self.descriptors.mark_synced(descriptor, writes)

    def read(self, path: str, offset: int, length: int) -> bytes:
        return self.read_ranges(path, ((offset, length),))[0]

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        descriptor = self.descriptors.acquire(path)
        try:
            number = descriptor.number
            for offset, length in ranges[1:]:
                if length:
                    # the device may fetch it while the first is waited for
                    with suppress(OSError):
                        os.posix_fadvise(number, offset, length, os.POSIX_FADV_WILLNEED)
            pieces = []
            for offset, length in ranges:
                lane = self._lane(descriptor, offset, length)
                pieces.append(_read_all(number if lane is None else lane.number, offset, length))
            return pieces
        finally:
            self.descriptors.release(descriptor)

    def read_nowait(self, path: str, offset: int, length: int) -> bytes | bytearray | None:
        """The bytes when the file is open and they are in the page cache, else None. Never waits: fit for the loop."""
        if length < 0:
            return None
        buffer = bytearray(length)
        return buffer if self.read_into_nowait(path, offset, buffer) else None

    def read_into_nowait(self, path: str, offset: int, buffer: bytearray | memoryview) -> bool:
        """Fill `buffer` when the file is open and the bytes are in the page cache, else False. Never waits."""
        if offset < 0:
            return False  # preadv2 takes -1 for the descriptor's own position
        descriptor = self.descriptors.acquire_open(path)
        if descriptor is None:
            return False
        lane = self._lane(descriptor, offset, len(buffer))
        try:
            number = descriptor.number if lane is None else lane.number
            if os.preadv(number, (buffer,), offset, os.RWF_NOWAIT) == len(buffer):
                return True
        except (OSError, OverflowError):
            pass
        finally:
            self.descriptors.release(descriptor, later=True)
        if lane is not None:
            lane.next = offset  # it is read again
        return False

    def _lane(self, descriptor: Descriptor, offset: int, length: int) -> Lane | None:
        lane = self.descriptors.lane(descriptor, offset) if length >= LANE_BYTES_MIN else None
        if lane is not None:
            lane.next = offset + length
        return lane

    def preallocate(self, path: str, offset: int, length: int) -> None:
        descriptor = self._acquire_for_write(path)
        try:
            size = os.fstat(descriptor.number).st_size
            if offset < size:
                raise InvalidArgument(f"preallocate at {offset} would erase bytes of {path}, which has {size}")
            zeroes = bytes(min(length, _ZEROES_BYTES))
            for start in range(0, length, _ZEROES_BYTES):
                piece = memoryview(zeroes)[: min(_ZEROES_BYTES, length - start)]
                _write_all(descriptor.number, offset + start, (piece,))
            self._sync_descriptor(descriptor)
        finally:
            self.descriptors.release(descriptor)

    def allocate(self, path: str, length: int) -> None:
        descriptor = self._acquire_for_write(path)
        try:
            if length:
                os.posix_fallocate(descriptor.number, 0, length)
        finally:
            self.descriptors.release(descriptor)

    def sync(self, path: str) -> None:
        descriptor = self.descriptors.acquire(path)
        try:
            self._sync_descriptor(descriptor)
        finally:
            self.descriptors.release(descriptor)

    def sync_dir(self, folder: str) -> None:
        number = self.open_folder(folder)
        try:
            os.fsync(number)
        finally:
            os.close(number)

    def open_folder(self, folder: str) -> int:
        """A descriptor of it, the caller's."""
        return os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)

    def rename(self, path: str, to: str) -> None:
        try:
            try:
                os.rename(path, to, src_dir_fd=self._root, dst_dir_fd=self._root)
            except FileNotFoundError:
                if "/" not in to:
                    raise
                os.stat(path, dir_fd=self._root, follow_symlinks=False)
                self._make_folder(to)
                os.rename(path, to, src_dir_fd=self._root, dst_dir_fd=self._root)
        finally:
            self.descriptors.forget(path, to)  # after an error too: who knows whether it took effect

    def unlink(self, path: str) -> None:
        try:
            os.unlink(path, dir_fd=self._root)
        finally:
            self.descriptors.forget(path)

    def listing(self, folder: str) -> "Listing":
        """What lists a folder."""
        return Listing(self, folder)

    def capacity(self) -> Capacity:
        found = os.fstatvfs(self._root)
        return Capacity(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, os.fstat(self._root).st_dev)

    def is_deleted(self) -> bool:
        """Whether the directory that was opened has lost its last name."""
        return os.fstat(self._root).st_nlink == 0


class Listing:
    """Sizes of the files in a folder, found some at a time: each has to be looked at, and of many on a slow disk that
    takes longer than a call may. Let go of it when it is not wanted any more: it closes what it has open once no thread
    is at it.
    """

    def __init__(self, folder: LockedFolder, name: str) -> None:
        self._folder = folder
        self._name = name
        self._opened = ExitStack()
        self._entries: Iterator[os.DirEntry[str]] | None = None
        self.sizes: dict[str, int] = {}

    def go_on(self) -> bool:
        """Find some more; False: these were all."""
        if self._entries is None and not self._begin():
            return False
        assert self._entries is not None
        count = 0
        for entry in islice(self._entries, LISTED_AT_ONCE):
            self._look_at(entry)
            count += 1
        if not self.sizes and self._folder.is_deleted():
            raise FileNotFoundError(errno.ENOENT, "the folder was deleted")
        return count == LISTED_AT_ONCE

    def _begin(self) -> bool:
        """False: there is no such folder."""
        try:
            number = self._folder.open_folder(self._name)
        except FileNotFoundError:
            if not self._name or self._folder.is_deleted():
                raise
            return False
        self._opened.callback(os.close, number)
        self._entries = self._opened.enter_context(os.scandir(number))
        return True

    def _look_at(self, entry: os.DirEntry[str]) -> None:
        try:
            if entry.is_file(follow_symlinks=False) and (self._name or entry.name != LOCK_NAME):
                self.sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            return  # unlinked meanwhile

    def __del__(self) -> None:
        self._opened.close()
