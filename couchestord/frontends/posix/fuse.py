"""Carries a file system to the kernel through pyfuse3. The door to it: another transport would stand beside this one.

pyfuse3 keeps its session in globals: one mount a process.
"""

import errno
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar, cast

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
    XAttrNameT,
)

from couchestord import logs
from couchestord.errors import Error, NoSuchEntry, Unavailable
from couchestord.frontends.posix.attributes import Stat
from couchestord.frontends.posix.errors import number_of
from couchestord.frontends.posix.filesystem import Caller, FileSystem
from couchestord.frontends.posix.notices import Notices, device
from couchestord.store.names import NAME_BYTES_MAX, is_escaped

log = logs.get(__name__)
_KEPT_S: Final = 3600.0
"""How long the kernel may keep what it looked up, unless it is told to forget it."""
_KEPT_BY_OLD_S: Final = 10.0
"""The same of a kernel that cannot be told to forget everything, when there was no daemon to say what has changed."""
_AGAIN_S: Final = 30.0
_PAUSE_S: Final = 0.1
_TAKE_S: Final = 5.0
"""So long the kernel may take at the end to hand over what it keeps, of a file that hangs too, ..."""
_FINISH_S: Final = 10.0
"""... and so long publishing it."""
_BLOCK_BYTES: Final = 4096
_NO_ATTRIBUTES: Final = frozenset(
    (b"system.posix_acl_access", b"system.posix_acl_default", b"security.capability", b"security.selinux")
)
"""Nobody uses them here: there are no ACLs, no rights come from files of a mount (nosuid), and SELinux gives all files
of a FUSE mount one label. `ls -l` asks each file for some of them until it is told that there are none.
"""
P = ParamSpec("P")
Result = TypeVar("Result")
Method = Callable[Concatenate["_Operations", P], Awaitable[Result]]
Answer = Callable[Concatenate["_Operations", P], Coroutine[Any, Any, Result]]


class Calls(Protocol):
    """Are told of each call of the kernel's."""

    async def begin(self) -> None:
        """Returns once there is a store, which does not close before `end`. Raises Unavailable."""
        ...

    def end(self) -> None: ...


def _answered(method: Method[P, Result]) -> Answer[P, Result]:
    """Errors become numbers; what nobody foresaw is logged, and EIO. When the daemon goes away meanwhile, the call is
    begun again, in the same task, by which the file system knows what it may have done before. A task takes one call
    after the other.
    """

    @wraps(method)
    async def answer(self: "_Operations", /, *args: P.args, **kwargs: P.kwargs) -> Result:
        until_s = trio.current_time() + _AGAIN_S
        while True:
            try:
                await self.calls.begin()
                try:
                    return await method(self, *args, **kwargs)
                finally:
                    self.calls.end()
            except FUSEError:
                raise
            except Unavailable as error:
                if trio.current_time() >= until_s:
                    log.error("a call failed", call=method.__name__, reason=str(error))
                    self.files.forget_doubt()
                    raise FUSEError(errno.EIO) from None
                await trio.sleep(_PAUSE_S)
            except Error as error:
                number = number_of(error)
                if number == errno.EIO:
                    log.error("a call failed", call=method.__name__, reason=str(error))
                raise FUSEError(number) from None
            except Exception:
                log.exception("a call failed", call=method.__name__)
                raise FUSEError(errno.EIO) from None

    return answer


class _Operations(pyfuse3.Operations):
    supports_dot_lookup = True

    def __init__(self, files: FileSystem, calls: Calls, *, writes: bool) -> None:
        super().__init__()
        self.files = files
        self.calls = calls
        # who only reads must see sizes that others change
        self.enable_writeback_cache = writes
        self.kept_s = _KEPT_S

    # -- looking -------------------------------------------------------------------------------------------------------

    @_answered
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        try:
            return self._entry(self.files.lookup(parent_inode, name), name)
        except NoSuchEntry:
            if is_escaped(name):
                raise
            nothing = EntryAttributes()
            nothing.st_ino = InodeT(0)
            nothing.entry_timeout = self.kept_s
            return nothing

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Numbers are the store's own: nothing is kept for what the kernel knows."""

    @_answered
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self.files.stat(inode))

    @_answered
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return FileNameT(self.files.read_link(inode))

    @_answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        room = self.files.room()
        found = StatvfsData()
        found.f_bsize = found.f_frsize = _BLOCK_BYTES
        found.f_blocks = room.total_bytes // _BLOCK_BYTES
        found.f_bfree = found.f_bavail = room.free_bytes // _BLOCK_BYTES
        found.f_files = found.f_ffree = found.f_favail = 1 << 40
        found.f_namemax = NAME_BYTES_MAX
        return found

    @_answered
    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        return True  # the kernel has looked

    # -- directories ---------------------------------------------------------------------------------------------------

    @_answered
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(self.files.open_directory(inode))

    @_answered
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        for name, found, number in self.files.read_directory(fh, start_id):
            if not pyfuse3.readdir_reply(token, FileNameT(name), self._entry(found, name), number):
                return

    async def releasedir(self, fh: FileHandleT) -> None:
        self.files.close_directory(fh)

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Entries are durable when the call that made them returns."""

    # -- entries -------------------------------------------------------------------------------------------------------

    @_answered
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return self._entry(await self.files.make(parent_inode, name, mode & ~ctx.umask, _caller(ctx), rdev=rdev))

    @_answered
    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        kind = 0o040000 | mode & 0o7777 & ~ctx.umask
        return self._entry(await self.files.make(parent_inode, name, kind, _caller(ctx)))

    @_answered
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        return self._entry(await self.files.make(parent_inode, name, 0o120777, _caller(ctx), target=target))

    @_answered
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        return self._entry(await self.files.link(inode, new_parent_inode, new_name))

    @_answered
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self.files.unlink(parent_inode, name)

    @_answered
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self.files.remove_directory(parent_inode, name)

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
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise FUSEError(errno.EINVAL)
        no_replace = bool(flags & pyfuse3.RENAME_NOREPLACE)
        await self.files.rename(parent_inode_old, name_old, parent_inode_new, name_new, no_replace=no_replace)

    @_answered
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        found = await self.files.change(
            inode,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            accessed_ns=attr.st_atime_ns if fields.update_atime else None,
            modified_ns=attr.st_mtime_ns if fields.update_mtime else None,
            changed_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )
        return self._entry(found)

    # -- extended attributes -------------------------------------------------------------------------------------------

    @_answered
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        if name in _NO_ATTRIBUTES:
            raise FUSEError(errno.EOPNOTSUPP)
        await self.files.set_xattr(inode, name, value)

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        # before each write(2) the kernel asks for one of these
        if name in _NO_ATTRIBUTES:
            raise FUSEError(errno.EOPNOTSUPP)
        return await self._xattr(inode, name)

    @_answered
    async def _xattr(self, inode: InodeT, name: XAttrNameT) -> bytes:
        return self.files.xattr(inode, name)

    @_answered
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        return cast(Sequence[XAttrNameT], self.files.xattrs(inode))

    @_answered
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        await self.files.set_xattr(inode, name, None)

    # -- files ---------------------------------------------------------------------------------------------------------

    @_answered
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        await self.files.wait_forgotten(inode)
        writes = flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY
        return _opened(self.files.open(inode, writes=writes, truncate=bool(flags & os.O_TRUNC)))

    @_answered
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        handle, made = await self.files.create(parent_inode, name, mode & ~ctx.umask, _caller(ctx), flags)
        return _opened(handle), self._entry(made, name)

    @_answered
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        # the kernel has it before anything else is done here
        return cast(bytes, await self.files.read(fh, off, size))

    @_answered
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        return await self.files.write(fh, off, buf)

    async def flush(self, fh: FileHandleT) -> None:
        # whoever starts a process closes files in it: where nothing was written, no daemon is waited for
        if self.files.is_dirty(fh):
            await self.fsync(fh, True)

    @_answered
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await self.files.sync(fh)

    async def release(self, fh: FileHandleT) -> None:
        # of what came through a mapping since the last flush: nobody else asks for it again when the daemon goes away
        if self.files.is_owed(fh):
            with suppress(FUSEError):
                await self.fsync(fh, True)
        try:
            await self.files.close(fh)
        except Exception:
            log.exception("a call failed", call="release")

    def _entry(self, found: Stat, name: bytes = b"") -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = InodeT(found.ino)
        entry.generation = 0
        # what is shown by an escape may come or go with an entry of another name
        entry.entry_timeout = 0 if is_escaped(name) else self.kept_s
        entry.attr_timeout = self.kept_s
        entry.st_mode = ModeT(found.mode)
        entry.st_nlink = found.nlink
        entry.st_uid, entry.st_gid, entry.st_rdev = found.uid, found.gid, found.rdev
        entry.st_size = found.size
        entry.st_blksize = _BLOCK_BYTES
        entry.st_blocks = -(-found.size // 512)
        entry.st_atime_ns = found.accessed_ns
        entry.st_mtime_ns = found.modified_ns
        entry.st_ctime_ns = found.changed_ns
        return entry


def _caller(ctx: RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid)


def _opened(handle: int) -> FileInfo:
    # bytes of a file change through this kernel only, or it is told
    return FileInfo(fh=FileHandleT(handle), keep_cache=True)


async def serve_mount(
    files: FileSystem,
    calls: Calls,
    folder: Path,
    *,
    name: str,
    options: Sequence[str],
    ready: Callable[[Notices], None],
    ending: trio.Event,
) -> None:
    """Mounts on `folder` and serves until somebody unmounts it, or `ending` is set: then what was written is published,
    and it is unmounted here. `calls` wait for a store. `ready` is called once it is there. Raises OSError when it
    cannot be mounted.
    """
    wanted = {f"fsname={name}", "subtype=couchestord", "default_permissions", *options}
    operations = _Operations(files, calls, writes="ro" not in options)
    try:
        pyfuse3.init(operations, os.fspath(folder), wanted)
    except RuntimeError as error:
        raise OSError(errno.EIO, f"{folder} cannot be mounted: {error}") from None
    is_unmounted = False
    try:
        notices = Notices(device(), files.root)
        if not notices.forget_everything():
            operations.kept_s = _KEPT_BY_OLD_S
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                nonlocal is_unmounted
                await pyfuse3.main()
                is_unmounted = True
                ending.set()

            nursery.start_soon(serve)
            ready(notices)
            await ending.wait()
            with trio.move_on_after(_TAKE_S):
                await notices.take_written(files.written())
            with trio.move_on_after(_FINISH_S):
                await files.finish()
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)
        log.info("unmounted", folder=str(folder), by="somebody" if is_unmounted else "this process")
