"""Looks at everything that lies on the disks, and changes nothing.

Disks and superblocks, the log and its copies, the catalog's pages and invariants, every shard of every stripe, and that
every stripe with live data has enough good shards. What it finds is a list of findings; the start of a store and the
background jobs are what repairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import trio

from couchestord.ec.choice import choose_engine
from couchestord.ec.rebuild_shard import StripeWalk, check_stripe, is_live
from couchestord.ec.stripes import StripeStore
from couchestord.errors import Corrupt, DataLost, DiskError, DiskLocked, NotAStore, UnknownFormat
from couchestord.io.catalog.accounts import AccountReader
from couchestord.io.catalog.check import find_faults
from couchestord.io.catalog.lost import lost_objects
from couchestord.io.catalog.pages import verify_pages
from couchestord.io.catalog.read import CatalogReader, SegmentRow
from couchestord.io.directory import DirectoryDisk
from couchestord.io.disk import Disk
from couchestord.io.disks import Disks, load_disks, replicas_needed
from couchestord.io.records import unpack_record
from couchestord.io.recovery import Chain, FoundFile, chain, read_on, scan
from couchestord.io.sqlite import Connection, open_reader, sqlite_errors
from couchestord.store.opening import CATALOG_NAME, disk_folders
from couchestord.store.options import StoreOptions
from couchestord.store.snapshot import JOB, protected_segments, read_pieces, read_table

_LOST_NAMED_MAX = 1000
Report = Callable[[int, int], None]
"""Called with (segments looked at, segments in all)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`severity`: "lost" (data is gone), "short" (redundancy is less than it should be), "note"."""

    severity: str
    where: str
    what: str


async def check_store(path: Path, options: StoreOptions, report: Report = lambda done, total: None) -> list[Finding]:
    """Check the store in the data folder `path`, which no daemon may have open; empty when all is well.

    Raises DiskLocked, NotAStore, ForeignDisk, UnknownFormat.
    """
    opened: list[Disk] = []
    findings: list[Finding] = []
    try:
        for folder in disk_folders(path, options):
            try:
                opened.append(await DirectoryDisk.open(folder, deadline_s=options.disk_deadline_s))
            except DiskLocked:
                raise
            except DiskError as error:
                findings.append(Finding("short", str(folder), str(error)))
        if not opened:
            raise NotAStore(f"no store lies in {path}")
        disks = await load_disks(opened)
    except BaseException:
        for disk in opened:
            disk.close()
        raise
    try:
        checker = _Checker(disks, path / CATALOG_NAME, options, findings)
        await checker.check(report)
    finally:
        disks.close()
    return findings


class _Checker:
    def __init__(self, disks: Disks, catalog: Path, options: StoreOptions, findings: list[Finding]) -> None:
        self._disks = disks
        self._catalog = catalog
        self._options = options
        self._findings = findings
        self._protected: frozenset[int] = frozenset()

    def _find(self, severity: str, where: str, what: object) -> None:
        self._findings.append(Finding(severity, where, str(what)))

    async def check(self, report: Report) -> None:
        for index, why in sorted(self._disks.failures.items()):
            self._find("short", f"disk {index}", why)
        log_chain = await self._check_log()
        beside = [Path(f"{self._catalog}{suffix}") for suffix in ("-wal", "-shm")]
        made = [file for file in beside if not file.exists()]
        connection = self._check_catalog(log_chain)
        try:
            if connection is not None:
                self._find_lost(connection)
                await self._check_segments(CatalogReader(connection), AccountReader(connection), report)
        finally:
            if connection is not None:
                connection.close()
            # a reader makes them, empty; the locks of the disks say that nobody else is at the catalog
            for file in made:
                file.unlink(missing_ok=True)

    async def _check_log(self) -> Chain:
        found = await scan(self._disks, indexed=False)
        log_chain = chain(found)
        needed = replicas_needed(self._disks.m, self._disks.missing_count())
        for file in log_chain.files:
            whole = [index for index in file.replicas if await self._is_whole(file, index)]
            if len(whole) < needed:
                self._find("short", file.path, f"lies on {len(whole)} disks, {needed} are needed")
        # a disk that was away may hold a file of before the others were trimmed: what a snapshot holds, nobody asks for
        held = self._disks.slot.snapshot.sequence if self._disks.slot.snapshot else 0
        for first, high in log_chain.damage:
            low = max(first, held + 1)
            if low < high:
                which = f"records {low} to {high - 1}"
                self._find("lost", "journal", f"{which} were durable and are on no disk that is here")
        return log_chain

    async def _is_whole(self, file: FoundFile, index: int) -> bool:
        """Every record that counts, on one disk. What is behind them is void, or was never finished."""
        disk = self._disks.get(index)
        if disk is None:
            return False
        try:
            data = await read_on(disk, file.path, 0, file.end_offset)
            for sequence, offset in enumerate(file.offsets, start=file.first):
                head = unpack_record(self._disks.store_id, data, offset)
                if (head.epoch, head.sequence) != (file.epoch, sequence):
                    raise Corrupt(f"record {head.sequence} stands in the place of {sequence}")
        except (Corrupt, DiskError) as error:
            self._find("short", f"{file.path} on {disk.name}", error)
            return False
        return True

    def _check_catalog(self, log_chain: Chain) -> Connection | None:
        where = str(self._catalog)
        if not self._catalog.exists():
            self._find("note", where, "is missing; the next start makes it again from the disks")
            return None
        try:
            verify_pages(self._catalog)
            connection = open_reader(self._catalog)
            with sqlite_errors(f"reading {where}"):
                sequence = connection.execute("select sequence from state").fetchone()[0]
                verdict = connection.execute("pragma quick_check").fetchone()[0]
                faults = find_faults(connection)
        except Corrupt as error:
            self._find("note", where, f"{error}; the next start makes it again from the disks")
            return None
        if verdict != "ok":
            self._find("note", where, f"{verdict}; the next start makes it again from the disks")
        for fault in faults:
            self._find("lost", where, fault)
        if sequence >= log_chain.end and log_chain.files:
            self._find("note", where, f"ends at {sequence}, the log at {log_chain.end - 1}")
        return connection

    def _find_lost(self, connection: Connection) -> None:
        """What was given up, and what a node that was made anew did not find in its bucket."""
        objects = lost_objects(connection)
        for name in islice(objects, _LOST_NAMED_MAX):
            version = f", version {name.version:016x}" if name.version else ""
            self._find(
                "lost",
                f"{name.bucket}/{name.key.decode('utf-8', 'backslashreplace')}",
                f"its bytes are nowhere{version}",
            )
        if more := sum(1 for _ in objects):
            self._find("lost", "objects", f"{more} more")

    async def _check_segments(self, reader: CatalogReader, accounts: AccountReader, report: Report) -> None:
        rows = reader.segments()
        self._protected = protected_segments(accounts.jobs().get(JOB))
        async with trio.open_nursery() as nursery:
            stripes = StripeStore(self._disks, choose_engine(self._options.engine), nursery)
            for done, row in enumerate(rows):
                report(done, len(rows))
                await self._check_segment(reader, stripes, row)
            report(len(rows), len(rows))
            await self._check_snapshot(rows, stripes)
            nursery.cancel_scope.cancel()

    async def _check_snapshot(self, rows: list[SegmentRow], stripes: StripeStore) -> None:
        root = self._disks.slot.snapshot
        if root is None:
            return
        segments = {row.id: row for row in rows}
        try:
            table = await read_table(root, stripes, segments)
            async for _ in read_pieces(table, stripes, segments):
                pass
        except (Corrupt, DataLost) as error:
            self._find("short", "snapshot of the catalog", error)

    async def _check_segment(self, reader: CatalogReader, stripes: StripeStore, row: SegmentRow) -> None:
        """Every shard of every stripe, but for those without live data: they may be unfinished, nobody lacks them."""
        extents = reader.extents_in_segment(row.id, -1, 1 << 30)
        bad: dict[int, str] = {}
        for index in range(row.k + row.m):
            try:
                await stripes.file(row, index).segment_header()
            except (Corrupt, DiskError, UnknownFormat) as error:
                bad[index] = str(error)
        walk = StripeWalk(stripes, reader, row)
        while (found := await walk.next()) is not None:
            page, shape = found
            is_needed = is_live(row, extents, page)
            if not is_needed and row.id not in self._protected:
                continue
            good = 0
            for index in range(row.k + row.m):
                try:
                    if shape is None:
                        raise Corrupt("no header is left")
                    await check_stripe(stripes.file(row, index), page, shape)
                    good += 1
                except (Corrupt, DiskError, UnknownFormat) as error:
                    bad.setdefault(index, str(error))
            if good < row.k and is_needed:
                self._find("lost", f"segment {row.id}, stripe {page}", f"{good} good shards, {row.k} are needed")
        for index, why in sorted(bad.items()):
            if extents or row.id in self._protected:
                self._find("short", f"segment {row.id}, shard {index}", why)
