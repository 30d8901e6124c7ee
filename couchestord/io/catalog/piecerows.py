"""Rows of pieces: what inodes are made of that are not one whole content, and how worn those are that mounts write."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from couchestord.io.catalog.generations import Generations
from couchestord.io.catalog.segments import SegmentRows
from couchestord.io.outcome import Piece
from couchestord.io.sqlite import Connection, Execute, Shut

PIECES_FREE: Final = 1024
"""So many pieces any file may have ..."""
BYTES_PER_PIECE: Final = 32 << 10
"""... and a larger one as many as this goes into it."""
PARTS_MAX: Final = 1024
SPLIT_EXTENTS_MAX: Final = 1 << 17
"""A longer content is not split: its extents are all numbered anew for that, while all writers wait."""
PIECES_DROPPED_MAX: Final = 4096
"""A file of more, that mounts have written, does not go at once with its last name: all writers would wait for it."""
_END: Final = 1 << 62


class Numbers(Protocol):
    """What the applier counts."""

    generations: Generations


@dataclass(slots=True)
class _Wear:
    """A row of `worn` while its file changes."""

    pieces: int
    live: int
    held: int
    is_new: bool = False


class PieceRows:
    """Applies what concerns pieces. Inside the caller's transaction."""

    def __init__(self, connection: Connection, segments: SegmentRows, numbers: Numbers) -> None:
        self._segments = segments
        self._numbers = numbers
        self.connect(connection)

    def connect(self, connection: Connection | Shut) -> None:
        """Work through this connection from now on."""
        self._run: Execute = connection.execute
        self._run_many: Execute = connection.executemany

    def insert(self, inode: int, pieces: Sequence[Piece], size: int) -> int | None:
        """Count the pieces' contents; answers the content that is all of the inode, when one is, which needs no row."""
        for piece in pieces:
            self._run("update content set refs=refs+1 where id=?", (piece.content,))
        if len(pieces) == 1 and pieces[0].length == size:
            whole = pieces[0].content
            if self._length(whole) == size:
                return whole
        self._add(inode, pieces)
        return None

    def lent(self, inode: int) -> list[Piece]:
        """The pieces of an inode for another one, counted for that."""
        size, whole = self._run("select size, content from inode where id=?", (inode,)).fetchone()
        if whole is not None:
            pieces = [Piece(0, whole, 0, size)] if size else []
        else:
            query = "select start, content, content_start, length from piece where inode=? order by start"
            pieces = [Piece(*row) for row in self._run(query, (inode,)).fetchall()]
        for piece in pieces:
            self._run("update content set refs=refs+1 where id=?", (piece.content,))
        return pieces

    def are_many(self, inode: int) -> bool:
        """Whether it has so many that it is not to be dropped at once."""
        query = "select 1 from worn where inode=? and pieces>?"
        return self._run(query, (inode, PIECES_DROPPED_MAX)).fetchone() is not None

    def drop(self, inode: int) -> None:
        """It has none any more. Each content is asked for once."""
        query = "select content, count(*) from piece where inode=? group by content"
        contents = self._run(query, (inode,)).fetchall()
        if contents:
            for content, count in contents:
                self._segments.release_content(content, count)
            self._run("delete from piece where inode=?", (inode,))
            self._run("delete from worn where inode=?", (inode,))

    def rewrite(self, inode: int, size: int, cut: int, pieces: Sequence[Piece], new_bytes: int | None) -> int | None:
        """Cuts an inode to `cut` bytes and lays new pieces, which count already, over what is left. `new_bytes`: of the
        contents that these are of, None when it may have had some of them before. Answers the content that is all of
        the inode, when one is.
        """
        self._numbers.generations.change_file(inode)
        (whole,) = self._run("select content from inode where id=?", (inode,)).fetchone()
        if len(pieces) == 1 and pieces[0] == Piece(0, pieces[0].content, 0, size) and new_bytes == size:
            # of most files, which are written once: nothing is left of what was before
            if whole is None:
                self.drop(inode)
            else:
                self._segments.release_content(whole)
            return pieces[0].content
        if whole is None and not cut:
            self.drop(inode)
            wear = _Wear(0, 0, 0, is_new=True)
        elif whole is None:
            wear = self._wear(inode)
        else:
            length = self._length(whole)
            wear = _Wear(0, length, length, is_new=True)
            if length:
                parts = self._split(whole, length)
                self._add(inode, parts)
                wear.pieces = len(parts)
            else:
                self._segments.release_content(whole)
        wear.held += new_bytes or 0
        self._clear(inode, cut, _END, wear)
        for piece in pieces:
            self._clear(inode, piece.offset, piece.offset + piece.length, wear)
            self._add(inode, [piece])
            wear.pieces += 1
            wear.live += piece.length
        if new_bytes is None:
            wear = replace(self._counted(inode), is_new=wear.is_new)
        joined = self._join(inode, size) if wear.pieces == 1 else None
        if wear.pieces and joined is None:
            bound = max(PIECES_FREE, size // BYTES_PER_PIECE)
            self._run(
                "insert or replace into worn values (?, ?, ?, ?, ?)", (inode, wear.pieces, bound, wear.live, wear.held)
            )
        elif not wear.is_new:
            self._run("delete from worn where inode=?", (inode,))
        return joined

    def _length(self, content: int) -> int:
        (length,) = self._run("select length from content where id=?", (content,)).fetchone()
        return int(length)

    def _add(self, inode: int, pieces: Sequence[Piece]) -> None:
        self._run_many(
            "insert into piece values (?, ?, ?, ?, ?)",
            [(inode, piece.offset, piece.content, piece.content_offset, piece.length) for piece in pieces],
        )

    def _wear(self, inode: int) -> _Wear:
        """Of an inode in pieces: one that no mount has written yet is counted now."""
        row = self._run("select pieces, live, held from worn where inode=?", (inode,)).fetchone()
        return _Wear(*row) if row is not None else self._counted(inode)

    def _counted(self, inode: int) -> _Wear:
        counted = "select count(*), coalesce(sum(length), 0) from piece where inode=?"
        pieces, live = self._run(counted, (inode,)).fetchone()
        held = 0
        if pieces:
            query = "select sum(length) from content where id in (select content from piece where inode=?)"
            (held,) = self._run(query, (inode,)).fetchone()
        return _Wear(pieces, live, held, is_new=True)

    def _split(self, content: int, length: int) -> list[Piece]:
        """A whole content of a file that is to be written over becomes several, of an extent each where these are not
        too many: each goes when nothing is left of it, and is moved by itself. One that others have too stays.
        """
        query = "select refs, extents, policy from content where id=?"
        refs, count, policy = self._run(query, (content,)).fetchone()
        if refs > 1 or not 2 <= count <= SPLIT_EXTENTS_MAX:
            return [Piece(0, content, 0, length)]
        step = -(-count // PARTS_MAX)
        query = "select id, start from extent where id>=? and id<? and (id-?)%?=0 order by id"
        firsts = self._run(query, (content, content + count, content, step)).fetchall()
        ends = [start for _, start in firsts[1:]] + [length]
        parts = []
        for (id_, start), end in zip(firsts, ends, strict=True):
            extents = min(step, content + count - id_)
            self._run("insert or replace into content values (?, 1, ?, ?, ?)", (id_, extents, end - start, policy))
            if start:
                self._run("update extent set start=start-? where id>=? and id<?", (start, id_, id_ + extents))
            parts.append(Piece(start, id_, 0, end - start))
        return parts

    def _clear(self, inode: int, low: int, high: int, wear: _Wear) -> None:
        """Nothing is left of the pieces from `low` to before `high`."""
        # pieces do not overlap: only the last one that begins before `low` can reach into the range
        rows = self._run(
            "select start, content, content_start, length from piece where inode=? and start>=coalesce("
            "(select max(start) from piece where inode=? and start<=?), 0) and start<? order by start",
            (inode, inode, low, high),
        ).fetchall()
        for start, content, content_start, length in rows:
            if start + length <= low:
                continue
            left, right = max(0, low - start), max(0, start + length - high)
            wear.live -= length - left - right
            if left:
                self._run("update piece set length=? where inode=? and start=?", (left, inode, start))
            else:
                self._run("delete from piece where inode=? and start=?", (inode, start))
            if right:
                self._add(inode, [Piece(high, content, content_start + length - right, right)])
            if left and right:
                self._run("update content set refs=refs+1 where id=?", (content,))
                wear.pieces += 1
            elif not left and not right:
                wear.pieces -= 1
                wear.held -= self._release(inode, content)

    def _release(self, inode: int, content: int) -> int:
        """A piece of the content is gone. Answers how many bytes less the inode's pieces hold."""
        freed_bytes = self._segments.release_content(content)
        if freed_bytes:
            return freed_bytes
        others = self._run("select 1 from piece where content=? and inode=? limit 1", (content, inode))
        return 0 if others.fetchone() else self._length(content)

    def _join(self, inode: int, size: int) -> int | None:
        """The content that is all of the inode, when its one piece is: then it needs none."""
        query = "select start, content, content_start, length from piece where inode=?"
        start, content, content_start, length = self._run(query, (inode,)).fetchone()
        if start or content_start or length != size or self._length(content) != size:
            return None
        self._run("delete from piece where inode=?", (inode,))
        return int(content)
