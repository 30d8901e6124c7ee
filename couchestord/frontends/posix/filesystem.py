"""A bucket as a file system, or all of them: what each call does, in terms of the store. It knows no kernel and no
transport.

Names are bytes as a file system shows them, files and directories go by their numbers, `ROOT` for the top. Calls raise
errors of the tree. What changes something returns once that is durable, but for writes: a file that is being written is
a draft here until it is synced, closed, or has waited long enough.
"""

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

import trio

from couchestord.clock import Clock
from couchestord.errors import (
    EntryExists,
    NameTooLong,
    NoSuchEntry,
    NoSuchXattr,
    NotPermitted,
    StaleInode,
    Unavailable,
)
from couchestord.frontends.posix.attributes import DIRECTORY_MODE, Stat, nearest_ns, stat_of
from couchestord.frontends.posix.drafts import Draft
from couchestord.frontends.posix.listing import PARENT, SELF, OpenDirectory
from couchestord.frontends.posix.openfiles import OpenFiles
from couchestord.io import filerequests as fr
from couchestord.io.catalog.files import NodeRow
from couchestord.store import Objects
from couchestord.store.names import NAME_BYTES_MAX

Once = fr.MakeNode | fr.LinkNode | fr.UnlinkNode | fr.RemoveDirectory | fr.RenameNode | fr.SetXattr
ROOT: Final = 1
_LOOKS_MAX: Final = 8


class Caller(NamedTuple):
    """Who asks."""

    uid: int
    gid: int


def may_open(found: Stat, parent: Stat, who: Caller, flags: int) -> bool:
    """Whether it is beyond doubt that a file may be opened so by who wanted to make it. The kernel knows more: of which
    other groups they are, and what capabilities they have.
    """
    wanted = {os.O_RDONLY: 4, os.O_WRONLY: 2}.get(flags & os.O_ACCMODE, 6) | (2 if flags & os.O_TRUNC else 0)
    if who.uid == found.uid:
        allowed = found.mode >> 6
    elif parent.mode & stat.S_ISVTX:
        return False
    else:
        allowed = found.mode >> 3 & found.mode
    return stat.S_ISREG(found.mode) and not wanted & ~allowed


class Room(NamedTuple):
    """Of the store, for users."""

    total_bytes: int
    free_bytes: int


class FileSystem(OpenFiles):
    """One mount's. Belongs to one trio loop."""

    def __init__(
        self,
        bucket: str | None,
        store: Callable[[], Objects],
        clock: Clock,
        room: Callable[[], Room],
        *,
        trust_owners: bool = False,
    ) -> None:
        """`bucket` None: its top has all of them. `store` answers the open store, or raises Unavailable. `trust_owners`
        is that of `stat_of`. Raises NoSuchBucket.
        """
        super().__init__(lambda: store().files, clock)
        self._objects = store
        self._room = room
        self._trust_owners = trust_owners
        self.root = self._store().root(bucket) if bucket is not None else None
        """The number of the directory that its top is; None: that has buckets."""
        self._last_token = int.from_bytes(os.urandom(7), "big")
        self._doubts: WeakKeyDictionary[trio.lowlevel.Task, tuple[int, int]] = WeakKeyDictionary()
        """Of tasks that were not told whether what they asked for was done: its token, and the last record before."""
        self._directories: dict[int, OpenDirectory | None] = {}
        """None: the top that has buckets."""

    def _id(self, ino: int) -> int:
        """Raises NotPermitted for a top that has buckets."""
        if ino != ROOT:
            return ino
        if self.root is None:
            raise NotPermitted("here are buckets only: mkdir makes one, rmdir removes an empty one")
        return self.root

    def _is_of_buckets(self, ino: int) -> bool:
        return ino == ROOT and self.root is None

    def _shown(self, node: NodeRow) -> Stat:
        found = stat_of(node, trust_owners=self._trust_owners)
        if node.id == self.root:
            return found._replace(ino=ROOT)
        draft = self._draft_of(node.id)
        if draft is not None:
            changed_ns = max(draft.changed_ns, found.changed_ns)
            found = found._replace(size=draft.size, modified_ns=draft.modified_ns, changed_ns=changed_ns)
        return found

    # -- looking -------------------------------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Stat:
        """Raises NoSuchEntry, NameTooLong."""
        if len(name) > NAME_BYTES_MAX:
            raise NameTooLong(f"a name has at most {NAME_BYTES_MAX} bytes")
        if name == b".":
            return self.stat(parent)
        files = self._store()
        if name == b"..":
            return self.stat(self._parent(parent))
        if self._is_of_buckets(parent):
            root = dict(files.buckets()).get(name)
            found = files.node(root) if root is not None else None
        else:
            found = files.lookup(self._id(parent), name)
        if found is None:
            raise NoSuchEntry("there is no such file or directory")
        return self._shown(found)

    def _parent(self, ino: int) -> int:
        if self._is_of_buckets(ino):
            return ROOT
        id_ = self._id(ino)
        parent = self._store().parent(id_)
        return ROOT if parent == id_ else parent

    def stat(self, ino: int) -> Stat:
        """Raises StaleInode."""
        if self._is_of_buckets(ino):
            links = 2 + len(self._store().buckets())
            return Stat(ROOT, stat.S_IFDIR | DIRECTORY_MODE, links, 0, 0, 0, 0, 0, 0, 0)
        return self._shown(self._store().node(self._id(ino)))

    def read_link(self, ino: int) -> bytes:
        """Raises StaleInode."""
        return self._store().node(ino).target or b""

    def room(self) -> Room:
        return self._room()

    def xattr(self, ino: int, name: bytes) -> bytes:
        """Raises NoSuchXattr."""
        value = None if self._is_of_buckets(ino) else self._store().xattr(self._id(ino), name)
        if value is None:
            raise NoSuchXattr("there is no such attribute")
        return value

    def xattrs(self, ino: int) -> list[bytes]:
        """Their names."""
        return [] if self._is_of_buckets(ino) else self._store().xattrs(self._id(ino))

    # -- directories ---------------------------------------------------------------------------------------------------

    def open_directory(self, ino: int) -> int:
        """A handle. Raises StaleInode."""
        handle = self._next_handle()
        if self._is_of_buckets(ino):
            self._directories[handle] = None
        else:
            self._store().parent(self._id(ino))
            self._directories[handle] = OpenDirectory(self._id(ino))
        return handle

    def read_directory(self, handle: int, after: int) -> list[tuple[bytes, Stat, int]]:
        """(name, attributes, number) of entries behind that number, from the beginning with 0; none at the end."""
        directory = self._directories[handle]
        if directory is None:
            return [each for each in self._list_buckets() if each[2] > after]
        files, found = self._store(), list[tuple[bytes, Stat, int]]()
        for name, id_, node, number in directory.read(files, after):
            shown = self._shown(node) if node is not None else self.stat(self._parent(id_))
            found.append((name, shown, number))
        return found

    def _list_buckets(self) -> list[tuple[bytes, Stat, int]]:
        files, top = self._store(), self.stat(ROOT)
        by_number = sorted((root, name) for name, root in files.buckets())
        own = [(b".", top, SELF), (b"..", top, PARENT)]
        return [*own, *((name, self._shown(files.node(root)), root) for root, name in by_number)]

    def close_directory(self, handle: int) -> None:
        del self._directories[handle]

    # -- entries -------------------------------------------------------------------------------------------------------

    async def _once(self, request: Once) -> NodeRow | None:
        """Done once, though the task that asks begins again after Unavailable: then it may have been done already."""
        task, asked_after = trio.lowlevel.current_task(), None
        before = self._doubts.pop(task, None)
        if before is None:
            self._last_token += 1
            before = self._last_token, self._store().sequence
        else:
            asked_after = before[1]
        try:
            return await self._store().change(replace(request, token=before[0], asked_after=asked_after))
        except Unavailable:
            self._doubts[task] = before
            raise

    def forget_doubt(self) -> None:
        """The task that asks gives up: what it asks for next is something else."""
        self._doubts.pop(trio.lowlevel.current_task(), None)

    async def make(
        self, parent: int, name: bytes, mode: int, who: Caller, *, rdev: int = 0, target: bytes = b""
    ) -> Stat:
        """A file, directory, symbolic link or special file, as `mode` says. Raises EntryExists, ..."""
        if self._is_of_buckets(parent) and stat.S_ISDIR(mode):
            await self._objects().create_bucket(name.decode("ascii", "replace"))
            return self.lookup(parent, name)
        node = await self._once(fr.MakeNode(self._id(parent), name, mode, who.uid, who.gid, rdev, target))
        assert node is not None
        return self._shown(node)

    async def create(
        self, parent: int, name: bytes, mode: int, who: Caller, flags: int = os.O_WRONLY | os.O_EXCL
    ) -> tuple[int, Stat]:
        """(handle, attributes) of a new file, or, without O_EXCL, of one that S3 was faster to put there. Raises as
        `make`; StaleInode when it takes the kernel to say whether that may be opened: it looks the name up again.
        """
        # told twice that it is stale, the kernel tells the program: so what comes and goes is looked at here
        for _ in range(_LOOKS_MAX):
            try:
                found = await self.make(parent, name, stat.S_IFREG | stat.S_IMODE(mode), who)
            except EntryExists:
                if flags & os.O_EXCL:
                    raise
            else:
                self._check_kept(found.ino)  # S3 may have deleted it before this was known to be done
                return self._hand_out(found.ino, writes=True), found
            with suppress(NoSuchEntry, StaleInode):
                found = self.lookup(parent, name)
                if not may_open(found, self.stat(parent), who, flags):
                    break
                await self.wait_forgotten(found.ino)
                handle = self.open(found.ino, writes=True, truncate=bool(flags & os.O_TRUNC))
                return handle, self.stat(found.ino)
        raise StaleInode("somebody else has made it")

    async def link(self, ino: int, parent: int, name: bytes) -> Stat:
        """See `LinkNode`."""
        node = await self._once(fr.LinkNode(ino, self._id(parent), name))
        assert node is not None
        return self._shown(node)

    async def unlink(self, parent: int, name: bytes) -> None:
        """See `UnlinkNode`. A file that is open stays until it is closed."""
        # who has it open when that is done is asked by the store, which knows of other mounts, too
        await self._once(fr.UnlinkNode(self._id(parent), name, keep=True))

    async def remove_directory(self, parent: int, name: bytes) -> None:
        """See `RemoveDirectory`; a bucket goes when it is empty."""
        if self._is_of_buckets(parent):
            await self._objects().delete_bucket(name.decode("ascii", "replace"))
            return
        await self._once(fr.RemoveDirectory(self._id(parent), name))

    async def rename(self, parent: int, name: bytes, to_parent: int, to_name: bytes, *, no_replace: bool) -> None:
        """See `RenameNode`. A file that is open stays until it is closed."""
        old, new = (self._id(parent), name), (self._id(to_parent), to_name)
        await self._once(fr.RenameNode(*old, *new, no_replace, keep=True))

    async def change(
        self,
        ino: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        accessed_ns: int | None = None,
        modified_ns: int | None = None,
        changed_ns: int | None = None,
    ) -> Stat:
        """See `ChangeInode`; with `size` the file is cut or made longer. One of that size stays as it is, as with
        truncate(2), unless `modified_ns` is said, as with ftruncate(2). A time that cannot be kept becomes the nearest
        that can. Raises IsADirectory.
        """
        id_ = self._id(ino)
        accessed_ns = nearest_ns(accessed_ns) if accessed_ns is not None else None
        modified_ns = nearest_ns(modified_ns) if modified_ns is not None else None
        if size is not None:
            if modified_ns is not None or size != self.stat(ino).size:
                await self._truncate(id_, size, modified_ns)
            modified_ns = None
        known = None
        if modified_ns is not None:
            known = self._keep_times(id_, modified_ns, changed_ns)
            modified_ns = None if known is not None else modified_ns
        asked = (mode, uid, gid, accessed_ns, modified_ns)
        if any(value is not None for value in asked):
            are_rights = accessed_ns is None and modified_ns is None
            known = self._keep_rights(id_, mode, uid, gid, changed_ns) if are_rights else None
            known = known or await self._change_inode(fr.ChangeInode(id_, *asked, changed_ns))
        return self._shown(known) if known is not None else self.stat(ino)

    async def _change_inode(self, request: fr.ChangeInode) -> NodeRow | None:
        opened = self._open.get(request.inode) if request.modified_ns is not None else None
        if opened is None or opened.draft is None or not opened.draft.is_publishing:
            return await self._store().change(request)
        # what is on its way, with an older time, may wait for room, which this does not
        async with opened.turn:
            return await self._store().change(request)

    def _keep_times(self, id_: int, modified_ns: int, changed_ns: int | None) -> NodeRow | None:
        """What is known of a file, when its times need no change of their own: they are published with the bytes, or
        are what they were. A kernel that keeps the times of what is written hands them over after each change.
        """
        node = self._store().node(id_)
        draft = self._draft_of(id_)
        if draft is None:
            return node if node.modified_ns == modified_ns else None
        # what is on its way has them with it, or if it fails the next time
        draft.modified_ns = modified_ns
        draft.changed_ns = changed_ns or self._clock.now_ns()
        return node if draft.takes_times else None

    def _keep_rights(
        self, id_: int, mode: int | None, uid: int | None, gid: int | None, changed_ns: int | None
    ) -> NodeRow | None:
        """The same, when they are what they were: then the time of the change is published with the bytes. Who unpacks
        an archive gives each file to the user that it has.
        """
        draft = self._draft_of(id_)
        if draft is None or not draft.takes_times:
            return None
        node = self._store().node(id_)
        has_mode = mode is None or (node.mode is not None and stat.S_IMODE(mode) == stat.S_IMODE(node.mode))
        if not (has_mode and uid in (None, node.uid) and gid in (None, node.gid)):
            return None
        draft.changed_ns = changed_ns or self._clock.now_ns()
        return node

    def _draft_of(self, id_: int) -> Draft | None:
        """One that is not published, or is being published now."""
        opened = self._open.get(id_)
        draft = opened.draft if opened is not None else None
        return draft if draft is not None and (draft.is_dirty or draft.is_publishing) else None

    async def set_xattr(self, ino: int, name: bytes, value: bytes | None, flags: int = 0) -> None:
        """None: remove it. `flags` as of setxattr(2). Raises NoSuchXattr, XattrExists, XattrTooLarge, NotPermitted."""
        must_exist, must_not_exist = bool(flags & os.XATTR_REPLACE), bool(flags & os.XATTR_CREATE)
        await self._once(fr.SetXattr(self._id(ino), name, value, must_exist, must_not_exist))
