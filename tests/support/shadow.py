"""A second catalog, made of every record that was committed, one after the other: what replay of a whole log gives.

The store trims its log; this keeps it. At any quiet moment the live catalog must equal it, table by table.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from catalog_check import check_catalog
from model import ModelBroken
from simstore import SimMachine

from couchestord.ec.rebuild_shard import StripeWalk, check_stripe, is_live
from couchestord.ec.shards import FOLDER as SEGMENTS
from couchestord.ec.shards import parse_shard_name, shard_path
from couchestord.errors import Corrupt, DiskError
from couchestord.io import mutations as mu
from couchestord.io import records as rec
from couchestord.io.catalog.catalog import Catalog, dump
from couchestord.io.catalog.read import SegmentRow
from couchestord.io.catalog.segments import STATE_SEALED
from couchestord.io.journal import Journal
from couchestord.io.journalfile import Entry
from couchestord.io.records import record_digest
from couchestord.io.recovery import FOLDER as JOURNAL
from couchestord.store.core import Core
from couchestord.store.snapshot import JOB, protected_segments, read_table


class Shadow:
    """Belongs to one machine, over all its lives."""

    def __init__(self, machine: SimMachine) -> None:
        self._machine = machine
        self._path = machine.folder / "shadow.sqlite"
        self._metas: list[tuple[bytes, int]] = []
        self._catalog: Catalog | None = None
        self._problem = ""

    @property
    def end(self) -> int:
        """The sequence after the last record that is known to be committed."""
        return len(self._metas) + 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes what every journal commits."""
        original = Journal.append

        async def append(journal: Journal, first: int, entries: Sequence[Entry]) -> None:
            await original(journal, first, entries)
            if not self._machine.is_cut:
                await self._committed(journal, first, entries)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Journal, "append", append)
            yield

    async def _committed(self, journal: Journal, first: int, entries: Sequence[Entry]) -> None:
        if first < self.end:
            self._problem = f"sequence {first} was committed already, the log ended at {self.end - 1}"
        await self._catch_up(journal, first)
        self._metas += [(bytes(entry.meta), entry.body_sum) for entry in entries]

    async def _catch_up(self, journal: Journal, end: int) -> None:
        """What was in doubt when a run ended and turned out to be part of the log."""
        if self.end < end:
            found = [(bytes(meta), body_sum) async for _, meta, _, body_sum in journal.records(self.end)]
            self._metas += found[: end - self.end]

    async def compare(self, core: Core) -> None:
        """Raises ModelBroken when the catalog of a quiet store is not what the log says."""
        if self._problem:
            raise ModelBroken(self._problem)
        end = core.catalog.applier.sequence + 1
        if end < self.end:
            raise ModelBroken(f"committed records {end} to {self.end - 1} are lost")
        await self._catch_up(core.journal, end)
        if self._catalog is None:
            Catalog.create(self._path, core.disks.store_id, core.disks.default_policy)
            self._catalog = Catalog(self._path)
        applier = self._catalog.applier
        self._catalog.begin()
        for sequence in range(applier.sequence + 1, self.end):
            meta, body_sum = self._metas[sequence - 1]
            applier.apply(mu.decode(meta), sequence, record_digest(meta, body_sum))
        self._catalog.commit()
        mine, live = dump(self._path), dump(core.catalog.path)
        for table, rows in mine.items():
            if rows != live[table]:
                extra = [row for row in live[table] if row not in rows]
                lost = [row for row in rows if row not in live[table]]
                raise ModelBroken(f"table {table} differs from the log: too many {extra[:3]}, missing {lost[:3]}")
        check_catalog(core.catalog.path)

    def close(self) -> None:
        if self._catalog is not None:
            self._catalog.close()


async def scrub(core: Core, index: int) -> None:
    """Stands in for the scrubber: has everything on a disk that rotted looked at."""
    disk = core.disks.get(index)
    if disk is None:
        return
    for name in await disk.list(SEGMENTS):
        parsed = parse_shard_name(name)
        if parsed is not None and core.catalog.reading.segment(parsed[0]) is not None:
            core.jobs.rebuilder.report(*parsed, index)
    for name in await disk.list(JOURNAL):
        core.journal.damaged.add((f"{JOURNAL}/{name}", index))


async def _check_shards(core: Core, row: SegmentRow) -> None:
    """Every byte of every stripe that an extent lies in; behind them may lie some that were never finished."""
    extents = core.catalog.reading.extents_in_segment(row.id, 0, 1 << 20)
    walk = StripeWalk(core.stripes, core.catalog.reading, row)
    while (found := await walk.next()) is not None:
        page, shape = found
        if extents and not is_live(row, extents, page):
            continue
        if shape is None:
            raise ModelBroken(f"stripe {page} of segment {row.id} is gone")
        for index in range(row.k + row.m):
            try:
                await check_stripe(core.stripes.file(row, index), page, shape)
            except (Corrupt, DiskError) as error:
                raise ModelBroken(f"segment {row.id}, stripe {page}, shard {index} is not whole: {error}") from error


async def check_redundancy(core: Core) -> None:
    """Raises ModelBroken unless every shard is whole and every journal file lies whole on m+1 good disks."""
    if core.disks.failures:
        raise ModelBroken(f"disks are given up: {core.disks.failures}")
    protected = protected_segments(core.catalog.accounts.jobs().get(JOB))
    for row in core.catalog.reading.segments():
        if not row.live_bytes and row.id not in protected:
            continue
        if row.state == STATE_SEALED and row.missing:
            raise ModelBroken(f"segment {row.id} lacks shards: {row.missing:b}, on {row.disks}")
        await _check_shards(core, row)
    for file in core.journal._files:
        whole = []
        for index in file.replicas:
            disk = core.disks.get(index)
            assert disk is not None
            data = await disk.read(file.path, 0, file.end_offset)
            try:
                heads = [rec.unpack_record(core.disks.store_id, data, offset) for offset in file.offsets]
            except Corrupt:
                continue
            if [head.sequence for head in heads] == list(range(file.first, file.end)):
                whole.append(index)
        if len(whole) <= core.disks.m:
            raise ModelBroken(f"{file.path} lies on {whole} only, of {file.replicas}")


async def check_nothing_left(core: Core) -> None:
    """Raises ModelBroken when an idle store without objects keeps more than its snapshot."""
    tables = dump(core.catalog.path)
    for table in ("inode", "content", "piece", "extent", "part", "upload"):
        if tables[table]:
            raise ModelBroken(f"nothing refers to what is left in table {table}: {tables[table][:3]}")
    rows = {row.id: row for row in core.catalog.reading.segments()}
    root = core.disks.slot.snapshot
    assert root is not None
    snapshot = {root.segment, *(piece.segment for piece in (await read_table(root, core.stripes, rows)).pieces)}
    known: dict[int, set[str]] = {index: set() for index in core.disks.good()}
    for row in rows.values():
        if row.id not in snapshot:
            raise ModelBroken(f"segment {row} holds nothing and stays")
        for index, number in enumerate(row.disks):
            if number >= 0:
                known[number].add(shard_path(row.id, index))
    for number, paths in known.items():
        disk = core.disks.get(number)
        assert disk is not None
        unknown = {f"{SEGMENTS}/{name}" for name in await disk.list(SEGMENTS)} - paths
        if unknown:
            raise ModelBroken(f"disk {number} holds files of no segment: {sorted(unknown)[:3]}")
