"""Rows of inodes and of what they are made of: pieces, contents, extended attributes, further names."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from couchestord.errors import InternalError
from couchestord.io.catalog.changes import Watch
from couchestord.io.catalog.generations import Generations
from couchestord.io.catalog.segments import SegmentRows
from couchestord.io.outcome import Extent, Piece
from couchestord.io.sqlite import Connection, Execute, Shut


class Numbers(Protocol):
    """What the applier counts."""

    sequence: int
    watch: Watch
    generations: Generations

    def use_ids(self, first: int, count: int = 1) -> None: ...


class InodeRows:
    """Applies what concerns inodes. Inside the caller's transaction."""

    def __init__(self, connection: Connection, segments: SegmentRows, numbers: Numbers) -> None:
        self._segments = segments
        self._numbers = numbers
        self.connect(connection)

    def connect(self, connection: Connection | Shut) -> None:
        """Work through this connection from now on."""
        self._run: Execute = connection.execute
        self._run_many: Execute = connection.executemany

    def insert_object(self, id_: int, size: int, content: int | None, directory: int, name: bytes) -> None:
        """That of an object put through S3."""
        self._run(
            "insert into inode (id, nlink, size, content, directory, name) values (?, 1, ?, ?, ?, ?)",
            (id_, size, content, directory, name),
        )

    # -- contents and pieces -----------------------------------------------------------------------------------------

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

    def insert_pieces(self, inode: int, pieces: Sequence[Piece], size: int) -> int | None:
        """Count the pieces' contents; answers the content that is all of the inode, when one is, which needs no row."""
        for piece in pieces:
            self._run("update content set refs=refs+1 where id=?", (piece.content,))
        if len(pieces) == 1 and pieces[0].length == size:
            whole = pieces[0].content
            if self._run("select length from content where id=?", (whole,)).fetchone() == (size,):
                return whole
        self._add_pieces(inode, pieces)
        return None

    def _add_pieces(self, inode: int, pieces: Iterable[Piece]) -> None:
        self._run_many(
            "insert into piece values (?, ?, ?, ?, ?)",
            [(inode, piece.offset, piece.content, piece.content_offset, piece.length) for piece in pieces],
        )

    def rewrite(self, inode: int, size: int, cut: int, pieces: Sequence[Piece]) -> int | None:
        """Cuts an inode to `cut` bytes and lays new pieces, which count already, over what is left. Answers the content
        that is all of it, when one is.
        """
        self._numbers.generations.change_file(inode)
        (whole,) = self._run("select content from inode where id=?", (inode,)).fetchone()
        if whole is not None:
            (length,) = self._run("select length from content where id=?", (whole,)).fetchone()
            if length:
                self._add_pieces(inode, [Piece(0, whole, 0, length)])
            else:
                self._segments.release_content(whole)
        self._clear(inode, cut, None)
        for piece in pieces:
            self._clear(inode, piece.offset, piece.offset + piece.length)
            self._add_pieces(inode, [piece])
        return self._join(inode, size)

    def _clear(self, inode: int, low: int, high: int | None) -> None:
        """Nothing is left of the pieces from `low` to before `high`, or of all after it."""
        end = 1 << 62 if high is None else high
        # pieces do not overlap: only the last one that begins before `low` can reach into the range
        rows = self._run(
            "select start, content, content_start, length from piece where inode=? and start>=coalesce("
            "(select max(start) from piece where inode=? and start<=?), 0) and start<? order by start",
            (inode, inode, low, end),
        ).fetchall()
        for start, content, content_start, length in rows:
            if start + length <= low:
                continue
            left, right = max(0, low - start), max(0, start + length - end)
            if left:
                self._run("update piece set length=? where inode=? and start=?", (left, inode, start))
            else:
                self._run("delete from piece where inode=? and start=?", (inode, start))
            if right:
                self._add_pieces(inode, [Piece(end, content, content_start + length - right, right)])
            if left and right:
                self._run("update content set refs=refs+1 where id=?", (content,))
            elif not left and not right:
                self._segments.release_content(content)

    def _join(self, inode: int, size: int) -> int | None:
        """The content that is all of the inode, when one is: then it needs no pieces."""
        rows = self._run("select start, content, content_start, length from piece where inode=? limit 2", (inode,))
        found = rows.fetchall()
        if len(found) != 1:
            return None
        start, content, content_start, length = found[0]
        if start or content_start or length != size:
            return None
        if self._run("select length from content where id=?", (content,)).fetchone() != (size,):
            return None
        self._run("delete from piece where inode=?", (inode,))
        return int(content)

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
            return
        for (piece_content,) in self._run("select content from piece where inode=?", (inode,)).fetchall():
            self._segments.release_content(piece_content)
        self._run("delete from piece where inode=?", (inode,))

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
