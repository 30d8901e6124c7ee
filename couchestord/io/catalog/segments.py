"""Rows of contents, extents and segments, kept in step: a segment's live bytes are the lengths of the extents in it."""

import struct
from collections.abc import Sequence

from couchestord.errors import InternalError
from couchestord.io import mutations as mu
from couchestord.io.catalog.blobrows import BlobRows
from couchestord.io.sqlite import Connection, Execute, Shut

STATE_OPEN = 0
STATE_SEALED = 1


def pack_disks(disks: Sequence[int]) -> bytes:
    """Disk index per shard, -1 for none."""
    return struct.pack(f"<{len(disks)}h", *disks)


def unpack_disks(packed: bytes) -> tuple[int, ...]:
    """As `pack_disks` took them."""
    return struct.unpack(f"<{len(packed) // 2}h", packed)


class SegmentRows:
    """Applies what concerns segments. Inside the caller's transaction."""

    def __init__(self, connection: Connection, blobs: BlobRows) -> None:
        self._blobs = blobs
        self.connect(connection)

    def connect(self, connection: Connection | Shut) -> None:
        """Work through this connection from now on."""
        self._run: Execute = connection.execute
        self._run_many: Execute = connection.executemany

    def made(self, it: mu.SegmentMade) -> None:
        missing = sum(1 << index for index, disk in enumerate(it.disks) if disk < 0)
        self._run(
            "insert into segment values (?, ?, ?, ?, ?, ?, ?, ?, 0, -1, ?)",
            (it.id, it.epoch, STATE_OPEN, it.k, it.m, it.stripe_bytes, pack_disks(it.disks), missing, it.policy),
        )

    def sealed(self, it: mu.SegmentSealed) -> None:
        self._run(
            "update segment set state=?, stripes_end=?, missing=missing|? where id=?",
            (STATE_SEALED, it.stripes_end, it.missing, it.id),
        )

    def dropped(self, it: mu.SegmentDropped) -> None:
        self._run("delete from segment where id=?", (it.id,))

    def shards_lost(self, it: mu.ShardsLost) -> None:
        self._run("update segment set missing=missing|? where id=?", (it.missing, it.id))

    def shard_placed(self, it: mu.ShardPlaced) -> None:
        (packed,) = self._run("select disks from segment where id=?", (it.id,)).fetchone()
        disks = list(unpack_disks(packed))
        disks[it.index] = it.disk
        self._run(
            "update segment set disks=?, missing=missing&~? where id=?", (pack_disks(disks), 1 << it.index, it.id)
        )

    def extents_moved(self, it: mu.ExtentsMoved) -> None:
        for move in it.moves:
            length, segment, stripe = self._run(
                "select length, segment, stripe from extent where id=?", (move.extent,)
            ).fetchone()
            self._run(
                "update extent set segment=?, stripe=?, stripe_start=? where id=?",
                (move.segment, move.stripe, move.start, move.extent),
            )
            self._add_live(segment, stripe, -length)
            self._add_live(move.segment, move.stripe, length)

    def insert_extents(self, rows: Sequence[tuple[int, int, int, int, int, int]]) -> None:
        """Rows of (id, start, length, segment, stripe, stripe_start)."""
        statement = "insert into extent (id, start, length, segment, stripe, stripe_start) values (?, ?, ?, ?, ?, ?)"
        if len(rows) == 1:  # a small object's, for which the other call costs more
            self._run(statement, rows[0])
        else:
            self._run_many(statement, rows)
        for id_, _, length, segment, stripe, start in rows:
            self._add_live(segment, stripe, length)
            if segment == mu.IN_BLOB:
                self._blobs.add_copy(id_, stripe, start, length)

    def release_content(self, content: int, count: int = 1) -> int:
        """So many references less; with the last one the content and its extents go. Answers how many bytes it had that
        is gone, else 0.
        """
        row = self._run("select refs, extents, length from content where id=?", (content,)).fetchone()
        refs, extents, freed_bytes = row
        if refs > count:
            self._run("update content set refs=refs-? where id=?", (count, content))
            return 0
        self._run("delete from content where id=?", (content,))
        ids = (content, content + extents)
        for segment, blob, length in self._run(
            "select segment, copy_blob, sum(length) from extent where id>=? and id<? group by segment, copy_blob", ids
        ).fetchall():
            # who lies in a blob only, has its copy there
            self._add_live(segment, blob or 0, -length)
            if blob is not None:
                self._blobs.add_live(blob, -length)
        self._run("delete from extent where id>=? and id<?", ids)
        return int(freed_bytes)

    def _add_live(self, segment: int, stripe: int, length: int) -> None:
        if segment == mu.IN_BLOB:
            self._blobs.add_only(stripe, length)
        if segment <= mu.LOST:
            return
        changed = self._run("update segment set live_bytes=live_bytes+? where id=?", (length, segment)).rowcount
        if changed != 1:
            raise InternalError(f"an extent lies in segment {segment}, which does not exist")
