"""A log on simulated disks: opened as a start does, without a catalog."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from simdisk import SimDisk

from couchestord.io.checksum import xxh3_64
from couchestord.io.disks import Disks, load_disks
from couchestord.io.indexing import Indexer
from couchestord.io.journal import Journal
from couchestord.io.journalfile import Entry, JournalOptions
from couchestord.io.newdisk import create_store
from couchestord.io.recovery import Chain, chain, scan

STORE_ID = b"0123456789abcdef"
ALWAYS = 1 << 60
SMALL_FILES = JournalOptions(
    size_bytes=1 << 20, file_bytes=16 << 10, preallocate_bytes=8 << 10, spare_bytes=24 << 10, spare_below_bytes=ALWAYS
)
NO_PREALLOCATION = JournalOptions(
    size_bytes=1 << 20, file_bytes=16 << 10, preallocate_bytes=0, spare_bytes=12 << 10, spare_below_bytes=ALWAYS
)


def entry(meta: bytes, body: bytes = b"") -> Entry:
    return Entry(meta, body, xxh3_64(body))


def group(rng: random.Random, tag: str, count: int | None = None) -> list[Entry]:
    """Entries that say which group they are of, with bodies of all sizes."""
    count = count or rng.randint(1, 4)
    return [entry(f"{tag}.{number}".encode(), rng.randbytes(rng.choice((0, 1, 700, 5000)))) for number in range(count)]


async def new_disks(seed: int, count: int = 6, k: int = 4, m: int = 2) -> list[SimDisk]:
    """Disks of a new store, all of one source of randomness."""
    rng = random.Random(seed)
    sims = [SimDisk(f"sim-{index}", rng) for index in range(count)]
    ids = [bytes([index] * 16) for index in range(count)]
    await create_store(sims, store_id=STORE_ID, disk_ids=ids, k=k, m=m, created_ns=1)
    return sims


@dataclass(slots=True)
class Log:
    disks: Disks
    chain: Chain
    journal: Journal

    @property
    def end(self) -> int:
        """The sequence after the last."""
        return self.journal._files[-1].end if self.journal._files else 1

    async def contents(self) -> dict[int, tuple[bytes, bytes]]:
        """(meta, body) by sequence, of all that is here: behind a gap too."""
        held = {}
        for sequence in filter(self.journal.holds, range(self.journal.first_sequence or 0, self.end)):
            meta, body, _ = await self.journal.record(sequence)
            held[sequence] = (bytes(meta), bytes(body))
        return held


async def open_log(sims: Sequence[SimDisk], options: JournalOptions = SMALL_FILES) -> Log:
    """Recover; nothing is written."""
    disks = await load_disks(list(sims))
    found = chain(await scan(disks))
    journal = Journal(disks, options, found)
    await journal.spares.look()
    return Log(disks, found, journal)


async def renew(log: Log) -> None:
    """What a start does before it serves: a new epoch, the last group again under it."""
    await log.disks.take_epoch()
    log.journal.epoch_taken()
    if log.chain.files:
        first = log.chain.files[-1].groups[-1]
        entries = [Entry(bytes(meta), body, total) async for _, meta, body, total in log.journal.records(first)]
        await log.journal.renew(first, entries)


async def start_log(sims: Sequence[SimDisk], options: JournalOptions = SMALL_FILES) -> Log:
    """Recover and renew: the log may be appended to."""
    log = await open_log(sims, options)
    await renew(log)
    return log


def eager_indexer(log: Log) -> Indexer:
    """Indexes every record."""
    return Indexer(log.disks, log.journal, records_min=1, closed_min=1)


def restarted(sims: Sequence[SimDisk], away: Sequence[int] = ()) -> list[SimDisk]:
    """What a start after a power cut finds, without some disks."""
    return [sim.crash() for index, sim in enumerate(sims) if index not in away]
