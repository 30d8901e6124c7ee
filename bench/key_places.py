"""Where the place of an object's bytes is kept: in the entry, in both entry and extent, or in the extent alone.

Run by `python -m bench.key_tree --places`; see there for what the figures are, and
docs/adr/0002-entry-names-its-content.md for what follows from them.
"""

import random
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

from bench.key_database import KEYS_PER_DIRECTORY, Database, bulk_key, disk_reads_count, median_us, row_of

GROUP_MOVES = 256
SAMPLES = 15
FILE_OLD, FILE_NEW = 1, 2

PLACE = "file integer not null, position integer not null, stored integer not null, codec integer not null"
ENTRY = """
create table entry(directory integer, name blob, child integer not null, size integer, etag blob, modified integer,
extent integer, {place} primary key(directory, name)) without rowid;
"""
EXTENT = f"create table extent(id integer primary key, {PLACE});"
INDEX = "create index extent_place on extent(file, position);"

SQL_GET_INLINE = (
    "select size, etag, modified, extent, file, position, stored, codec from entry where directory=? and name=?"
)
SQL_GET_ENTRY = "select size, etag, modified, extent from entry where directory=? and name=?"
SQL_GET_EXTENT = "select file, position, stored, codec from extent where id=?"
SQL_GET_JOINED = """
select e.size, e.etag, e.modified, x.id, x.file, x.position, x.stored, x.codec
from entry e join extent x on x.id=e.extent where e.directory=? and e.name=?
"""
SQL_MOVE_ENTRY = "update entry set file=?, position=? where directory=? and name=? and file=? and position=?"
SQL_MOVE_EXTENT = "update extent set file=?, position=? where id=? and file=? and position=?"


class Catalog(Database):
    """Entries and extents. Extent ids count up in the order of writing, names come in random order."""

    def __init__(self, path: Path, *, in_entry: bool, in_extent: bool, index: bool, order: list[int]) -> None:
        schema = (
            ENTRY.format(place=PLACE + "," if in_entry else "")
            + (EXTENT if in_extent else "")
            + (INDEX if index else "")
        )
        super().__init__(path, schema)
        self._in_entry = in_entry
        self._in_extent = in_extent
        self._order = order
        self.load(self._insert, range(len(order)))

    def name_of(self, extent: int) -> tuple[int, bytes]:
        """Directory id and name of the object that was written as number `extent`."""
        index = self._order[extent]
        return 2 + index // KEYS_PER_DIRECTORY, bulk_key(index).rpartition(b"/")[2]

    def _insert(self, extent: int) -> None:
        place = (FILE_OLD, extent * 4096, 4096, 0)
        row = (*self.name_of(extent), 0, *row_of(extent), *(place if self._in_entry else ()))
        self.sql.execute(f"insert into entry values({','.join('?' * len(row))})", row)
        if self._in_extent:
            self.sql.execute("insert into extent values(?,?,?,?,?)", (extent, *place))

    def move(self, extents: list[int]) -> int:
        """Moves extents in one transaction, each by compare and set. Returns the rows changed."""
        changed = 0
        self.sql.execute("begin immediate")
        for extent in extents:
            new, old = (FILE_NEW, extent * 8192), (FILE_OLD, extent * 4096)
            if self._in_entry:
                changed += self.sql.execute(SQL_MOVE_ENTRY, (*new, *self.name_of(extent), *old)).rowcount
            if self._in_extent:
                changed += self.sql.execute(SQL_MOVE_EXTENT, (*new, extent, *old)).rowcount
        self.sql.execute("commit")
        return changed


def measure_moves(catalog: Catalog, batches: Iterable[list[int]]) -> tuple[int, int, float]:
    """Rows, bytes of log and CPU microseconds of one transaction: medians."""
    rows, log_bytes, figures_us = [], [], []
    for batch in batches:
        catalog.checkpoint()
        begin = time.process_time_ns()
        rows.append(catalog.move(batch))
        figures_us.append((time.process_time_ns() - begin) / 1000)
        log_bytes.append(catalog.log_bytes())
    assert len(set(rows)) == 1, "every extent was where it was expected"
    return rows[0], int(statistics.median(log_bytes)), statistics.median(figures_us)


def measure_catalog(label: str, catalog: Catalog, *, in_entry: bool, keys_count: int) -> None:
    rng = random.Random(1)
    sql = catalog.sql
    catalog.warm()
    before = disk_reads_count()

    def entry_only() -> object:
        return sql.execute(SQL_GET_ENTRY, catalog.name_of(rng.randrange(keys_count))).fetchone()

    def inline() -> object:
        return sql.execute(SQL_GET_INLINE, catalog.name_of(rng.randrange(keys_count))).fetchone()

    def two_queries() -> object:
        row = sql.execute(SQL_GET_ENTRY, catalog.name_of(rng.randrange(keys_count))).fetchone()
        return row, sql.execute(SQL_GET_EXTENT, (row[3],)).fetchone()

    def joined() -> object:
        return sql.execute(SQL_GET_JOINED, catalog.name_of(rng.randrange(keys_count))).fetchone()

    figures = [f"{catalog.file_bytes() / keys_count:.1f} bytes of catalog per object"]
    figures.append(f"entry row {median_us(entry_only, 5000):.1f} us")
    if in_entry:
        figures.append(f"entry row with its place {median_us(inline, 5000):.1f} us")
    else:
        figures.append(f"entry row, then extent row {median_us(two_queries, 5000):.1f} us")
        figures.append(f"both by one join {median_us(joined, 5000):.1f} us")
    half = keys_count // 2
    written_together = [[i * (half // SAMPLES) + j for j in range(GROUP_MOVES)] for i in range(SAMPLES)]
    scattered = rng.sample(range(half, keys_count), GROUP_MOVES * SAMPLES)
    batches = [scattered[i * GROUP_MOVES : (i + 1) * GROUP_MOVES] for i in range(SAMPLES)]
    for what, group in (("written one after the other", written_together), ("of any age", batches)):
        rows, log_bytes, us = measure_moves(catalog, group)
        figures.append(f"move of {GROUP_MOVES} extents {what}: {rows} rows, {log_bytes:,} bytes of log, {us:,.0f} us")
    if disk_reads_count() > before:
        figures.append("not valid: blocks came from a disk")
    print(f"\n{label}")
    for figure in figures:
        print(f"  {figure}", flush=True)


def compare_places(folder: Path, keys_count: int) -> None:
    """Builds and measures one catalog after the other. Needs about 300 bytes of disk per key."""
    order = list(range(keys_count))
    random.Random(7).shuffle(order)
    print(f"{keys_count:,} objects of one extent")
    for label, in_entry, in_extent, index in (
        ("place in the entry only", True, False, False),
        ("place in the entry and in the extent", True, True, False),
        ("place in the extent only, the entry holds its id", False, True, False),
        ("the same, and extents indexed by place", False, True, True),
    ):
        catalog = Catalog(folder / f"{label}.db", in_entry=in_entry, in_extent=in_extent, index=index, order=order)
        measure_catalog(label, catalog, in_entry=in_entry, keys_count=keys_count)
        catalog.close()
