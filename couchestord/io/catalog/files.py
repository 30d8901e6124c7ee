"""Questions to the catalog about files and directories, by number and by name in a directory."""

import stat
from collections.abc import Collection
from typing import Any, NamedTuple

from couchestord.errors import StaleInode
from couchestord.io.catalog.read import PieceRow
from couchestord.io.sqlite import Connection, OnError, Questions, Shut


class NodeRow(NamedTuple):
    """A file or directory. None in mode, uid, gid, times: as S3 made it, see `attributes` and `published_ns`."""

    id: int
    is_directory: bool
    nlink: int
    size: int
    content: int | None
    mode: int | None
    uid: int | None
    gid: int | None
    rdev: int | None
    target: bytes | None
    accessed_ns: int | None
    modified_ns: int | None
    changed_ns: int | None
    published_ns: int
    """When its bytes were published, or when an entry of the directory came or went."""
    attributes: bytes | None
    """What S3 keeps with the object."""


class NamedRow(NamedTuple):
    """An entry of a directory: the name that the tree has (one of a directory ends in a slash), and what it names."""

    name: bytes
    cookie: int
    node: NodeRow


class ObjectRow(NamedTuple):
    """What S3 shows of a file beside its bytes."""

    etag: bytes
    attributes: bytes | None


class BucketOfFiles(NamedTuple):
    name: str
    versioning: str
    policy: int


class WornRow(NamedTuple):
    """A file that is made of pieces since a mount wrote it."""

    inode: int
    pieces: int
    bound: int
    """So many it may have."""
    live: int
    """Bytes of the pieces."""
    held: int
    """Bytes of the contents that they are of, which stay as long as any of them is wanted."""

    @property
    def is_overrun(self) -> bool:
        """So worn that whoever writes it should wait."""
        return self.pieces > 2 * self.bound or self.held > 4 * self.live + _OVERRUN_BYTES


_OVERRUN_BYTES = 64 << 20
_WORN = "inode, pieces, bound, live, held"
_NODE = (
    "d.children, i.nlink, i.size, i.content, i.mode, i.uid, i.gid, i.rdev, i.target, "
    "i.accessed_ns, i.modified_ns, i.changed_ns"
)
_NAMED = (
    f"e.name, e.cookie, e.child, e.inode, {_NODE}, coalesce(e.modified_ns, d.changed_ns), e.attributes "
    # a directory's inode has its number; one that no mount has touched has none
    "from entry e left join inode i on i.id=case when e.child<>0 then e.child else e.inode end "
    "left join directory d on d.id=e.child and e.child<>0"
)
_TYPE_BITS = 0o170000
_DIRECTORY_LINKS = 2
"""Its name and `.`; each directory in it has one more, `..`."""


class FileReader:
    """Reads through one connection. Synchronous."""

    def __init__(self, connection: Connection | Shut, on_error: OnError | None = None) -> None:
        self.connect(connection, on_error)

    def connect(self, connection: Connection | Shut, on_error: OnError | None = None) -> None:
        """Read through this connection from now on. `on_error`: as for `Questions`."""
        ask = Questions(connection, on_error)
        self._row, self._rows = ask.row, ask.rows

    def named(self, directory: int, names: tuple[bytes, ...]) -> list[NamedRow]:
        """Those of the entries of these names that are there, in no order."""
        marks = ", ".join("?" * len(names))
        rows = self._rows(f"select {_NAMED} where e.directory=? and e.name in ({marks})", (directory, *names))
        return [_named(row) for row in rows]

    def of_cookie(self, directory: int, cookie: int) -> list[NamedRow]:
        """The entry of that number, if it is there. Reads the whole directory."""
        rows = self._rows(f"select {_NAMED} where e.directory=? and e.cookie=?", (directory, cookie))
        return [_named(row) for row in rows]

    def entries(self, directory: int, after: bytes | None, limit: int) -> list[tuple[NamedRow, bool]]:
        """Entries of a directory in order of names, those after that one, and whether there is a directory beside an
        object of the same name.
        """
        rows = self._rows(
            f"select exists (select 1 from entry t where t.directory=e.directory and e.child=0 "
            f"and t.name=cast(e.name || '/' as blob)), {_NAMED} where e.directory=? and e.name>=? "
            "order by e.name limit ?",
            (directory, b"" if after is None else after + b"\0", limit),
        )
        return [(_named(row), bool(has_twin)) for has_twin, *row in rows]

    def node(self, id_: int) -> NodeRow | None:
        """The file or directory of that number, one without a name that was not freed yet as well."""
        row = self._row(
            f"select {_NODE}, coalesce(e.modified_ns, d.changed_ns, i.changed_ns, 0), e.attributes from inode i "
            "left join directory d on d.id=i.id left join entry e on e.directory=i.directory and e.name=i.name "
            "where i.id=?",
            (id_,),
        )
        if row is None:
            found = self._row("select children, changed_ns from directory where id=?", (id_,))
            if found is None:
                return None
            row = (found[0], *(None,) * 11, found[1], None)
        children, nlink, *known = row
        return _node(id_, children, nlink, known)

    def object(self, id_: int) -> ObjectRow | None:
        """The object that a file is; None for what is no plain file, or has no name."""
        row = self._row(
            "select e.etag, e.attributes from inode i join entry e on e.directory=i.directory and e.name=i.name and "
            f"e.inode=i.id where i.id=? and (i.mode is null or i.mode & {_TYPE_BITS} = {stat.S_IFREG})",
            (id_,),
        )
        return ObjectRow(*row) if row else None

    def directory(self, id_: int) -> tuple[int, bytes] | None:
        """(directory that it lies in, name) of a directory; (0, b"") for the root of a bucket."""
        found: tuple[int, bytes] | None = self._row("select parent, name from directory where id=?", (id_,))
        return found

    def bucket(self, root: int) -> BucketOfFiles | None:
        """The bucket whose root that directory is."""
        row = self._row("select name, versioning, policy from bucket where root=?", (root,))
        return BucketOfFiles(*row) if row else None

    def path_up(self, directory: int) -> list[int]:
        """A directory and those that it lies in, the root of its bucket last. Raises StaleInode."""
        path = [directory]
        while found := self.directory(path[-1]):
            if not found[0]:
                return path
            path.append(found[0])
        raise StaleInode(f"directory {path[-1]} is gone")

    def place(self, inode: int) -> tuple[int, bytes] | None:
        """(directory, name) of an entry that names a file; of a version that it is, when none does."""
        found: tuple[int, bytes] | None = self._row(
            "select directory, name from inode where id=? and directory is not null", (inode,)
        )
        return found

    def names(self, inode: int) -> list[tuple[int, bytes]]:
        """(directory, name) of all entries that name a file, and of versions that it is."""
        return self._rows(
            "select directory, name from inode where id=? and directory is not null "
            "union all select directory, name from link where inode=?",
            (inode, inode),
        )

    def is_empty(self, directory: int) -> bool:
        """Whether a directory holds nothing at all, no version either."""
        return not any(
            self._row(f"select 1 from {table} where directory=? limit 1", (directory,))
            for table in ("entry", "version")
        )

    def xattr(self, inode: int, name: bytes) -> bytes | None:
        """The value of an extended attribute, None when there is none."""
        row = self._row("select value from xattr where inode=? and name=?", (inode, name))
        return row[0] if row else None

    def xattrs(self, inode: int) -> list[tuple[bytes, int]]:
        """Names and lengths of the extended attributes."""
        return self._rows("select name, length(value) from xattr where inode=? order by name", (inode,))

    def orphans(self, after: int, limit: int) -> list[int]:
        """Files without a name that were not freed yet, of greater numbers, in order."""
        rows = self._rows("select inode from orphan where inode>? order by inode limit ?", (after, limit))
        return [id_ for (id_,) in rows]

    # -- pieces --------------------------------------------------------------------------------------------------------

    def worn(self, inode: int) -> WornRow | None:
        """None: it is one whole content, or no mount has written it."""
        row = self._row(f"select {_WORN} from worn where inode=?", (inode,))
        return WornRow(*row) if row else None

    def start_of_last(self, inode: int, count: int) -> int:
        """Where the last so many pieces of a file begin; 0: it has no more."""
        query = "select start from piece where inode=? order by start desc limit 1 offset ?"
        row = self._row(query, (inode, count - 1))
        return row[0] if row else 0

    def crowded(self, limit: int) -> list[WornRow]:
        """Files of more pieces than they may have, those that are farthest beyond that first."""
        rows = self._rows(
            f"select {_WORN} from worn where pieces > bound order by 1000 * pieces / bound desc limit ?", (limit,)
        )
        return [WornRow(*row) for row in rows]

    def loose(self, limit: int) -> list[WornRow]:
        """Files that hold a third more bytes than they have, and more, those that hold the most first."""
        rows = self._rows(
            f"select {_WORN} from worn where 3 * held > 4 * live order by 1000 * held / live desc limit ?", (limit,)
        )
        return [WornRow(*row) for row in rows]

    def references(self, contents: Collection[int]) -> dict[int, int]:
        """Pieces and others that refer to each of these contents, at most some hundred."""
        marks = ", ".join("?" * len(contents))
        return dict(self._rows(f"select id, refs from content where id in ({marks})", tuple(contents)))

    def loose_contents(self, contents: Collection[int], percent: int) -> list[int]:
        """Those of these contents of whose bytes no more than that are in pieces, each counted as often as it is, and
        that nothing else refers to. Reads all pieces of all of them.
        """
        marks = ", ".join("?" * len(contents))
        rows = self._rows(
            f"select c.id from content c join piece p on p.content=c.id where c.id in ({marks}) "
            "group by c.id having count(*)=c.refs and 100*sum(p.length)<=?*c.length order by c.id",
            (*contents, percent),
        )
        return [id_ for (id_,) in rows]

    def pieces_of(self, content: int, limit: int) -> list[tuple[int, PieceRow]]:
        """Pieces of a content, each behind its inode, in order."""
        rows = self._rows(
            "select inode, start, content, content_start, length from piece where content=? order by inode, start "
            "limit ?",
            (content, limit),
        )
        return [(inode, PieceRow(*row)) for inode, *row in rows]


def _named(row: Any) -> NamedRow:
    name, cookie, child, inode, children, nlink, *known = row
    return NamedRow(name, cookie, _node(child or inode, children, nlink, known))


def _node(id_: int, children: int | None, nlink: int | None, known: list[Any]) -> NodeRow:
    if children is None:
        return NodeRow._make((id_, False, nlink, *known))
    _, _, *others = known
    return NodeRow._make((id_, True, _DIRECTORY_LINKS + children, 0, None, *others))
