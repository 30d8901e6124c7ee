"""Questions to the catalog. The writer's connection sees the open transaction, a reader's what is committed."""

from typing import NamedTuple

from couchestord.io.catalog.generations import Generations
from couchestord.io.catalog.kept import KeptObjects
from couchestord.io.catalog.segments import pack_disks, unpack_disks
from couchestord.io.catalog.tree import TreeReader
from couchestord.io.keys import split_key
from couchestord.io.mutations import LOST
from couchestord.io.sqlite import Connection, OnError, Questions, Shut

PATHS_CACHED_MAX = 65_536
NAMES_CACHED_MAX = 4096
SEGMENTS_CACHED_MAX = 4096
ATTRIBUTES_KEPT_BYTES_MAX = 4096
"""An object that has more of them, S3 takes 32 KiB, is looked up each time: thousands of such are no small table."""


class BucketRow(NamedTuple):
    name: str
    root: int
    owner: str
    created_ns: int
    versioning: str
    policy: int = 0


class ExtentRow(NamedTuple):
    """`start` within its content; (segment, stripe, stripe_start) its place; segment 0: in the journal record
    `stripe`.
    """

    id: int
    start: int
    length: int
    segment: int
    stripe: int
    stripe_start: int


class EntryRow(NamedTuple):
    """A live object. `content` None: its inode is made of pieces."""

    inode: int
    content: int | None
    size: int
    etag: bytes
    modified_ns: int
    flags: int
    attributes: bytes | None
    extent: ExtentRow | None = None
    """The first of its content, when it was asked for and there is one."""


class PieceRow(NamedTuple):
    start: int
    content: int
    content_start: int
    length: int


class SegmentRow(NamedTuple):
    id: int
    epoch: int
    state: int
    k: int
    m: int
    stripe_bytes: int
    disks: tuple[int, ...]
    missing: int
    live_bytes: int
    stripes_end: int
    policy: int = 0


class PlacementRow(NamedTuple):
    disks: tuple[int, ...]
    missing: int
    m: int
    policy: int
    segments_count: int


_FOUND = (
    "select e.inode, e.content, e.size, e.etag, e.modified_ns, e.flags, e.attributes, "
    "x.id, x.start, x.length, x.segment, x.stripe, x.stripe_start "
    # the ids of a content's extents begin with its own
    "from entry e left join extent x on x.id=e.content where e.directory=? and e.name=? and e.child=0"
)
_EXTENT = "id, start, length, segment, stripe, stripe_start"
_BUCKET = "name, root, owner, created_ns, versioning, policy"


class CatalogReader(TreeReader):
    """Reads through one connection. Synchronous: a row costs about 7 us, a page of a listing under a millisecond.

    Keeps look-ups of buckets, directories, objects and segments as long as `generations` says; without it, nothing may
    change under the reader.
    """

    def __init__(
        self, connection: Connection | Shut, generations: Generations | None = None, on_error: OnError | None = None
    ) -> None:
        self._now = generations or Generations()
        self._kept_tree = self._kept_names = self._kept_segments = 0
        self._buckets: dict[str, BucketRow] = {}
        self._paths: dict[tuple[int, bytes], int] = {}
        self._layouts: dict[int, SegmentRow] = {}
        self._objects: KeptObjects[EntryRow] = KeptObjects(self._now)
        self.connect(connection, on_error)

    def connect(self, connection: Connection | Shut, on_error: OnError | None = None) -> None:
        """Read through this connection from now on. `on_error`: as for `Questions`."""
        ask = Questions(connection, on_error)
        self._row, self._rows, self._each = ask.row, ask.rows, ask.each
        self.forget()

    def forget(self) -> None:
        """Drop what was kept: after a rollback, which may have taken it with it."""
        self._buckets.clear()
        self._paths.clear()
        self._layouts.clear()
        self._objects.clear()

    # -- buckets and the tree --------------------------------------------------------------------------------------

    def bucket(self, name: str) -> BucketRow | None:
        if self._kept_names != self._now.names or len(self._buckets) > NAMES_CACHED_MAX:
            self._buckets.clear()
            self._kept_names = self._now.names
        found = self._buckets.get(name)
        if found is None:
            row = self._row(f"select {_BUCKET} from bucket where name=?", (name,))
            if row is not None:
                found = self._buckets[name] = BucketRow(*row)
        return found

    def buckets(self) -> list[BucketRow]:
        return [BucketRow(*row) for row in self._rows(f"select {_BUCKET} from bucket order by name")]

    def directory(self, root: int, parts: tuple[bytes, ...]) -> int | None:
        """Id of the directory at that path, None when there is none."""
        if not parts:
            return root
        if self._kept_tree != self._now.tree or len(self._paths) > PATHS_CACHED_MAX:
            self._paths.clear()
            self._kept_tree = self._now.tree
        path = b"".join(parts)  # many short parts take thirty times as much
        found = self._paths.get((root, path))
        if found is not None:
            return found
        at = root
        for part in parts:
            row = self._row("select child from entry where directory=? and name=?", (at, part))
            if row is None:
                return None
            at = row[0]
        self._paths[root, path] = at
        return at

    def child(self, directory: int, name: bytes) -> int | None:
        """Id of the directory of that name (it ends in a slash) in a directory."""
        row = self._row("select child from entry where directory=? and name=?", (directory, name))
        return row[0] if row else None

    def entry(self, directory: int, name: bytes) -> EntryRow | None:
        """The live object of that name, with the first extent of its content: cheaper than asking twice."""
        place = (directory, name)
        return self._objects.get(place) or self._objects.look_up(place, self._object)

    def _object(self, place: tuple[int, bytes]) -> tuple[EntryRow, int | None] | None:
        found = self._row(_FOUND, place)
        if found is None:
            return None
        *entry, id_, start, length, segment, stripe, stripe_start = found
        extent = None if id_ is None else ExtentRow(id_, start, length, segment, stripe, stripe_start)
        row = EntryRow._make((*entry, extent))
        return row, None if len(row.attributes or b"") > ATTRIBUTES_KEPT_BYTES_MAX else id_ or 0

    def live(self, root: int, key: bytes) -> EntryRow | None:
        """The live object of that key, None when there is none."""
        parts, name = split_key(key)
        directory = self.directory(root, parts)
        return None if directory is None else self.entry(directory, name)

    def version(self, directory: int, name: bytes, id_: int) -> EntryRow | None:
        """The noncurrent version or marker of that id."""
        row = self._row(
            "select id, content, size, etag, modified_ns, flags, attributes from version where "
            "directory=? and name=? and id=?",
            (directory, name, id_),
        )
        return EntryRow(*row) if row else None

    def versions(self, directory: int, name: bytes) -> list[EntryRow]:
        """Noncurrent versions and markers of a name, newest first."""
        rows = self._rows(
            "select id, content, size, etag, modified_ns, flags, attributes from version where directory=? and name=? "
            "order by id desc",
            (directory, name),
        )
        return [EntryRow(*row) for row in rows]

    def has_keys(self, root: int) -> bool:
        """True when a bucket's root holds an entry or a version."""
        for table in ("entry", "version"):
            if self._row(f"select 1 from {table} where directory=? limit 1", (root,)):
                return True
        return False

    # -- contents ---------------------------------------------------------------------------------------------------

    def pieces(self, inode: int, first: int, end: int, limit: int = -1) -> list[PieceRow]:
        """The pieces of an inode that may hold bytes from `first` to before `end`, in order; at most `limit`."""
        query = (
            "select start, content, content_start, length from piece where inode=? and start>=coalesce("
            "(select max(start) from piece where inode=? and start<=?), 0) and start<? order by start limit ?"
        )
        return [PieceRow(*row) for row in self._rows(query, (inode, inode, first, end, limit))]

    def extents(self, content: int, first: int, end: int, limit: int = -1) -> list[ExtentRow]:
        """The extents of a content that hold its bytes from `first` to before `end`, in order; at most `limit`."""
        found: list[ExtentRow] = []
        if first >= end:
            return found
        if not first:
            rows = self._each(f"select {_EXTENT} from extent where id>=? order by id", (content,))
        else:
            (count,) = self._row("select extents from content where id=?", (content,)) or (0,)
            rows = self._each(
                f"select {_EXTENT} from extent where id>=? and id<? and start+length>? order by id",
                (content, content + count, first),
            )
        for row in rows:
            extent = ExtentRow(*row)
            found.append(extent)
            if extent.start + extent.length >= end or len(found) == limit:
                break
        return found

    def extent(self, id_: int) -> ExtentRow | None:
        return next((ExtentRow(*row) for row in self._rows(f"select {_EXTENT} from extent where id=?", (id_,))), None)

    def extents_in_journal(self, after_sequence: int, limit: int) -> list[ExtentRow]:
        """Extents whose bytes still lie in journal records after that sequence, oldest first."""
        rows = self._rows(
            f"select {_EXTENT} from extent where segment=0 and stripe>? order by stripe limit ?",
            (after_sequence, limit),
        )
        return [ExtentRow(*row) for row in rows]

    def extents_to_destage(self, after: int, limit: int) -> list[tuple[int, ExtentRow]]:
        """Extents whose bytes still lie in the journal, in records after that one, oldest first, each behind the policy
        of its content.
        """
        # the ids of a content's extents begin with its own: the content that comes last before an extent is its
        rows = self._rows(
            "select (select policy from content where content.id<=extent.id order by content.id desc limit 1), "
            f"{_EXTENT} from extent where segment=0 and stripe>? order by stripe limit ?",
            (after, limit),
        )
        return [(policy, ExtentRow(*row)) for policy, *row in rows]

    def has_lost(self) -> bool:
        """True when the bytes of an extent are nowhere."""
        return bool(self._rows(f"select 1 from extent where segment={LOST} limit 1", ()))

    def extents_in_segment(self, segment: int, after_stripe: int, limit: int) -> list[ExtentRow]:
        """Extents that begin in stripes of a segment after that one, in order of stripes."""
        rows = self._rows(
            f"select {_EXTENT} from extent where segment=? and stripe>? order by stripe limit ?",
            (segment, after_stripe, limit),
        )
        return [ExtentRow(*row) for row in rows]

    def extents_up_to(self, segment: int, stripe: int, limit: int) -> list[ExtentRow]:
        """Extents that begin in that stripe of a segment or before, the last first."""
        rows = self._rows(
            f"select {_EXTENT} from extent where segment=? and stripe<=? order by stripe desc limit ?",
            (segment, stripe, limit),
        )
        return [ExtentRow(*row) for row in rows]

    # -- segments ---------------------------------------------------------------------------------------------------

    def segment(self, id_: int) -> SegmentRow | None:
        return next((_segment(row) for row in self._rows("select * from segment where id=?", (id_,))), None)

    def layout(self, id_: int) -> SegmentRow | None:
        """The segment as far as reading from it goes: how many of its bytes are live may have changed."""
        if self._kept_segments != self._now.segments or len(self._layouts) > SEGMENTS_CACHED_MAX:
            self._layouts.clear()
            self._kept_segments = self._now.segments
        found = self._layouts.get(id_)
        if found is None:
            found = self.segment(id_)
            if found is not None:
                self._layouts[id_] = found
        return found

    def segments(self, after: int = 0, limit: int = -1) -> list[SegmentRow]:
        """Segments of greater ids, in order; with -1 all of them, which may be many."""
        rows = self._rows("select * from segment where id>? order by id limit ?", (after, limit))
        return [_segment(row) for row in rows]

    def segments_open(self) -> list[SegmentRow]:
        return [_segment(row) for row in self._rows("select * from segment where state = 0")]

    def segments_dead(self, limit: int) -> list[SegmentRow]:
        """Sealed segments without live bytes."""
        query = "select * from segment where state = 1 and live_bytes = 0 limit ?"
        return [_segment(row) for row in self._rows(query, (limit,))]

    def segments_thin(self, bytes_per_page: int, limit: int) -> list[SegmentRow]:
        """Sealed segments with some live bytes, fewer than so many to a page of their data shards, the emptiest first.
        Those of unknown length (`stripes_end` -1) come before all others.
        """
        rows = self._rows(
            "select * from segment where state = 1 and live_bytes > 0 and live_bytes / (stripes_end * k) < ? "
            "order by live_bytes / (stripes_end * k) limit ?",
            (bytes_per_page, limit),
        )
        return [_segment(row) for row in rows]

    def extents_count(self, segment: int) -> int:
        """How many extents lie in a segment."""
        count: int = self._row("select count(*) from extent where segment=?", (segment,))[0]
        return count

    def segment_totals(self) -> tuple[int, int, int]:
        """(segments, open ones, live bytes in all of them)."""
        count, open_count, live_bytes = self._row(
            "select count(*), coalesce(sum(state = 0), 0), coalesce(sum(live_bytes), 0) from segment"
        )
        return count, open_count, live_bytes

    def placements(self) -> list[PlacementRow]:
        """Which disks and missing shards there are among the segments, and how many have them."""
        rows = self._rows("select disks, missing, m, policy, count(*) from segment group by disks, missing, m, policy")
        return [PlacementRow(unpack_disks(disks), *row) for disks, *row in rows]

    def segments_placed(self, place: PlacementRow, limit: int) -> list[SegmentRow]:
        """Segments on these disks that lack these shards, the oldest first."""
        rows = self._rows(
            "select * from segment where disks=? and missing=? and m=? and policy=? order by id limit ?",
            (pack_disks(place.disks), place.missing, place.m, place.policy, limit),
        )
        return [_segment(row) for row in rows]

    def geometries(self) -> list[tuple[int, int]]:
        """k and m of every policy, and of the segments that were written under older forms of one."""
        return list(self._rows("select k, m from policy union select k, m from segment"))


def _segment(row: tuple[object, ...]) -> SegmentRow:
    values = list(row)
    values[6] = unpack_disks(values[6])  # type: ignore[arg-type]
    return SegmentRow(*values)  # type: ignore[arg-type]
