"""A store's history as the publisher sees it, and a bucket, both of which outlive a crash at any point."""

import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from memory_backend import MemoryBackend

from couchestord.errors import DataLost
from couchestord.io.checksum import xxh3_64
from couchestord.remote.backend import Backend
from couchestord.remote.claims import Claim
from couchestord.remote.options import PublishOptions
from couchestord.remote.publisher import Publisher, Snapshot
from couchestord.remote.restoring import fetch_catalog
from couchestord.remote.root import Entry, Founding, Root
from couchestord.remote.roots import Roots
from couchestord.service import Progress

STORE = bytes(range(16))
FOUNDING = Founding(4, 2, 1 << 20, 0, 1_700_000_000_000_000_000)
PIECE_BYTES = 1000
QUICK = PublishOptions(run_bytes=400, run_age_s=0.0, retry_s=0.0)


async def run(publisher: Publisher, steps_max: int = 300) -> None:
    """Until nothing is left to do."""
    for _ in range(steps_max):
        if await publisher.work() is Progress.IDLE and not publisher.trouble:
            return
    raise AssertionError(f"it never ends: {publisher.trouble}")


class PublishRig:
    """`log`, `snapshots` and the bucket are what lasts. `at` is called before and after whatever the bucket does."""

    def __init__(self, seed: int = 1, bucket: Backend | None = None) -> None:
        self.random = random.Random(seed)
        self.backend = MemoryBackend(keys_per_page=100)
        self.bucket = bucket or self.backend
        self.roots = Roots(self.bucket, STORE)
        self.log: list[Entry] = []
        self.file = b""
        self.snapshots: dict[int, bytes] = {0: b""}
        self.trimmed = 0
        self.epoch = 1
        self.ns = 0
        self.asked_count = 0
        self.at: Callable[[str], None] = lambda _event: None
        self.backend.before = lambda call, key: self.at(f"before {call} {key}")
        self.backend.after = lambda call, key: self.at(f"after {call} {key}")

    # -- what the store does -----------------------------------------------------------------------------------------

    def commit(self, count: int = 1) -> None:
        for _ in range(count):
            meta = self.random.randbytes(self.random.randrange(10, 120))
            self.log.append(Entry(meta, xxh3_64(meta)))

    def take(self) -> None:
        """A snapshot of all that is committed, most of it as in the one before; the log before it goes."""
        if len(self.log) in self.snapshots:
            return
        changed = bytearray(self.file.ljust(len(self.file) + 700, b"\0"))
        at = self.random.randrange(len(changed) - 8)
        changed[at : at + 8] = self.random.randbytes(8)
        self.file = bytes(changed)
        self.snapshots[len(self.log)] = self.file
        self.trimmed = len(self.log)

    # -- History -----------------------------------------------------------------------------------------------------

    def committed(self) -> int:
        return len(self.log)

    def snapshot_sequence(self) -> int:
        return max(self.snapshots)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        sequence = self.snapshot_sequence()
        yield Snapshot(sequence, self._pieces(self.snapshots[sequence]))

    async def _pieces(self, file: bytes) -> AsyncGenerator[bytes, None]:
        for at in range(0, len(file), PIECE_BYTES):
            await trio.lowlevel.checkpoint()
            self.at("piece")
            yield file[at : at + PIECE_BYTES]

    def ask_for_snapshot(self) -> None:
        self.asked_count += 1

    async def records(self, first: int) -> AsyncGenerator[tuple[int, Entry], None]:
        for sequence in range(first, len(self.log) + 1):
            await trio.lowlevel.checkpoint()
            if sequence <= self.trimmed:
                raise DataLost(f"record {sequence} was trimmed")
            yield sequence, self.log[sequence - 1]

    # -- the job -----------------------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        self.ns += 1
        return self.ns

    async def start(self, options: PublishOptions = QUICK, is_awaited: Callable[[], bool] = lambda: False) -> Publisher:
        """A new process: a new epoch, a claim, nothing remembered."""
        self.epoch += 1
        claim = Claim(self.bucket, STORE, self.epoch)
        await claim.take(self.random.randbytes)
        return Publisher(self, self.roots, STORE, self.epoch, FOUNDING, claim.check, self.now_ns, options, is_awaited)

    async def recover(self, path: Path) -> tuple[Root, int]:
        """The root that a lost node is made from, and the sequence it ends at. All of it is as the store had it."""
        at, self.at = self.at, lambda _event: None
        root = await fetch_catalog(self.roots, path, lambda _what, _done, _all: None)
        assert path.read_bytes() == self.snapshots[root.sequence]
        end = root.sequence
        async for sequence, entry, _ in self.roots.entries(root):
            assert sequence == end + 1
            assert entry == self.log[sequence - 1]
            end = sequence
        self.at = at
        return root, end

    def count(self, kind: str) -> int:
        """Objects of a kind that are there: roots, pieces, log."""
        return sum(1 for key in self.backend.objects if key.startswith(f"{kind}/"))
