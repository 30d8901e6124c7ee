"""What a store publishes of itself: its newest snapshot, as it lies on the stripes, and the log behind it."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import trio

from couchestord.ec.stripes import StripeStore
from couchestord.io.catalog.catalog import Catalog
from couchestord.io.disks import Disks
from couchestord.io.journal import Journal
from couchestord.remote.publisher import Snapshot
from couchestord.remote.root import Entry, Founding
from couchestord.store.pins import Pins
from couchestord.store.snapshot import JOB, protected_segments, read_pieces, read_table

_RECORDS_PER_CHECKPOINT = 16


class StoreHistory:
    """A `remote.publisher.History`."""

    def __init__(
        self,
        disks: Disks,
        catalog: Catalog,
        journal: Journal,
        stripes: StripeStore,
        pins: Pins,
        ask_for_snapshot: Callable[[], None],
    ) -> None:
        self.ask_for_snapshot = ask_for_snapshot
        self._disks = disks
        self._catalog = catalog
        self._journal = journal
        self._stripes = stripes
        self._pins = pins

    def founding(self) -> Founding:
        """What a catalog that is made from nothing begins with."""
        policy = self._disks.default_policy
        return Founding(policy.k, policy.m, policy.stripe_bytes, policy.min_healthy_shards, policy.created_ns)

    def committed(self) -> int:
        """Sequence of the last record that is durable and answered."""
        return self._catalog.committed_sequence

    def snapshot_sequence(self) -> int:
        """Of the newest snapshot; 0 when there is none."""
        root = self._disks.slot.snapshot
        return root.sequence if root is not None else 0

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """The newest one; its segments stay while the body runs. Raises DataLost, Corrupt, Unavailable."""
        root = self._disks.slot.snapshot
        if root is None:
            yield Snapshot(0, _nothing())
            return
        held = protected_segments(self._catalog.accounts.jobs().get(JOB))
        rows = {id_: row for id_ in held if (row := self._catalog.reading.segment(id_)) is not None}
        self._pins.hold(held)
        try:
            table = await read_table(root, self._stripes, rows)
            yield Snapshot(table.sequence, read_pieces(table, self._stripes, rows))
        finally:
            self._pins.release(held)

    async def records(self, first: int) -> AsyncGenerator[tuple[int, Entry], None]:
        """(sequence, record) from `first` to the last one that is committed. Raises DataLost."""
        last = self.committed()
        async with aclosing(self._journal.records(first)) as records:
            async for sequence, meta, _, body_sum in records:
                if sequence > last:
                    return
                yield sequence, Entry(bytes(meta), body_sum)
                if sequence % _RECORDS_PER_CHECKPOINT == 0:
                    await trio.lowlevel.checkpoint()  # what is in the page cache is read without one


async def _nothing() -> AsyncGenerator[bytes, None]:
    return
    yield b""
