"""What the store's process knows of its readers' caches, and asks of them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import outcome as outcomes
import trio

from couchestord.cache import sum_tiers
from couchestord.errors import Unavailable
from couchestord.replica import messages as ms
from couchestord.store.beside import ReaderStats, Warmed

_GONE = "the process that reads is gone"


class Asked:
    """Questions to one reader, which answers each as soon as it can, or ends."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._waiting: dict[int, tuple[trio.Event, list[outcomes.Outcome[msgspec.Raw]]]] = {}
        self._last_id = 0
        self._has_ended = False

    def begin(self) -> None:
        """The reader answers from now on, as it does from when this was made until `end`."""
        self._has_ended = False

    async def ask(self, message: Callable[[int], ms.FromStore], kind: Any) -> Any:
        """Sends what `message` makes of an id, and waits for the answer, of type `kind`. Raises what it is refused
        with; Unavailable when the reader ends, or has ended: whoever was about to ask may not know yet.
        """
        if self._has_ended:
            raise Unavailable(_GONE)
        self._last_id += 1
        id_, answered = self._last_id, trio.Event()
        found: list[outcomes.Outcome[msgspec.Raw]] = []
        self._waiting[id_] = answered, found
        try:
            self._send(ms.pack(message(id_)))
            await answered.wait()
        finally:
            self._waiting.pop(id_, None)
        return ms.unpack_value(found[0].unwrap(), kind)

    @property
    def count(self) -> int:
        """Questions that were not answered yet."""
        return len(self._waiting)

    def answered(self, message: ms.Answer | ms.Refusal) -> None:
        """The reader has answered."""
        if isinstance(message, ms.Refusal):
            self._wake(message.id, outcomes.Error(ms.error_of(message)))
        else:
            # the bytes of the message are used again
            self._wake(message.id, outcomes.Value(message.value.copy()))

    def end(self) -> None:
        """No answer comes any more, until it begins anew."""
        self._has_ended = True
        for id_ in list(self._waiting):
            self._wake(id_, outcomes.Error(Unavailable(_GONE)))

    def _wake(self, id_: int, outcome: outcomes.Outcome[msgspec.Raw]) -> None:
        event, found = self._waiting.pop(id_, (None, []))
        if event is not None:
            found.append(outcome)
            event.set()


class Reader:
    """What is known of the caches of one reader."""

    def __init__(self, send: Callable[[bytes], None], *, is_worker: bool = True) -> None:
        self.asked = Asked(send)
        self.is_worker = is_worker
        self.stats: ReaderStats | None = None
        """What it said last; None: it reads nothing now."""


class ReadersBeside:
    """`Beside` of a host. What happened in readers that have ended stays counted."""

    def __init__(self, readers: Callable[[], Iterable[Reader]], *, has_workers: bool = True) -> None:
        """`has_workers`: what is to be read soon is kept by them; without, by the process that writes."""
        self._readers = readers
        self._has_workers = has_workers
        self._ended = ReaderStats(0, [])

    def stats(self) -> Sequence[ReaderStats]:
        now = [reader.stats for reader in self._readers() if reader.stats is not None]
        return [*sorted(now, key=lambda each: each.pid), self._ended]

    def left(self, reader: Reader) -> None:
        """It reads no more, or begins anew."""
        reader.asked.end()
        gone, reader.stats = reader.stats, None
        if gone is not None:
            self._ended = ReaderStats(
                0,
                sum_tiers([*self._ended.tiers, *(tier.ended() for tier in gone.tiers)]),
                self._ended.degraded_reads_count + gone.degraded_reads_count,
                self._ended.degraded_records_count + gone.degraded_records_count,
            )

    async def evict(self, tier: str | None) -> int:
        return sum(await self._ask_all(lambda id_: ms.EvictCaches(id_, tier), int, self._readers()))

    async def warm(self, bucket: str, prefix: bytes, start_after: bytes) -> Sequence[Warmed]:
        workers = [reader for reader in self._readers() if reader.is_worker]
        steps = await self._ask_all(lambda id_: ms.WarmCaches(id_, bucket, prefix, start_after), Warmed, workers)
        if not steps and self._has_workers:
            raise Unavailable("no worker reads now; try again soon")
        return steps

    async def _ask_all(self, message: Callable[[int], ms.FromStore], kind: Any, readers: Iterable[Reader]) -> list[Any]:
        """The answers of those of them who read now. Of one that ends meanwhile there is none."""
        found: list[outcomes.Outcome[Any]] = []

        async def ask(reader: Reader) -> None:
            found.append(await outcomes.acapture(reader.asked.ask, message, kind))

        async with trio.open_nursery() as nursery:
            for reader in readers:
                if reader.stats is not None:
                    nursery.start_soon(ask, reader)
        lost = [each for each in found if isinstance(each, outcomes.Error) and isinstance(each.error, Unavailable)]
        return [each.unwrap() for each in found if each not in lost]
