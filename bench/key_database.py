"""What the measurements of bench.key_tree and bench.key_places share: a database in a file, keys, rows, medians."""

import os
import resource
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

KEYS_PER_DIRECTORY = 1000

Row = tuple[int, bytes, int, int]
"""Size in bytes, etag, time in nanoseconds, extent id."""


def bulk_key(index: int) -> bytes:
    return b"some/prefix/dir%06d/%010d.dat" % (index // KEYS_PER_DIRECTORY, index)


def row_of(index: int) -> Row:
    return 4096, os.urandom(16), 1_700_000_000_000_000_000 + index, index


class Database:
    """One SQLite file and what all variants need of it."""

    def __init__(self, path: Path, schema: str) -> None:
        self._path = path
        self.sql = sqlite3.connect(path, isolation_level=None, cached_statements=256)
        for pragma in ("journal_mode=wal", "synchronous=normal", "wal_autocheckpoint=0"):
            self.sql.execute(f"pragma {pragma}")
        self.sql.executescript(schema)

    def load(self, insert: Callable[[int], None], indexes: Iterable[int]) -> None:
        """Inserts in one transaction, with a page cache so big that a random order costs no rereads."""
        self.sql.execute("pragma cache_size=-2000000")
        self.sql.execute("begin")
        for index in indexes:
            insert(index)
        self.sql.execute("commit")
        self.checkpoint()
        self.sql.execute("pragma cache_size=-65536")

    def checkpoint(self) -> None:
        """Empties the log of SQLite, so that its length afterwards is what the next transactions wrote."""
        self.sql.execute("pragma wal_checkpoint(truncate)").fetchone()

    def warm(self) -> None:
        """Brings the file into the kernel's page cache: what was loaded first may have left it."""
        with self._path.open("rb") as file:
            while file.read(1 << 20):
                pass

    def log_bytes(self) -> int:
        return self._path.with_name(self._path.name + "-wal").stat().st_size

    def file_bytes(self) -> int:
        return self._path.stat().st_size

    def close(self) -> None:
        self.sql.close()


def disk_reads_count() -> int:
    """Blocks this process has read from a disk. Figures taken while it grew are those of a cold cache."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_inblock


def median_us(action: Callable[[], object], calls: int, samples: int = 15) -> float:
    """CPU time of a call in microseconds: the median over samples of `calls` calls, after one unmeasured sample."""
    figures = []
    for _ in range(samples + 1):
        begin = time.process_time_ns()
        for _ in range(calls):
            action()
        figures.append((time.process_time_ns() - begin) / calls / 1000)
    return statistics.median(figures[1:])
