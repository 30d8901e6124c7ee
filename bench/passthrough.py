"""A bare file system through pyfuse3 over a folder: `python -m bench.passthrough FOLDER COPY MOUNTPOINT`.

The limit of a mount in Python: each call of the kernel's is one of the system's below, in the loop's own thread. The
kernel keeps names and attributes for long and holds back writes, as one may that alone has the folder. What is written
costs the disk as many bytes as with 4+2: half as many again go to the file COPY. An fsync syncs both, a close nothing.
"""

import argparse
import errno
import os
import stat
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

_KEPT_S: Final = 3600.0
_COPY_BYTES: Final = 1 << 30
"""The copy begins again at its start: it is there to be written."""
P = ParamSpec("P")
Result = TypeVar("Result")


def _answered(
    method: Callable[Concatenate["Passthrough", P], Awaitable[Result]],
) -> Callable[Concatenate["Passthrough", P], Coroutine[Any, Any, Result]]:
    """The number of an error below is the kernel's answer."""

    @wraps(method)
    async def answer(self: "Passthrough", /, *args: P.args, **kwargs: P.kwargs) -> Result:
        try:
            return await method(self, *args, **kwargs)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    return answer


class Passthrough(pyfuse3.Operations):
    """Inodes are those below; each is known by the name that was looked up last."""

    enable_writeback_cache = True
    supports_dot_lookup = False

    def __init__(self, folder: Path, copy: Path) -> None:
        super().__init__()
        self._top = os.fsencode(folder)
        self._names: dict[InodeT, tuple[InodeT, bytes]] = {}
        self._lookups: dict[InodeT, int] = {}
        self._open: dict[InodeT, list[int]] = {}
        self._inodes: dict[int, InodeT] = {}
        self._listings: dict[int, tuple[InodeT, list[bytes]]] = {}
        self._copy = os.open(copy, os.O_RDWR | os.O_CREAT)
        self._copied_bytes = 0

    def _path(self, inode: InodeT, name: bytes | None = None) -> bytes:
        parts = [] if name is None else [name]
        while inode != pyfuse3.ROOT_INODE:
            inode, part = self._names[inode]
            parts.append(part)
        return b"/".join([self._top, *reversed(parts)])

    def _known(self, parent: InodeT, name: bytes) -> EntryAttributes:
        """An entry that the kernel is told of."""
        entry = _entry(os.lstat(self._path(parent, name)))
        self._names[entry.st_ino] = parent, name
        self._lookups[entry.st_ino] = self._lookups.get(entry.st_ino, 0) + 1
        return entry

    @_answered
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        return self._known(parent_inode, name)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for inode, count in inode_list:
            self._lookups[inode] -= count
            if not self._lookups[inode]:
                del self._lookups[inode], self._names[inode]

    @_answered
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        opened = self._open.get(inode)
        entry = _entry(os.fstat(opened[0]) if opened else os.lstat(self._path(inode)))
        entry.st_ino = inode
        return entry

    @_answered
    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        path = self._path(inode) if fh is None else fh
        if fields.update_size:
            os.truncate(path, attr.st_size)
        if fields.update_mode:
            os.chmod(path, stat.S_IMODE(attr.st_mode))
        if fields.update_uid or fields.update_gid:
            ids = attr.st_uid if fields.update_uid else -1, attr.st_gid if fields.update_gid else -1
            os.chown(path, *ids, follow_symlinks=fh is not None)
        if fields.update_atime or fields.update_mtime:
            now = os.stat(path, follow_symlinks=fh is not None)
            accessed_ns = attr.st_atime_ns if fields.update_atime else now.st_atime_ns
            modified_ns = attr.st_mtime_ns if fields.update_mtime else now.st_mtime_ns
            os.utime(path, ns=(accessed_ns, modified_ns), follow_symlinks=fh is not None)
        return await self.getattr(inode, ctx)

    @_answered
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return FileNameT(os.readlink(self._path(inode)))

    @_answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        found, below = StatvfsData(), os.statvfs(self._top)
        for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(found, name, getattr(below, name))
        found.f_namemax = below.f_namemax
        return found

    # -- entries ---------------------------------------------------------------------------------------------------

    @_answered
    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        os.mkdir(self._path(parent_inode, name), stat.S_IMODE(mode) & ~ctx.umask)
        return self._known(parent_inode, name)

    @_answered
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        os.symlink(target, self._path(parent_inode, name))
        return self._known(parent_inode, name)

    @_answered
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        os.unlink(self._path(parent_inode, name))

    @_answered
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        os.rmdir(self._path(parent_inode, name))

    @_answered
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        old, new = self._path(parent_inode_old, name_old), self._path(parent_inode_new, name_new)
        inode = InodeT(os.lstat(old).st_ino)
        os.rename(old, new)
        self._names[inode] = parent_inode_new, name_new

    # -- directories -----------------------------------------------------------------------------------------------

    @_answered
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        handle = max(self._listings, default=0) + 1
        self._listings[handle] = inode, os.listdir(self._path(inode))
        return FileHandleT(handle)

    @_answered
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        inode, names = self._listings[fh]
        for number in range(start_id, len(names)):
            entry = _entry(os.lstat(self._path(inode, names[number])))
            if not pyfuse3.readdir_reply(token, FileNameT(names[number]), entry, number + 1):
                return
            self._names[entry.st_ino] = inode, names[number]
            self._lookups[entry.st_ino] = self._lookups.get(entry.st_ino, 0) + 1

    async def releasedir(self, fh: FileHandleT) -> None:
        del self._listings[fh]

    # -- files -----------------------------------------------------------------------------------------------------

    def _opened(self, inode: InodeT, number: int) -> FileInfo:
        self._open.setdefault(inode, []).append(number)
        self._inodes[number] = inode
        return FileInfo(fh=FileHandleT(number), keep_cache=True)

    @_answered
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        # a kernel that holds back writes reads the rest of a page that is written in part
        is_read = flags & os.O_ACCMODE == os.O_RDONLY
        mode = (os.O_RDONLY if is_read else os.O_RDWR) | flags & os.O_TRUNC
        return self._opened(inode, os.open(self._path(inode), mode))

    @_answered
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        number = os.open(
            self._path(parent_inode, name), os.O_RDWR | os.O_CREAT | flags & (os.O_EXCL | os.O_TRUNC), mode & ~ctx.umask
        )
        entry = self._known(parent_inode, name)
        return self._opened(entry.st_ino, number), entry

    @_answered
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return os.pread(fh, size, off)

    @_answered
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        half = memoryview(buf)[: -(-len(buf) // 2)]
        os.pwrite(self._copy, half, self._copied_bytes % _COPY_BYTES)
        self._copied_bytes += len(half)
        return os.pwrite(fh, buf, off)

    @_answered
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        (os.fdatasync if datasync else os.fsync)(fh)
        os.fdatasync(self._copy)

    async def flush(self, fh: FileHandleT) -> None:
        """A close syncs nothing."""

    async def release(self, fh: FileHandleT) -> None:
        inode = self._inodes.pop(fh)
        self._open[inode].remove(fh)
        if not self._open[inode]:
            del self._open[inode]
        os.close(fh)


def _entry(found: os.stat_result) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = InodeT(found.st_ino)
    entry.generation = 0
    entry.entry_timeout = entry.attr_timeout = _KEPT_S
    entry.st_mode = ModeT(found.st_mode)
    entry.st_nlink = found.st_nlink
    entry.st_uid, entry.st_gid, entry.st_rdev = found.st_uid, found.st_gid, found.st_rdev
    entry.st_size = found.st_size
    entry.st_blksize, entry.st_blocks = found.st_blksize, found.st_blocks
    entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.passthrough", description="A bare file system.")
    parser.add_argument("folder", type=Path, help="what is shown")
    parser.add_argument("copy", type=Path, help="a file that half of what is written goes to as well")
    parser.add_argument("mountpoint", type=Path)
    options = parser.parse_args()
    system = Passthrough(options.folder, options.copy)
    pyfuse3.init(
        system, os.fspath(options.mountpoint), {"fsname=passthrough", "default_permissions", "nosuid", "nodev"}
    )
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
