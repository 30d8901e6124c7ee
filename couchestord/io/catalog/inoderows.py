"""Rows of inodes and of what they have: contents, extended attributes, further names.

An inode is held by entries and by versions, each of them a place (directory, name): by several of both where hard links
are and versions are kept. One place is its home, the others are its links, and it goes with the last of them. The home
is an entry, as long as there is one.
"""

from collections.abc import Iterable
from typing import Any, Protocol

from couchestord.errors import InternalError
from couchestord.io.catalog.changes import Watch
from couchestord.io.catalog.generations import Generations
from couchestord.io.catalog.piecerows import PieceRows
from couchestord.io.catalog.segments import SegmentRows
from couchestord.io.outcome import Extent
from couchestord.io.sqlite import Connection, Execute, Shut


class Numbers(Protocol):
    """What the applier counts."""

    sequence: int
    watch: Watch
    generations: Generations

    def use_ids(self, first: int, count: int = 1) -> None: ...


class InodeRows:
    """Applies what concerns inodes. Inside the caller's transaction."""

    def __init__(self, connection: Connection, segments: SegmentRows, pieces: PieceRows, numbers: Numbers) -> None:
        self._segments = segments
        self._pieces = pieces
        self._numbers = numbers
        self.connect(connection)

    def connect(self, connection: Connection | Shut) -> None:
        """Work through this connection from now on."""
        self._run: Execute = connection.execute

    def insert_object(self, id_: int, size: int, content: int | None, directory: int, name: bytes) -> None:
        """That of an object put through S3."""
        self._run(
            "insert into inode (id, nlink, size, content, directory, name) values (?, 1, ?, ?, ?, ?)",
            (id_, size, content, directory, name),
        )

    def insert_content(self, id_: int, extents: Iterable[Extent], length: int, policy: int, *, refs: int = 1) -> None:
        """One that is referred to so often."""
        rows = []
        start = 0
        for number, extent in enumerate(extents):
            stripe = extent.stripe if extent.segment else self._numbers.sequence
            rows.append((id_ + number, start, extent.length, extent.segment, stripe, extent.start))
            start += extent.length
        if start != length:
            raise InternalError(f"the extents of content {id_} hold {start} of {length} bytes")
        self._run("insert into content values (?, ?, ?, ?, ?)", (id_, refs, len(rows), length, policy))
        self._segments.insert_extents(rows)
        self._numbers.use_ids(id_, max(1, len(rows)))

    # -- places --------------------------------------------------------------------------------------------------------

    def release(
        self, inode: int, place: tuple[int, bytes], *, changed_ns: int | None = None, keep: bool = False
    ) -> None:
        """The entry or version at `place` holds it no more: it goes with the last one, unless it is to be kept, or is
        so long that it has to be freed bit by bit.
        """
        query = "select nlink, directory, name, content from inode where id=?"
        nlink, home, name, content = self._run(query, (inode,)).fetchone()
        self._numbers.watch.node(inode)
        if nlink > 1:
            if (home, name) == place:
                any_link = "select directory, name from link where inode=? limit 1"
                other = self._entry_among_links(inode) or self._run(any_link, (inode,)).fetchone()
                self._move_home(inode, place, other)
            self._run("delete from link where inode=? and directory=? and name=?", (inode, *place))
            self._run(
                "update inode set nlink=nlink-1, changed_ns=coalesce(?, changed_ns) where id=?", (changed_ns, inode)
            )
        elif keep or (content is None and self._pieces.are_many(inode)):
            self._run(
                "update inode set nlink=0, directory=null, name=null, changed_ns=? where id=?", (changed_ns, inode)
            )
            self._run("insert into orphan values (?)", (inode,))
        else:
            self.drop(inode)

    def shelve(self, inode: int, place: tuple[int, bytes]) -> None:
        """It is an older version at `place` from now on, where an entry named it."""
        is_home = self._run("select 1 from inode where id=? and directory=? and name=?", (inode, *place)).fetchone()
        if is_home and (other := self._entry_among_links(inode)):
            self._move_home(inode, place, other)

    def restore(self, inode: int, place: tuple[int, bytes]) -> None:
        """An entry at `place` names it again, where it was an older version."""
        home = self._run(
            "select directory, name from inode i where id=? and not exists (select 1 from entry e "
            "where e.directory=i.directory and e.name=i.name and e.inode=i.id)",
            (inode,),
        ).fetchone()
        if home:
            self._move_home(inode, home, place)

    def _entry_among_links(self, inode: int) -> Any:
        """(directory, name) of a link that is an entry; None: there is none."""
        return self._run(
            "select l.directory, l.name from link l join entry e on e.directory=l.directory and e.name=l.name "
            "and e.inode=l.inode where l.inode=? limit 1",
            (inode,),
        ).fetchone()

    def _move_home(self, inode: int, home: tuple[int, bytes], link: tuple[int, bytes]) -> None:
        """The home becomes a link, and the link the home."""
        self._run("update inode set directory=?, name=? where id=?", (*link, inode))
        self._run("update link set directory=?, name=? where inode=? and directory=? and name=?", (*home, inode, *link))

    def drop(self, inode: int) -> None:
        """It goes, and what only it is made of."""
        self._numbers.generations.change_file(inode)
        (content,) = self._run("select content from inode where id=?", (inode,)).fetchone()
        self._run("delete from inode where id=?", (inode,))
        self._run("delete from xattr where inode=?", (inode,))
        if content is not None:
            self._segments.release_content(content)
        else:
            self._pieces.drop(inode)

    def moved(self, inode: int, old: tuple[int, bytes], new: tuple[int, bytes]) -> None:
        """One of its names is another one."""
        found = self._run(
            "update inode set directory=?, name=? where id=? and directory=? and name=?", (*new, inode, *old)
        )
        if not found.rowcount:
            self._run(
                "update link set directory=?, name=? where inode=? and directory=? and name=?", (*new, inode, *old)
            )

    def names(self, inode: int) -> list[tuple[Any, ...]]:
        """(directory, name) of all that hold it, entries and versions."""
        return self._run(
            "select directory, name from inode where id=? and directory is not null "
            "union all select directory, name from link where inode=?",
            (inode, inode),
        ).fetchall()
