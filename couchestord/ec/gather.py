"""Reads of several shards at once, of which some may be late or bad.

A read of a disk cannot be cancelled once a thread has it, so reads run in a nursery that outlives the request that
wants them: who gathers stops waiting, and the answer of a slow disk is dropped when it comes.
"""

from collections.abc import Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar

import trio

from couchestord.errors import Corrupt, DiskError, DiskFailed, UnknownFormat

Piece = TypeVar("Piece")

ShardError = Corrupt | UnknownFormat | DiskError
"""What keeps a shard from being read."""


class ShardRange(NamedTuple):
    """Bytes `low` to before `high` of a shard's payload; `shard` is its index."""

    shard: int
    low: int
    high: int


class Gathering(Generic[Piece]):
    """Answers by range: `good`, `bad`, and those still under way in `pending`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.good: dict[ShardRange, Piece] = {}
        self.bad: dict[ShardRange, ShardError] = {}
        self.pending: set[ShardRange] = set()
        self._defect: Exception | None = None
        self._nursery = nursery
        self._answered = trio.Event()

    def start(self, wanted: ShardRange, read: Callable[[], Awaitable[Piece]]) -> None:
        """Begin a read."""
        self.pending.add(wanted)
        self._nursery.start_soon(self._run, wanted, read)

    async def _run(self, wanted: ShardRange, read: Callable[[], Awaitable[Piece]]) -> None:
        error: ShardError = DiskFailed("the read was given up: the store is closing")
        try:
            self.good[wanted] = await read()
        except (Corrupt, UnknownFormat, DiskError) as found:
            error = found
        except Exception as defect:
            self._defect = defect  # the nursery is everybody's: the one who waits is to have it
        finally:
            if wanted not in self.good and self._defect is None:
                self.bad[wanted] = error
            self.pending.discard(wanted)
            self._answered.set()

    async def wait(self, timeout_s: float) -> bool:
        """Until an answer has come that was not waited for yet: True. False after `timeout_s` seconds."""
        with trio.move_on_after(max(0.0, timeout_s)):
            await self._answered.wait()
        if self._defect is not None:
            raise self._defect
        came = self._answered.is_set()
        self._answered = trio.Event()
        return came
