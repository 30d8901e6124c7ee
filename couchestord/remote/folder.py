"""A folder as a backend: a mounted file system that outlives this node's disks.

An object is a file; directories are made on the way and stay. A file is written in `.new`, synced, and linked to its
name, which never replaces another; then the folder is synced. What a crash leaves in `.new` is garbage, and nobody
reads it. Several stores may use one folder, so a file there is removed only when nobody can be writing it any more: an
hour after its last byte, before the first object that is put after a start.

Calls run in a few threads of their own with a deadline. One that misses it is given up: its thread goes on until the
kernel answers and keeps its place among the few, so that a file system that hangs costs no more threads than these.
"""

import heapq
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

from couchestord.errors import BlobExists, NoSuchBlob, RemoteDenied, RemoteRefused, RemoteUnavailable
from couchestord.io.folder import sync_folder
from couchestord.remote.backend import (
    KEYS_PER_PAGE,
    Buffer,
    Page,
    Stored,
    check_key,
    check_prefix,
    check_range,
    parts_length,
)

_Result = TypeVar("_Result")
_NEW: Final = ".new"
_FOLDER_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_LEFT_S: Final = 3600.0
"""Much longer than any call lasts. Should a thread that hung for so long come back, its file gets no name."""
_NOT_THERE: Final = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_COMPARE_BYTES: Final = 1 << 20
_WRITE_BYTES: Final = 256 << 10
"""Parts are joined up to this: a blob has thousands of short ones."""


class FolderBackend:
    """Objects as files below `folder`. While there is none, or another than at first (a mount that is gone, say), calls
    raise RemoteUnavailable: what is not there would pass for lost.
    """

    def __init__(
        self,
        folder: Path,
        random_bytes: Callable[[int], bytes],
        *,
        deadline_s: float = 60.0,
        threads_count: int = 4,
        keys_per_page: int = KEYS_PER_PAGE,
    ) -> None:
        """Nothing is asked of the file system yet: one that is away keeps no store from starting."""
        self._folder = folder.absolute()
        self._identity: tuple[int, int] | None = None
        self._is_swept = False
        self._random_bytes = random_bytes
        self._deadline_s = deadline_s
        self._keys_per_page = keys_per_page
        self._threads = trio.CapacityLimiter(threads_count)

    @property
    def name(self) -> str:
        return str(self._folder)

    async def put_new(self, key: str, parts: Sequence[Buffer]) -> None:
        check_key(key)
        if not self._is_swept:
            await self._run(partial(_sweep, self._folder, self._random_bytes(8).hex()))
            self._is_swept = True
        await self._run(partial(_put_new, self._folder, key, parts, self._random_bytes(8).hex()))

    async def get(self, key: str, offset: int, length: int) -> bytes:
        check_key(key)
        check_range(offset, length)
        return await self._run(partial(_get, self._folder / key, offset, length))

    async def size(self, key: str) -> int:
        check_key(key)
        return await self._run(partial(_size, self._folder / key))

    async def list(self, prefix: str, after: str = "") -> Page:
        check_prefix(prefix)
        return await self._run(partial(_list, self._folder, prefix, after, self._keys_per_page))

    async def delete(self, key: str) -> None:
        check_key(key)
        await self._run(partial(_delete, self._folder / key))

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        try:
            with trio.fail_after(self._deadline_s):
                return await trio.to_thread.run_sync(self._work, work, abandon_on_cancel=True, limiter=self._threads)
        except trio.TooSlowError:
            raise RemoteUnavailable(f"{self.name}: no answer within {self._deadline_s:g} s") from None
        except _NOT_THERE as error:
            raise NoSuchBlob(f"{self.name}: {error.filename} is not there") from None
        except PermissionError as error:
            raise RemoteDenied(f"{self.name}: {error}") from error
        except OSError as error:
            raise RemoteUnavailable(f"{self.name}: {error}") from error

    def _work(self, work: Callable[[], _Result]) -> _Result:
        """In a thread."""
        self._check_folder()
        try:
            return work()
        finally:
            self._check_folder()  # what was found, or not found, may be that of the folder below the mount

    def _check_folder(self) -> None:
        try:
            identity = _identify(self._folder)
        except _NOT_THERE:
            raise RemoteUnavailable(f"there is no folder {self.name}: is something not mounted?") from None
        if self._identity is None:
            self._identity = identity
        if identity != self._identity:
            raise RemoteUnavailable(f"{self.name} is not the folder any more that it was: is something unmounted?")


# -- what the threads run; raises OSError as the kernel gives it ------------------------------------------------------


def _identify(folder: Path) -> tuple[int, int]:
    found = os.stat(f"{folder}/")
    return found.st_dev, found.st_ino


def _sweep(folder: Path, unique: str) -> None:
    """Remove what was left in `.new`. How old that is, a file made now says: clocks of machines differ."""
    mark = folder / _NEW / unique
    _make_folders(folder, mark.parent)
    mark.touch(_FILE_MODE, exist_ok=False)
    try:
        now_s = mark.stat().st_mtime
        with os.scandir(mark.parent) as entries:
            for entry in entries:
                with suppress(OSError):  # gone meanwhile, or not ours to remove: it is in nobody's way
                    if now_s - entry.stat(follow_symlinks=False).st_mtime > _LEFT_S:
                        os.unlink(entry)
    finally:
        mark.unlink()


def _put_new(folder: Path, key: str, parts: Sequence[Buffer], unique: str) -> None:
    new = folder / _NEW / unique
    target = folder / key
    _make_folders(folder, new.parent)
    try:
        _make_folders(folder, target.parent)
        _write(new, parts)
        os.link(new, target)
    except NotADirectoryError:
        raise RemoteRefused(f"{target} cannot be made: a file lies where a folder should") from None
    except FileExistsError:
        if target.is_dir():
            raise RemoteRefused(f"{target} is a folder") from None
        if not _holds(target, parts):
            raise BlobExists(f"{target} holds other bytes") from None
    finally:
        with suppress(FileNotFoundError):
            new.unlink()
    sync_folder(target.parent)  # also when it was there: whoever made it may not have come so far


def _make_folders(root: Path, folder: Path) -> None:
    """The folder and those above it up to the root, durably."""
    if folder == root:
        return
    _make_folders(root, folder.parent)
    with suppress(FileExistsError):
        folder.mkdir(_FOLDER_MODE)
    sync_folder(folder.parent)


def _write(path: Path, parts: Sequence[Buffer]) -> None:
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
    with open(number, "wb", buffering=_WRITE_BYTES) as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(number)


def _holds(path: Path, parts: Sequence[Buffer]) -> bool:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != parts_length(parts):
            return False
        for part in parts:
            view = memoryview(part).cast("B")
            for start in range(0, len(view), _COMPARE_BYTES):
                wanted = view[start : start + _COMPARE_BYTES]
                if file.read(len(wanted)) != wanted:
                    return False
        os.fsync(file.fileno())
    return True


def _get(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def _size(path: Path) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(None, None, str(path))
    return status.st_size


def _delete(path: Path) -> None:
    try:
        path.unlink()
    except _NOT_THERE:
        return
    sync_folder(path.parent)


def _list(root: Path, prefix: str, after: str, count_max: int) -> Page:
    """A folder has no order of its own to go on in: all names are looked at for each page, few are kept."""
    above = prefix.rpartition("/")[0]
    while True:
        wanted = (key for key in _keys(root / above, f"{above}/" if above else "") if _is_asked(key, prefix, after))
        keys = heapq.nsmallest(count_max + 1, wanted)
        more = len(keys) > count_max
        found = []
        for key in keys[:count_max]:
            with suppress(FileNotFoundError):  # deleted meanwhile
                found.append(Stored(key, _size(root / key)))
        if found or not more:
            return Page(tuple(found), more)
        after = keys[count_max - 1]


def _is_asked(key: str, prefix: str, after: str) -> bool:
    return key > after and key.startswith(prefix)


def _keys(folder: Path, above: str) -> Iterator[str]:
    """Of all files below a folder, in any order."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    yield above + entry.name
                elif entry.name != _NEW:
                    yield from _keys(folder / entry.name, f"{above}{entry.name}/")
    except (FileNotFoundError, NotADirectoryError):
        return  # nothing has that prefix; whether the whole folder is away is looked at for each call
