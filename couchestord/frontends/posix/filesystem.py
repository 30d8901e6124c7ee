"""A bucket as a file system, or all of them: what each call does, in terms of the store. It knows no kernel and no
transport.

Names are bytes as a file system shows them, files and directories go by their numbers, `ROOT` for the top. Calls raise
errors of the tree. What changes something returns once that is durable, but for writes: a file that is being written is
a draft here until it is synced, closed, or has waited long enough.
"""

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import trio

from couchestord import logs
from couchestord.clock import Clock
from couchestord.errors import Error, IsADirectory, NameTooLong, NoSuchEntry, NoSuchXattr, NotPermitted, StaleInode
from couchestord.frontends.posix.attributes import DIRECTORY_MODE, Stat, stat_of
from couchestord.frontends.posix.drafts import Draft
from couchestord.frontends.posix.listing import PARENT, SELF, OpenDirectory
from couchestord.frontends.posix.publishing import publish
from couchestord.io import filerequests as fr
from couchestord.io.catalog.files import NodeRow
from couchestord.store import Objects
from couchestord.store.files import Files
from couchestord.store.names import NAME_BYTES_MAX

log = logs.get(__name__)
ROOT: Final = 1
DIRTY_S_MAX: Final = 30.0
"""So long bytes that were written wait to be published at most."""
DIRTY_BYTES_MAX: Final = 64 << 20
"""With more of one file waiting, it is published at once."""
ALL_DIRTY_BYTES_MAX: Final = 256 << 20
"""With more of all files together waiting, whichever is written is published at once: memory is bounded."""
_LOOK_S: Final = 5.0


class Caller(NamedTuple):
    """Who asks."""

    uid: int
    gid: int


class Room(NamedTuple):
    """Of the store, for users."""

    total_bytes: int
    free_bytes: int


@dataclass(slots=True)
class _Open:
    """A file that somebody has open."""

    handles: int = 0
    writers: int = 0
    """Handles that may write."""
    draft: Draft | None = None
    dirty_since_s: float = 0.0
    turn: trio.Lock = field(default_factory=trio.Lock)
    """Of publishing."""


class FileSystem:
    """One mount's. Belongs to one trio loop."""

    def __init__(
        self, bucket: str | None, store: Callable[[], Objects], clock: Clock, room: Callable[[], Room]
    ) -> None:
        """`bucket` None: its top has all of them. `store` answers the open store, or raises Unavailable. Raises
        NoSuchBucket.
        """
        self._objects = store
        self._clock = clock
        self._room = room
        self._root = self._store().root(bucket) if bucket is not None else None
        self._open: dict[int, _Open] = {}
        self._handles: dict[int, int] = {}
        self._writers: set[int] = set()
        self._directories: dict[int, OpenDirectory | None] = {}
        """None: the top that has buckets."""
        self._last_handle = 0
        self._dirty_bytes = 0
        """At least what all drafts hold; counted anew when one was published."""

    async def run(self) -> None:
        """Publishes what has waited for long, until cancelled."""
        while True:
            await trio.sleep(_LOOK_S)
            due_s = trio.current_time() - DIRTY_S_MAX
            for id_, opened in list(self._open.items()):
                if opened.draft is not None and opened.draft.is_dirty and opened.dirty_since_s <= due_s:
                    try:
                        await self._publish(id_, opened)
                    except Error as error:
                        log.warning("a file that is written cannot be published yet", file=id_, reason=str(error))

    async def finish(self) -> None:
        """Publishes all that was written, at the end; what cannot be is logged."""
        for id_, opened in list(self._open.items()):
            try:
                await self._publish(id_, opened)
            except Error as error:
                log.error("a file that is open could not be published at the end", file=id_, reason=str(error))

    def _store(self) -> Files:
        return self._objects().files

    def _id(self, ino: int) -> int:
        """Raises NotPermitted for a top that has buckets."""
        if ino != ROOT:
            return ino
        if self._root is None:
            raise NotPermitted("here are buckets only: mkdir makes one, rmdir removes an empty one")
        return self._root

    def _is_of_buckets(self, ino: int) -> bool:
        return ino == ROOT and self._root is None

    def which_open(self, inodes: Iterable[int]) -> list[int]:
        """Those of these files that somebody has open."""
        return [id_ for id_ in inodes if id_ in self._open]

    def _shown(self, node: NodeRow) -> Stat:
        found = stat_of(node)
        if node.id == self._root:
            return found._replace(ino=ROOT)
        opened = self._open.get(node.id)
        draft = opened.draft if opened is not None else None
        if draft is not None and (draft.is_dirty or draft.is_publishing):
            found = found._replace(size=draft.size, modified_ns=draft.modified_ns, changed_ns=draft.changed_ns)
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
        if self._is_of_buckets(ino):
            return []
        return [name for name, _ in self._store().xattrs(self._id(ino))]

    # -- directories ---------------------------------------------------------------------------------------------------

    def open_directory(self, ino: int) -> int:
        """A handle. Raises StaleInode."""
        self._last_handle += 1
        if self._is_of_buckets(ino):
            self._directories[self._last_handle] = None
        else:
            self._store().parent(self._id(ino))
            self._directories[self._last_handle] = OpenDirectory(self._id(ino))
        return self._last_handle

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

    async def make(
        self, parent: int, name: bytes, mode: int, who: Caller, *, rdev: int = 0, target: bytes = b""
    ) -> Stat:
        """A file, directory, symbolic link or special file, as `mode` says. Raises EntryExists, ..."""
        if self._is_of_buckets(parent) and stat.S_ISDIR(mode):
            await self._objects().create_bucket(name.decode("ascii", "replace"))
            return self.lookup(parent, name)
        node = await self._store().change(fr.MakeNode(self._id(parent), name, mode, who.uid, who.gid, rdev, target))
        assert node is not None
        return self._shown(node)

    async def link(self, ino: int, parent: int, name: bytes) -> Stat:
        """See `LinkNode`."""
        node = await self._store().change(fr.LinkNode(ino, self._id(parent), name))
        assert node is not None
        return self._shown(node)

    async def unlink(self, parent: int, name: bytes) -> None:
        """See `UnlinkNode`. A file that is open stays until it is closed."""
        # who has it open when that is done is asked by the store, which knows of other mounts, too
        await self._store().change(fr.UnlinkNode(self._id(parent), name, keep=True))

    async def remove_directory(self, parent: int, name: bytes) -> None:
        """See `RemoveDirectory`; a bucket goes when it is empty."""
        if self._is_of_buckets(parent):
            await self._objects().delete_bucket(name.decode("ascii", "replace"))
            return
        await self._store().change(fr.RemoveDirectory(self._id(parent), name))

    async def rename(self, parent: int, name: bytes, to_parent: int, to_name: bytes, *, no_replace: bool) -> None:
        """See `RenameNode`. A file that is open stays until it is closed."""
        old, new = (self._id(parent), name), (self._id(to_parent), to_name)
        await self._store().change(fr.RenameNode(*old, *new, no_replace, keep=True))

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
    ) -> Stat:
        """See `ChangeInode`; with `size` the file is cut or made longer. Raises IsADirectory."""
        id_ = self._id(ino)
        files = self._store()
        if size is not None:
            await self._truncate(id_, size)
        opened = self._open.get(id_)
        if modified_ns is not None and opened is not None and opened.draft is not None and opened.draft.is_dirty:
            opened.draft.modified_ns = modified_ns  # it is published with the bytes
            modified_ns = None
        asked = (mode, uid, gid, accessed_ns, modified_ns)
        if any(value is not None for value in asked):
            node = await files.change(fr.ChangeInode(id_, *asked))
            assert node is not None
            return self._shown(node)
        return self.stat(ino)

    async def set_xattr(self, ino: int, name: bytes, value: bytes | None, flags: int = 0) -> None:
        """None: remove it. `flags` as of setxattr(2). Raises NoSuchXattr, XattrExists, XattrTooLarge."""
        must_exist, must_not_exist = bool(flags & os.XATTR_REPLACE), bool(flags & os.XATTR_CREATE)
        await self._store().change(fr.SetXattr(self._id(ino), name, value, must_exist, must_not_exist))

    # -- files ---------------------------------------------------------------------------------------------------------

    def open(self, ino: int, *, writes: bool = False, truncate: bool = False) -> int:
        """A handle, which may be written through; with `truncate` the file is empty then. Raises StaleInode,
        IsADirectory.
        """
        node = self._store().node(ino)
        if node.is_directory:
            raise IsADirectory("that is a directory")
        if not node.nlink and ino not in self._open:
            raise StaleInode(f"file {ino} is being freed")
        opened = self._open.setdefault(ino, _Open())
        opened.handles += 1
        if truncate:
            self._draft(ino, opened).truncate(0, self._clock.now_ns())
        self._last_handle += 1
        self._handles[self._last_handle] = ino
        if writes:
            self._writers.add(self._last_handle)
            opened.writers += 1
        return self._last_handle

    async def create(self, parent: int, name: bytes, mode: int, who: Caller) -> tuple[int, Stat]:
        """(handle, attributes) of a new file. Raises as `make`."""
        made = await self.make(parent, name, stat.S_IFREG | stat.S_IMODE(mode), who)
        return self.open(made.ino, writes=True), made

    async def read(self, handle: int, offset: int, length: int) -> bytes:
        """Fewer bytes at the end of the file. Raises DataLost, StaleInode."""
        id_ = self._handles[handle]
        files, draft = self._store(), self._open[id_].draft
        if draft is None:
            return await files.read(id_, offset, length)
        # the layers of now go with the bytes that are published now: nothing is awaited in between
        layers, length = draft.layers(), max(0, min(length, draft.size - offset))
        found = bytearray(await files.read(id_, offset, length))
        found += bytes(length - len(found))
        for layer in layers:
            layer.read_over(found, offset)
        return bytes(found)

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        """All of it, into the draft."""
        id_ = self._handles[handle]
        opened = self._open[id_]
        draft = self._draft(id_, opened)
        before_bytes = draft.dirty_bytes
        draft.write(offset, data, self._clock.now_ns())
        self._dirty_bytes += draft.dirty_bytes - before_bytes
        if draft.dirty_bytes > DIRTY_BYTES_MAX or self._dirty_bytes > ALL_DIRTY_BYTES_MAX:
            await self._publish(id_, opened)
        return len(data)

    def _draft(self, id_: int, opened: _Open) -> Draft:
        """That of an open file, which is about to be changed."""
        if opened.draft is None:
            opened.draft = Draft(self._store().node(id_).size)
        if not opened.draft.is_dirty:
            opened.dirty_since_s = trio.current_time()
        return opened.draft

    async def _truncate(self, id_: int, size: int) -> None:
        """Who writes a file publishes its new length with the bytes; else that is done now."""
        opened = self._open.setdefault(id_, _Open())
        opened.handles += 1
        try:
            self._draft(id_, opened).truncate(size, self._clock.now_ns())
            if not opened.writers:
                await self._publish(id_, opened)
        finally:
            self._let_go(id_, opened)

    def _let_go(self, id_: int, opened: _Open) -> None:
        opened.handles -= 1
        if not opened.handles and self._open.get(id_) is opened:
            del self._open[id_]

    def is_dirty(self, handle: int) -> bool:
        """Whether there is something to sync, or it is being synced."""
        draft = self._open[self._handles[handle]].draft
        return draft is not None and (draft.is_dirty or draft.is_publishing)

    async def sync(self, handle: int) -> None:
        """What was written is durable, and visible to S3, on return."""
        id_ = self._handles[handle]
        await self._publish(id_, self._open[id_])

    async def close(self, handle: int) -> None:
        """The handle is given back. Raises nothing: whoever wants to know has synced before."""
        id_ = self._handles.pop(handle)
        opened = self._open[id_]
        is_writer = handle in self._writers
        self._writers.discard(handle)
        opened.writers -= is_writer
        try:
            if opened.handles == 1 or (is_writer and not opened.writers):
                await self._publish(id_, opened)
        except Error as error:
            log.error("a file that was closed could not be published", file=id_, reason=str(error))
        finally:
            self._let_go(id_, opened)

    async def _publish(self, id_: int, opened: _Open) -> None:
        async with opened.turn:
            if opened.draft is not None and opened.draft.is_dirty:
                try:
                    await publish(self._store(), id_, opened.draft)
                finally:
                    self._dirty_bytes = sum(each.draft.dirty_bytes for each in self._open.values() if each.draft)
