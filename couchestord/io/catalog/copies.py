"""Questions about blobs, and about what has a copy in one."""

from typing import Final, NamedTuple

from couchestord.io.catalog.blobrows import STATE_BEGUN, STATE_CONFIRMED
from couchestord.io.catalog.read import ExtentRow
from couchestord.io.sqlite import Connection, OnError, Questions, Shut

WAITING_INDEX = (
    "create index if not exists extent_waiting on extent (id, length) where segment > 2 and copy_blob is null"
)
"""What `waiting` needs. Made when a bucket is set for the first time: without one it would cost room for nothing."""
ALL: Final = 0
"""Of a blob: in the place of the id of an extent, which no extent has."""
_EXTENT = "x.id, x.start, x.length, x.segment, x.stripe, x.stripe_start"


class BlobRow(NamedTuple):
    id: int
    epoch: int
    state: int
    size: int
    live_bytes: int
    only_bytes: int
    dropped: int


class CopyRow(NamedTuple):
    """Where an extent lies in a blob: its name, where its frames begin, how many bytes they hold."""

    epoch: int
    blob: int
    start: int
    length: int


class CopyReader:
    """Reads through one connection. Synchronous."""

    def __init__(self, connection: Connection | Shut, on_error: OnError | None = None) -> None:
        self.connect(connection, on_error)

    def connect(self, connection: Connection | Shut, on_error: OnError | None = None) -> None:
        """Read through this connection from now on. `on_error`: as for `Questions`."""
        ask = Questions(connection, on_error)
        self._row, self._rows = ask.row, ask.rows

    # -- extents -----------------------------------------------------------------------------------------------------

    def waiting(self, after: int, limit: int) -> list[tuple[int, int]]:
        """(id, length) of extents in stripes that have no copy, of greater ids, in order."""
        return self._rows(
            "select id, length from extent where segment > 2 and copy_blob is null and id > ? order by id limit ?",
            (after, limit),
        )

    def newest_extent(self) -> int:
        """The highest id of an extent; 0: there is none."""
        (newest,) = self._row("select max(id) from extent")
        return newest or 0

    def copy(self, extent: int) -> CopyRow | None:
        """The copy of an extent, None when it has none."""
        row = self._row(
            "select b.epoch, b.id, x.copy_start, x.length from extent x join blob b on b.id=x.copy_blob where x.id=?",
            (extent,),
        )
        return CopyRow(*row) if row else None

    def copies_in_segment(self, segment: int, limit: int) -> list[tuple[ExtentRow, int, int]]:
        """Extents of a segment that have a copy, each with the copy's blob and start."""
        rows = self._rows(
            f"select {_EXTENT}, copy_blob, copy_start from extent x where segment=? and copy_blob is not null limit ?",
            (segment, limit),
        )
        return [(ExtentRow(*row[:6]), row[6], row[7]) for row in rows]

    def has_uncopied(self, segment: int) -> bool:
        """True when an extent of the segment has no copy."""
        return bool(self._row("select 1 from extent where segment=? and copy_blob is null limit 1", (segment,)))

    def extents_in_blob(self, blob: int, after: int, limit: int) -> list[ExtentRow]:
        """Extents with a copy in a blob, of greater ids, in order."""
        rows = self._rows(
            f"select {_EXTENT} from extent x where copy_blob=? and x.id>? order by x.id limit ?", (blob, after, limit)
        )
        return [ExtentRow(*row) for row in rows]

    def extents_count(self, blob: int) -> int:
        """Extents with a copy in a blob."""
        (count,) = self._row("select count(*) from extent where copy_blob=?", (blob,))
        return count or 0

    # -- blobs -------------------------------------------------------------------------------------------------------

    def blob(self, id_: int) -> BlobRow | None:
        row = self._row("select * from blob where id=?", (id_,))
        return BlobRow(*row) if row else None

    def begun_before(self, epoch: int, after: int, limit: int) -> list[BlobRow]:
        """Begun in earlier epochs and not confirmed, of greater ids, in order."""
        rows = self._rows(
            "select * from blob where state=? and epoch<? and id>? order by id limit ?",
            (STATE_BEGUN, epoch, after, limit),
        )
        return [BlobRow(*row) for row in rows]

    def dead(self, limit: int) -> list[BlobRow]:
        """Confirmed ones with nothing in them."""
        rows = self._rows("select * from blob where state = 1 and live_bytes = 0 order by id limit ?", (limit,))
        return [BlobRow(*row) for row in rows]

    def thin(self, limit: int) -> list[BlobRow]:
        """Confirmed ones of whose bytes less than half are in use, the emptiest first."""
        rows = self._rows(
            "select * from blob where state = 1 and live_bytes > 0 and size > 2 * live_bytes "
            "order by 1000 * live_bytes / size limit ?",
            (limit,),
        )
        return [BlobRow(*row) for row in rows]

    def dropped(self, before: int, limit: int) -> list[BlobRow]:
        """Those that were dropped by records before that sequence."""
        rows = self._rows("select * from blob where state = 2 and dropped < ? order by id limit ?", (before, limit))
        return [BlobRow(*row) for row in rows]

    def confirmed(self, after: int, limit: int) -> list[BlobRow]:
        """Confirmed ones of greater ids, in order."""
        rows = self._rows(
            "select * from blob where id>? and state=? order by id limit ?", (after, STATE_CONFIRMED, limit)
        )
        return [BlobRow(*row) for row in rows]

    def totals(self) -> tuple[int, int, int, int]:
        """(blobs, their bytes, bytes of extents in them, of those that lie nowhere else)."""
        count, size, live, only = self._row(
            "select count(*), sum(size), sum(live_bytes), sum(only_bytes) from blob where state=?", (STATE_CONFIRMED,)
        )
        return count, size or 0, live or 0, only or 0

    def dead_bytes(self) -> int:
        """Bytes of blobs, those that wait for their deletion among them, that no extent with a copy there takes."""
        (dead,) = self._row("select sum(size - live_bytes) from blob where state<>?", (STATE_BEGUN,))
        return dead or 0

    def bytes_on_disks(self, page_bytes: int, segments_max: int = -1) -> int:
        """Room that segments with live data, at most so many, take on all disks together; open ones count what lives in
        them.
        """
        (used,) = self._row(
            "select sum(case when stripes_end > 0 then stripes_end * ? * (k+m) else live_bytes * (k+m) / k end) "
            "from (select * from segment where live_bytes > 0 limit ?)",
            (page_bytes, segments_max),
        )
        return used or 0

    def bytes_in_stripes(self) -> int:
        """Live bytes of all segments."""
        (live,) = self._row("select sum(live_bytes) from segment")
        return live or 0
