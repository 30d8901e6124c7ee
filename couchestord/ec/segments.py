"""Open segments, handed to one writer at a time.

Theory of operation. A stripe is written to all shard files of a segment at once. After any error the segment is sealed
and never appended to again, so that an address is written at most once: the stripe that failed is left out of it and
written anew in the next segment, on disks that are good. Shards on a disk that failed are recorded as missing for the
whole segment, with the seal, before anything in it is referenced; what was written before stays valid as long as
`min_healthy_shards` are whole. A disk that is full spoils nothing: the segment merely ends before the stripe that did
not fit. A sync that failed is never tried again on that file.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, NamedTuple

import trio

from couchestord import logs
from couchestord.ec.codec import Buffer
from couchestord.ec.newsegment import NewSegments
from couchestord.ec.opensegment import OpenSegment
from couchestord.ec.shards import PAGE_BYTES, EncodedStripe, shard_length, stripe_pages
from couchestord.ec.stripes import StripeStore
from couchestord.errors import InvalidArgument, NoSpace, Unavailable
from couchestord.io.catalog.read import SegmentRow
from couchestord.io.disks import Disks
from couchestord.io.mutations import Extent
from couchestord.io.requests import MakeSegment, SealSegment
from couchestord.model import Policy

log = logs.get(__name__)

Submit = Callable[[Any], Awaitable[Any]]
"""Hands a request to the store's writer and answers what it answers, once it is durable and committed."""


AwaitMore = Callable[[float], Awaitable[bool]]
"""Waits a moment when there has been no room since then; answers whether to look again."""


async def no_wait(_since_s: float) -> bool:
    """Nobody waits."""
    return False


@dataclass(frozen=True, slots=True)
class SegmentOptions:
    """Sizes in bytes, of data, not of shards."""

    segment_bytes: int = 256 << 20
    """A segment that holds so much is sealed."""
    extent_bytes_max: int = 16 << 20
    open_max: int = 8
    """Segments written to at a time, and with that streams that write at a time."""


class Place(NamedTuple):
    """Where a stripe lies."""

    segment: int
    stripe: int


class SegmentPool:
    """The open segments of a store, each of one policy. Belongs to the store's task context."""

    def __init__(
        self,
        stripes: StripeStore,
        disks: Disks,
        submit: Submit,
        options: SegmentOptions,
        policies: Callable[[int], Policy],
    ) -> None:
        """`policies` answers the policy of an id, as it is now."""
        self.options = options
        self.stripes = stripes
        self._policies = policies
        self._disks = disks
        self._submit = submit
        self._turns = trio.Semaphore(options.open_max, max_value=options.open_max)
        self._idle: list[OpenSegment] = []
        self._unsealed: dict[int, SealSegment] = {}
        self._refusal_said = False
        self._pins: Counter[int] = Counter()
        self._new = NewSegments(disks, options.segment_bytes)

    def writer(
        self,
        policy: int = 0,
        *,
        alone: bool = False,
        dips: bool = False,
        await_more: AwaitMore = no_wait,
        stripe_bytes_min: int = 0,
    ) -> "StripeWriter":
        """A stream's writer under a policy as it is now, an async context manager. Waits for its turn at the first
        append.

        `alone`: in segments of its own, sealed behind it, for what goes all at once. `dips`: it makes room, and may
        take half of the reserve. `await_more`: called while there is no room. `stripe_bytes_min`: stripes are at least
        so long, for who is alone.

        Keep the context open until the mutation that references its stripes has been committed (`release` gives the
        segment to others before that): until then no background job may drop what is not referenced yet.
        """
        found = self._policies(policy)
        found = replace(found, stripe_bytes=max(found.stripe_bytes, stripe_bytes_min))
        return StripeWriter(self, found, alone, dips, await_more)

    def is_pinned(self, segment_id: int) -> bool:
        """True while a writer may still reference new stripes of a segment: it must not be dropped."""
        return self._pins[segment_id] > 0

    @property
    def pinned_count(self) -> int:
        """Segments that are pinned."""
        return len(self._pins)

    async def retire(self, segment_id: int) -> None:
        """Seal a segment, unless a writer has it now: shards it lacks are rebuilt only then, and nobody may come to
        fill it. Raises what the store's writer raises.
        """
        for segment in [segment for segment in self._idle if segment.row.id == segment_id]:
            self._idle.remove(segment)
            self.give_up(segment)
        await self._seal_rest()

    async def seal_unfit(self) -> bool:
        """Seal the segments that wait open and would not be appended to again: full, on fewer disks than could be, or
        of a policy that has changed. False when the writer refused some.

        Only a sealed segment is rebuilt or dropped, and without this an idle store would never seal it.
        """
        for segment in [each for each in self._idle if not self._new.is_fit(each, self._policies(each.row.policy))]:
            self._idle.remove(segment)
            self.give_up(segment)
        return await self._seal_rest()

    def seal_later(self, rows: Iterable[SegmentRow]) -> None:
        """What a run before left open and could not be sealed at the start is sealed as what is given up here is."""
        self._unsealed |= {row.id: SealSegment(row.id, -1) for row in rows}

    async def aclose(self) -> None:
        """Seal what is open. Call it when no writer is left; after a crash `seal_left_open` does it."""
        while self._idle:
            self.give_up(self._idle.pop())
        await self._seal_rest()

    # -- for writers ---------------------------------------------------------------------------------------------------

    async def take(self, policy: Policy, *, new: bool = False, dips: bool = False) -> OpenSegment:
        """A segment to append to, with `new` one just made; for the caller alone until `give_back` or `give_up`.

        Raises NoSpace, TooFewDisks, and what the store's writer raises.
        """
        await self._turns.acquire()
        try:
            await self._seal_rest()
            for segment in [] if new else [each for each in self._idle if each.row.policy == policy.id]:
                if segment not in self._idle:
                    continue  # somebody took it while another was being sealed
                self._idle.remove(segment)
                if self._new.is_fit(segment, policy, dips=dips):
                    return segment
                self.give_up(segment)
                await self._seal_rest()
            disks = await self._new.choose_disks(policy, dips=dips)
            made = MakeSegment(policy.k, policy.m, policy.stripe_bytes, disks, policy.id)
            return OpenSegment(await self._submit(made), self._disks)
        except BaseException:
            self._turns.release()
            raise

    def give_back(self, segment: OpenSegment, *, alone: bool = False) -> None:
        """End of use; a broken one, or one of a stream alone, is sealed before the next is taken."""
        if segment.broken or alone:
            self.give_up(segment)
        else:
            self._idle.append(segment)
        if len(self._idle) > self.options.open_max:  # of several policies
            self.give_up(self._idle.pop(0))
        self._turns.release()

    def give_up(self, segment: OpenSegment) -> None:
        """Never append to it again: it is sealed as soon as the writer takes the request."""
        added = (segment.missing | segment.replaced()) & ~segment.row.missing
        self._unsealed[segment.row.id] = SealSegment(segment.row.id, segment.synced_end, added)

    async def seal(self, segment: OpenSegment) -> None:
        """End of use, durable: sealed, with what is missing of it recorded."""
        self.give_up(segment)
        try:
            await self._submit(self._unsealed[segment.row.id])
        finally:
            self._turns.release()
        self._unsealed.pop(segment.row.id, None)

    def pin(self, segment_id: int) -> None:
        """See `is_pinned`."""
        self._pins[segment_id] += 1

    def unpin(self, segment_ids: Iterable[int]) -> None:
        """Undo `pin`."""
        for segment in segment_ids:
            self._pins[segment] -= 1
            if not self._pins[segment]:
                del self._pins[segment]

    def spend(self, segment: OpenSegment, datas: Sequence[Buffer], *, dips: bool = False) -> bool:
        """Account for stripes that are to be appended. False when there is no room: the segment must be left."""
        row = segment.row
        length = sum(stripe_pages(shard_length(len(data), row.k)) for data in datas) * PAGE_BYTES
        return all([self._disks.spend(row.disks[index], length, dips=dips) for index in segment.whole()])

    # -- inside --------------------------------------------------------------------------------------------------------

    async def _seal_rest(self) -> bool:
        """Seal what could not be sealed when it was given up. One that refuses now (False) is asked again later."""
        for id_, request in list(self._unsealed.items()):
            try:
                await self._submit(request)
            except (Unavailable, NoSpace) as error:
                if not self._refusal_said:  # every stream that begins comes here
                    log.warning("segment was not sealed yet", segment=id_, reason=str(error))
                self._refusal_said = True
                return False
            self._unsealed.pop(id_, None)
        self._refusal_said = False
        return True


class StripeWriter:
    """Writes one stream's stripes. One task at a time."""

    def __init__(self, pool: SegmentPool, policy: Policy, alone: bool, dips: bool, await_more: AwaitMore) -> None:
        self.policy = policy
        self._pool = pool
        self._alone = alone
        self._dips = dips
        self._await_more = await_more
        self._segment: OpenSegment | None = None
        self._pinned: list[int] = []
        self._parity: list[list[bytearray]] = []
        self._last_end = 0
        self._last_full = False
        self._reserved_bytes = 0
        self.buffers_are_free = True
        """False: a disk that hangs may still read what was handed to the last append. Never write to that again."""
        self.runs: list[Extent] = []
        """What was appended so far: stripes that follow each other in one segment are one extent, of at most 16 MiB."""
        self.segments: dict[int, SegmentRow] = {}
        """Rows of the segments written to, as they were made."""

    async def __aenter__(self) -> "StripeWriter":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
        self._pool.unpin(self._pinned)

    def release(self) -> None:
        """Let another stream have the segment; the next append takes one again. What was appended stays protected.

        For who waits for a slow client: so many streams as segments may be open would keep all others waiting.
        """
        segment, self._segment, self._parity = self._segment, None, []
        if segment is not None:
            self._pool.give_back(segment, alone=self._alone)

    async def append(self, data: Buffer) -> Place:
        """Write one stripe of 1 to `stripe_bytes` bytes. Not durable, and not to be referenced, before `sync`.

        `data` must not change until the call returns. Raises NoSpace, TooFewDisks, and what the store's writer raises;
        then all that this writer appended is garbage.
        """
        return (await self.append_many([data]))[0]

    async def append_many(self, datas: Sequence[Buffer]) -> list[Place]:
        """As `append`, several stripes in one write per disk: cheaper by what a call to a disk costs."""
        limit = self.policy.stripe_bytes
        if not datas or not all(0 < len(data) <= limit for data in datas):
            raise InvalidArgument(f"stripes of {[len(data) for data in datas]} bytes")
        self.buffers_are_free = True
        while True:
            segment = await self._current()
            if not self._pool.spend(segment, datas, dips=self._dips):
                await self._leave(segment)
                continue
            encoded = await self._encode(segment, datas)
            stripe = segment.end
            if await segment.write(encoded):
                break
            # the shards' buffers may still be read by a thread that hangs: they are dropped
            self._parity, self.buffers_are_free = [], False
            await self._leave(segment)
        places = []
        for data, each in zip(datas, encoded, strict=True):
            segment.data_bytes += len(data)
            self._reserved_bytes = max(0, self._reserved_bytes - len(data))
            self._note(segment, stripe, len(data), stripe + each.pages_count)
            places.append(Place(segment.row.id, stripe))
            stripe += each.pages_count
        return places

    async def _encode(self, segment: OpenSegment, datas: Sequence[Buffer]) -> list[EncodedStripe]:
        """Parity of full stripes goes into buffers that are kept: fresh memory costs more than the coding."""
        kept, self._parity = self._parity, []
        encoded: list[EncodedStripe] = []
        stripe = segment.end
        for data in datas:
            is_full = len(data) == segment.row.stripe_bytes
            each = await self._pool.stripes.encode(segment.row, stripe, data, kept.pop() if is_full and kept else None)
            encoded.append(each)
            stripe += each.pages_count
            parity = [buffer for buffer in each.payloads[segment.row.k :] if isinstance(buffer, bytearray)]
            if is_full and len(parity) == segment.row.m:
                self._parity.append(parity)
        return encoded

    async def reserve(self, length: int) -> None:
        """Make that the next `length` bytes go to one segment, though it be longer than others for that, unless a disk
        fails meanwhile.
        """
        segment = self._segment
        if segment is not None and segment.data_bytes + length > self._pool.options.segment_bytes:
            await self._leave(segment)
        segment = await self._current()
        if segment.data_bytes + length > self._pool.options.segment_bytes and segment.data_bytes:
            await self._leave(segment)
        self._reserved_bytes = length

    async def sync(self) -> None:
        """All that was appended is durable on return, on as many shards as are asked for. Raises TooFewDisks."""
        segment = self._segment
        if segment is None:
            return
        await segment.sync(self.policy.shards_min)
        if segment.broken:
            self._segment = None
            await self._pool.seal(segment)

    async def _current(self) -> OpenSegment:
        segment = self._segment
        is_full = segment is not None and segment.data_bytes >= self._pool.options.segment_bytes
        if segment is not None and is_full and not self._reserved_bytes:
            await self._leave(segment)
        asked_s = trio.current_time()
        while self._segment is None:
            try:
                self._segment = segment = await self._pool.take(self.policy, new=self._alone, dips=self._dips)
            except NoSpace:
                if not await self._await_more(asked_s):
                    raise
                continue
            self._pool.pin(segment.row.id)
            self._pinned.append(segment.row.id)
            self.segments[segment.row.id] = segment.row
        assert segment is not None
        return segment

    async def _leave(self, segment: OpenSegment) -> None:
        """Done with a segment: what this stream has in it is made durable, then it is sealed."""
        if self.runs and self.runs[-1].segment == segment.row.id:
            await segment.sync(self.policy.shards_min)
        self._segment, self._reserved_bytes = None, 0
        await self._pool.seal(segment)

    def _note(self, segment: OpenSegment, stripe: int, length: int, end: int) -> None:
        id_ = segment.row.id
        last = self.runs[-1] if self.runs else None
        follows = last is not None and last.segment == id_ and self._last_full and self._last_end == stripe
        if follows and last is not None and last.length + length <= self._pool.options.extent_bytes_max:
            self.runs[-1] = Extent(last.length + length, id_, last.stripe, 0)
        else:
            self.runs.append(Extent(length, id_, stripe, 0))
        self._last_end = end
        self._last_full = length == segment.row.stripe_bytes


async def seal_left_open(rows: Iterable[SegmentRow], submit: Submit) -> None:
    """At a start: seal the segments that a run before left open."""
    for row in rows:
        await submit(SealSegment(row.id, -1))
