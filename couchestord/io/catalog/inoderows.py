"""Rows of inodes and of what they have: contents, extended attributes, further names."""

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

    # -- names ---------------------------------------------------------------------------------------------------------

    def release(self, inode: int, place: tuple[int, bytes], *, changed_ns: int = 0, keep: bool = False) -> None:
        """It has the name `place` no more, and goes with its last one, unless it is to be kept."""
        nlink, home, name = self._run("select nlink, directory, name from inode where id=?", (inode,)).fetchone()
        self._numbers.watch.node(inode)
        if nlink > 1:
            other = place
            if (home, name) == place:
                other = self._run("select directory, name from link where inode=? limit 1", (inode,)).fetchone()
                self._run("update inode set directory=?, name=? where id=?", (*other, inode))
            self._run("delete from link where inode=? and directory=? and name=?", (inode, *other))
            self._run("update inode set nlink=nlink-1, changed_ns=? where id=?", (changed_ns, inode))
        elif keep:
            self._run(
                "update inode set nlink=0, directory=null, name=null, changed_ns=? where id=?", (changed_ns, inode)
            )
            self._run("insert into orphan values (?)", (inode,))
        else:
            self.drop(inode)

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
        """All of its names: (directory, name)."""
        return self._run(
            "select directory, name from inode where id=? and directory is not null "
            "union all select directory, name from link where inode=?",
            (inode, inode),
        ).fetchall()
