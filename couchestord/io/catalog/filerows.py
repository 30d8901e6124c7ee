"""What mounts change, into rows. The names of an inode all hold what S3 shows of it."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from couchestord.io import fileoutcomes as fo
from couchestord.io.catalog.changes import Watch
from couchestord.io.catalog.directoryrows import DirectoryRows
from couchestord.io.catalog.generations import Generations
from couchestord.io.catalog.inoderows import InodeRows
from couchestord.io.catalog.piecerows import PieceRows
from couchestord.io.outcome import Extent, Piece
from couchestord.io.sqlite import Connection, Execute, Shut


class _Applier(Protocol):
    generations: Generations
    watch: Watch

    def use_ids(self, first: int, count: int = 1) -> None: ...

    def change_object(self, directory: int, name: bytes) -> None: ...


class FileRows:
    """Applies `AnyFileOutcome`. Inside the caller's transaction."""

    def __init__(
        self,
        connection: Connection,
        inodes: InodeRows,
        pieces: PieceRows,
        directories: DirectoryRows,
        applier: _Applier,
    ) -> None:
        self._inodes = inodes
        self._pieces = pieces
        self._directories = directories
        self._applier = applier
        self.by_type: dict[type, Callable[[Any], None]] = {
            fo.NodeMade: self._node_made,
            fo.Linked: self._linked,
            fo.Unlinked: self._unlinked,
            fo.Renamed: self._renamed,
            fo.InodeChanged: self._inode_changed,
            fo.FilePublished: self._file_published,
            fo.PiecesJoined: self._pieces_joined,
            fo.SpillMade: self._spill_made,
            fo.XattrSet: self._xattr_set,
            fo.OrphansFreed: self._orphans_freed,
        }
        self.connect(connection)

    def connect(self, connection: Connection | Shut) -> None:
        """Work through this connection from now on."""
        self._run: Execute = connection.execute

    def _touch(self, directory: int, changed_ns: int) -> None:
        """An entry of it came or went, through a mount: it stays though it is empty."""
        self._directories.touch(directory, changed_ns, keep=True)

    def _node_made(self, it: fo.NodeMade) -> None:
        size = len(it.target)
        times = it.made_ns, it.made_ns, it.made_ns
        content: int | None = None
        if it.target:
            # what S3 shows of a symbolic link is read as any body is
            content = it.id
            self._inodes.insert_content(content, (Extent(size),), size, it.policy)
        home: tuple[Any, ...] = (None, None)
        if it.name.endswith(b"/"):
            self._directories.insert(it.id, it.directory, it.name, it.made_ns, kept=True)
        else:
            home = it.directory, it.name
            self._run(
                "insert into entry values (?, ?, 0, ?, ?, ?, ?, ?, ?, 0, ?)",
                (*home, it.id, it.id, content, size, it.etag, it.made_ns, it.attributes or None),
            )
        self._run(
            "insert into inode values (?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (it.id, size, content, *home, it.mode, it.uid, it.gid, it.rdev, it.target or None, *times),
        )
        self._applier.use_ids(it.id)
        self._applier.watch.name(it.directory, it.name)
        self._touch(it.directory, it.made_ns)

    def _linked(self, it: fo.Linked) -> None:
        self._run(
            "insert into entry select ?, ?, 0, e.inode, ?, e.content, e.size, e.etag, e.modified_ns, e.flags, "
            "e.attributes from inode i join entry e on e.directory=i.directory and e.name=i.name where i.id=?",
            (it.directory, it.name, it.cookie, it.inode),
        )
        self._run("insert into link values (?, ?, ?)", (it.inode, it.directory, it.name))
        self._run("update inode set nlink=nlink+1, changed_ns=? where id=?", (it.changed_ns, it.inode))
        self._applier.use_ids(it.cookie)
        self._applier.watch.name(it.directory, it.name)
        self._applier.watch.node(it.inode)
        self._touch(it.directory, it.changed_ns)

    def _unlinked(self, it: fo.Unlinked) -> None:
        self._remove(it.directory, it.name, it.changed_ns, it.keep)
        self._touch(it.directory, it.changed_ns)

    def _remove(self, directory: int, name: bytes, changed_ns: int, keep: bool) -> None:
        where = (directory, name)
        found = self._run("select child, inode from entry where directory=? and name=?", where).fetchone()
        if found is None:
            return
        child, inode = found
        if child:
            self._directories.remove(child)
            return
        self._applier.change_object(*where)
        self._run("delete from entry where directory=? and name=?", where)
        self._inodes.release(inode, where, changed_ns=changed_ns, keep=keep)

    def _renamed(self, it: fo.Renamed) -> None:
        old, new = (it.directory, it.name), (it.to_directory, it.to_name)
        self._remove(*new, it.changed_ns, it.keep)
        child, inode = self._run("select child, inode from entry where directory=? and name=?", old).fetchone()
        self._run("update entry set directory=?, name=? where directory=? and name=?", (*new, *old))
        if child:
            self._directories.moved(child, it.directory, *new)
        else:
            self._applier.generations.change_object(*old)
            self._inodes.moved(inode, old, new)
        for name in (old, new):
            self._applier.watch.name(*name)
        self._applier.watch.node(child or inode)
        self._run("update inode set changed_ns=? where id=?", (it.changed_ns, child or inode))
        for directory in {it.directory, it.to_directory}:
            self._touch(directory, it.changed_ns)

    def _inode_changed(self, it: fo.InodeChanged) -> None:
        self._adopt(it.inode)
        columns = ("mode", "uid", "gid", "accessed_ns", "modified_ns", "changed_ns")
        values = {name: value for name in columns if (value := getattr(it, name)) is not None}
        changes = ", ".join(f"{name}=?" for name in values)
        self._run(f"update inode set {changes} where id=?", (*values.values(), it.inode))
        self._applier.watch.node(it.inode)

    def _adopt(self, id_: int) -> None:
        """A directory that S3 made gets attributes of its own, and stays when it is empty."""
        self._run(
            "insert or ignore into inode (id, nlink, size, accessed_ns, modified_ns, changed_ns) "
            "select id, 1, 0, changed_ns, changed_ns, changed_ns from directory where id=?",
            (id_,),
        )
        self._run("update directory set kept=1 where id=?", (id_,))

    def _file_published(self, it: fo.FilePublished) -> None:
        whole = self._lay(it.inode, it.size, it.cut, it.contents, it.spill)
        self._run(
            "update inode set size=?, content=?, modified_ns=?, changed_ns=? where id=?",
            (it.size, whole, it.modified_ns, it.changed_ns, it.inode),
        )
        self._applier.watch.body(it.inode)
        for directory, name in self._inodes.names(it.inode):
            self._applier.generations.change_object(directory, name)
            self._run(
                "update entry set size=?, content=?, etag=?, modified_ns=? where directory=? and name=?",
                (it.size, whole, it.etag, it.published_ns, directory, name),
            )
            if it.attributes is not None:
                self._run(
                    "update entry set attributes=? where directory=? and name=?",
                    (it.attributes or None, directory, name),
                )

    def _pieces_joined(self, it: fo.PiecesJoined) -> None:
        (size,) = self._run("select size from inode where id=?", (it.inode,)).fetchone()
        whole = self._lay(it.inode, size, size, (it.content,))
        if whole is None:
            return
        self._run("update inode set content=? where id=?", (whole, it.inode))
        for place in self._inodes.names(it.inode):
            self._applier.generations.change_object(*place)
            # of an older version the place names another inode by now
            where = (whole, *place, it.inode)
            self._run("update entry set content=? where directory=? and name=? and inode=?", where)
            self._run("update version set content=? where directory=? and name=? and id=?", where)

    def _spill_made(self, it: fo.SpillMade) -> None:
        self._run(
            "insert into inode (id, nlink, size, accessed_ns, modified_ns, changed_ns) values (?, 0, 0, ?, ?, ?)",
            (it.id, *(it.made_ns,) * 3),
        )
        self._run("insert into orphan values (?)", (it.id,))
        self._applier.use_ids(it.id)

    def _lay(self, inode: int, size: int, cut: int, contents: Sequence[fo.NewContent], spill: int = 0) -> int | None:
        """What another inode is made of and new contents over one that is cut first; answers the content that is all of
        it then, when one is.
        """
        pieces = self._pieces.lent(spill) if spill else []
        for content in contents:
            self._inodes.insert_content(
                content.id, content.extents, content.length, content.policy, refs=len(content.lays)
            )
            pieces += [Piece(lay.offset, content.id, lay.start, lay.length) for lay in content.lays]
        new_bytes = None if spill else sum(content.length for content in contents)
        return self._pieces.rewrite(inode, size, cut, pieces, new_bytes)

    def _xattr_set(self, it: fo.XattrSet) -> None:
        self._adopt(it.inode)
        if it.value is None:
            self._run("delete from xattr where inode=? and name=?", (it.inode, it.name))
        else:
            self._run("insert or replace into xattr values (?, ?, ?)", (it.inode, it.name, it.value))
        self._run("update inode set changed_ns=? where id=?", (it.changed_ns, it.inode))
        self._applier.watch.node(it.inode)

    def _orphans_freed(self, it: fo.OrphansFreed) -> None:
        for inode in it.inodes:
            self._inodes.drop(inode)
            self._run("delete from orphan where inode=?", (inode,))
