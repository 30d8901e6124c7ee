"""Stripes: any range of them, verified, from whatever shards are there.

Theory of operation. A range lies in one or a few data shards. Those on disks that are well are read first, from memory
where they are resident; nothing is returned before its blocks were verified. A shard that is missing, damaged or late
is made good from the same columns of any k others, in order of trust: shards on disks that are well, then those on
disks that keep a read waiting just now, then those the catalog says are not whole (each stripe is verified, so what is
there is as good as any). Whatever answers first is taken.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio

from couchestord.ec.codec import Buffer, Codec, Engine
from couchestord.ec.gather import Gathering, ShardRange
from couchestord.ec.resident import ResidentStripes
from couchestord.ec.shapes import NotFull, by_blocks, check_agreement, columns_of, cut, full_shape, joined
from couchestord.ec.shardfile import ShardFile
from couchestord.ec.shards import (
    EncodedStripe,
    SegmentIdentity,
    StripeHeader,
    encode_stripe,
    full_stripe_pages,
)
from couchestord.ec.trust import Damage, ShardTrust
from couchestord.errors import Corrupt, DataLost, DiskError, DiskGone, UnknownFormat
from couchestord.io.catalog.read import SegmentRow
from couchestord.io.disks import Disks

PIECE_BYTES_MAX = 1 << 20
FAST_ENGINE_FACTOR = 20
"""How much faster than zfec other engines are, about."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class StripeOptions:
    hedge_s: float = 0.3
    """How long a read may take before the others are asked."""
    headers_cached_max: int = 4096
    """Stripes whose headers are kept, some 300 bytes a shard."""
    damages_noted_max: int = 4096
    coding_threads_max: int = 2
    thread_bytes_min: int = 192 << 10
    """From how many bytes on zfec works in a thread: some 0.2 ms of work."""


class StripeStore:
    """Reads and encodes stripes. Belongs to the store's task context.

    `nursery` holds reads that outlive their request because their disk is slow: cancel it before the disks are closed.
    `on_damage` hears of each shard that turned out missing or damaged, again after a minute or `forget_damage`.
    """

    def __init__(
        self,
        disks: Disks,
        engine: Engine,
        nursery: trio.Nursery,
        *,
        options: StripeOptions = StripeOptions(),
        on_damage: Damage | None = None,
    ) -> None:
        self._disks = disks
        self._engine = engine
        self._nursery = nursery
        self._options = options
        self._trust = ShardTrust(disks, options.hedge_s, options.damages_noted_max, on_damage)
        self._codecs: dict[tuple[int, int], Codec] = {}
        self._resident = ResidentStripes(disks, self._trust, options.headers_cached_max)
        self._limiter: trio.CapacityLimiter | None = None
        self.degraded_reads_count = 0

    # -- read --------------------------------------------------------------------------------------------------------

    async def read(self, segment: SegmentRow, stripe: int, start: int, length: int) -> Buffer:
        """`length` bytes from `start` on of one stripe's data, verified.

        Raises DataLost when fewer than k shards have them, or the stripe is shorter.
        """
        return joined(await self._pieces(segment, stripe, start, length))

    async def load(self, segment: SegmentRow, stripe: int, start: int, length: int) -> memoryview:
        """As `read_run`, all of it at once: for ranges that are little more than a stripe at most."""
        pieces: list[memoryview] = []
        turns, start = divmod(start, segment.stripe_bytes)
        step = full_stripe_pages(segment.k, segment.stripe_bytes)
        stripe += turns * step
        while length > 0:
            take = min(length, segment.stripe_bytes - start)
            pieces += await self._pieces(segment, stripe, start, take)
            stripe, start, length = stripe + step, 0, length - take
        return joined(pieces)

    def read_nowait(
        self, segment: SegmentRow, stripe: int, start: int, length: int, memory: memoryview | None = None
    ) -> memoryview | None:
        """As `read_run` at once: None unless the range lies in one shard that is trusted, resident in memory and right.
        With `memory`, of RESIDENT_BYTES_MAX, the bytes are in there, and fewer where a shard ends.

        `start` counts from the beginning of `stripe` and may lie in a later one.
        """
        turns, start = divmod(start, segment.stripe_bytes)
        stripe += turns * full_stripe_pages(segment.k, segment.stripe_bytes)
        if memory is not None:
            return self._resident.read(segment, stripe, start, min(length, segment.stripe_bytes - start), memory)
        found = self._resident.read(segment, stripe, start, length)
        return found if found is not None and len(found) == length else None

    async def read_run(
        self, segment: SegmentRow, stripe: int, start: int, length: int, *, lent: bool = False
    ) -> AsyncGenerator[memoryview, None]:
        """The same over stripes that follow each other, all but the last full, in pieces of at most 1 MiB.

        `start` counts from the beginning of `stripe` and may lie in a later one. DataLost may come after some pieces.
        `lent`: a piece is good only until the next is asked for, since its memory is used again: cheaper by far.
        """
        turns, start = divmod(start, segment.stripe_bytes)
        step = full_stripe_pages(segment.k, segment.stripe_bytes)
        stripe += turns * step
        with self._resident.lent() if lent else nullcontext() as memory:
            while length > 0:
                end = start + min(length, segment.stripe_bytes - start)
                length -= end - start
                while start < end:
                    piece = self._resident.read(segment, stripe, start, end - start, memory)
                    if piece is None:
                        break
                    start += len(piece)
                    yield piece
                for piece in await self._pieces(segment, stripe, start, end - start):
                    for at in range(0, len(piece), PIECE_BYTES_MAX):
                        yield piece[at : at + PIECE_BYTES_MAX]
                stripe += step
                start = 0

    async def shape(self, segment: SegmentRow, stripe: int, *, near: int = 0, report: bool = True) -> StripeHeader:
        """The header of some shard of a stripe, of shard `near` best: its lengths are those of all of them.

        Raises DataLost when no shard has a valid one. `report` False: as a question whether there is such a stripe,
        which says nothing of damage.
        """
        known = self._resident.known_shape(segment, stripe)
        if known is not None:
            return known
        gathering: Gathering[StripeHeader] = Gathering(self._nursery)
        order = self._trust.by_trust(segment, first=near)
        for index in order[:1]:
            try:
                resident = self._resident.header(segment, stripe, index)
            except (Corrupt, UnknownFormat):
                resident = None  # asked again below, where it is counted
            if resident is not None:
                return resident
        while not gathering.good:
            if order:
                index = order.pop(0)
                gathering.start(ShardRange(index, 0, 0), partial(self._header, segment, stripe, index, report))
            elif not gathering.pending:
                raise self._trust.lost(segment, stripe, 1, gathering.bad)
            timeout_s = self._options.hedge_s if order else float("inf")
            await gathering.wait(timeout_s)
        return next(iter(gathering.good.values()))

    async def shard(self, segment: SegmentRow, stripe: int, shape: StripeHeader, wanted: ShardRange) -> Buffer:
        """Blocks of one shard of a stripe, parity too: from its place, or from k others. `shape`: see there.

        Raises DataLost. Fewer than k shards are no news of damage: the stripe may be one that was never finished.
        """
        return (await self._gather(segment, stripe, shape, [wanted], report_loss=False))[wanted]

    async def count_headers(self, segment: SegmentRow, stripe: int) -> int:
        """How many shards of a stripe have a valid header on their disk now; those that should and do not are noted."""
        good_count = 0

        async def check(index: int) -> None:
            nonlocal good_count
            try:
                await self._trust.timed(segment, index, partial(self.file(segment, index).header, stripe))
            except (Corrupt, UnknownFormat, DiskError):
                return
            good_count += 1

        async with trio.open_nursery() as nursery:
            for index in range(segment.k + segment.m):
                nursery.start_soon(check, index)
        return good_count

    def file(self, segment: SegmentRow, index: int) -> ShardFile:
        """The file of one shard. Raises DiskGone when it has no disk that is good."""
        return self._resident.file(segment, index)

    def identity(self, segment: SegmentRow) -> SegmentIdentity:
        """What the headers of a segment's shards say."""
        return self._resident.identity(segment)

    def forget_damage(self, segment_id: int, index: int, disk: int) -> None:
        """The shard was made good on a disk: report it again when it fails again."""
        self._trust.forget_damage(segment_id, index, disk)

    async def _pieces(self, segment: SegmentRow, stripe: int, start: int, length: int) -> list[memoryview]:
        """The range, shard by shard."""
        assert start >= 0
        if length <= 0:
            return []
        shape = self._resident.known_shape(segment, stripe)
        try:
            return await self._pieces_of(segment, stripe, shape or full_shape(segment), start, length)
        except NotFull as found:
            return await self._pieces_of(segment, stripe, found.header, start, length)

    async def _pieces_of(
        self, segment: SegmentRow, stripe: int, shape: StripeHeader, start: int, length: int
    ) -> list[memoryview]:
        if start + length > shape.length:
            raise DataLost(
                f"segment {segment.id}, stripe {stripe} holds {shape.length} bytes, not the {start + length} asked for"
            )
        cuts = cut(shape, start, length)
        found = await self._gather(segment, stripe, shape, [wanted for wanted, _, _ in cuts])
        return [memoryview(found[wanted])[low:high] for wanted, low, high in cuts]

    async def _gather(
        self,
        segment: SegmentRow,
        stripe: int,
        shape: StripeHeader,
        wanted: Sequence[ShardRange],
        report_loss: bool = True,
    ) -> Mapping[ShardRange, Buffer]:
        """The wanted ranges, made good where need be; shards that turned out bad are noted."""
        gathering: Gathering[Buffer] = Gathering(self._nursery)
        for each in wanted:
            if self._trust.is_trusted(segment, each.shard):
                self._ask(segment, stripe, shape, each, gathering)
        deadline = trio.current_time() + self._options.hedge_s
        while gathering.pending and await gathering.wait(deadline - trio.current_time()):
            pass
        try:
            if len(gathering.good) < len(wanted):
                try:
                    await self._make_good(segment, stripe, shape, wanted, gathering)
                except DataLost:
                    lost = [each for each in wanted if each not in gathering.good]
                    columns = by_blocks(lost)
                    if len(columns) == 1 and len(lost) == len(wanted):
                        raise  # else what has come, if late, was read where it was wanted, and not where others lack it
                    gathering.good |= await self._make_good_by_blocks(segment, stripe, shape, columns, report_loss)
        finally:
            # a stripe that was never finished, of which too little is there, is no damage: nothing can be made good
            if report_loss or len({each.shard for each in gathering.good}) >= segment.k:
                for each, reason in gathering.bad.items():
                    self._trust.note(segment, each.shard, reason)
        return gathering.good

    async def _make_good(
        self,
        segment: SegmentRow,
        stripe: int,
        shape: StripeHeader,
        wanted: Sequence[ShardRange],
        gathering: Gathering[Buffer],
    ) -> None:
        """Read the missing columns of other shards until there are k, or until what was late has come."""
        late = [each for each in wanted if each not in gathering.good]
        low, high = min(each.low for each in late), max(each.high for each in late)
        known = {each.shard for each in wanted if each in gathering.bad or each in gathering.pending}
        whole = {each.shard for each in gathering.good if each.low <= low and each.high >= high}
        order = [index for index in self._trust.by_trust(segment) if index not in known | whole]
        spares: list[ShardRange] = []
        while any(each not in gathering.good for each in wanted):
            columns = columns_of(gathering.good, low, high)
            if len(columns) >= segment.k:
                await self._reconstruct(segment, wanted, gathering.good, columns, low)
                return
            asked = sum(each in gathering.pending for each in spares)
            if not order or len(columns) + asked >= segment.k:
                if not gathering.pending:
                    raise self._trust.lost(segment, stripe, len(columns), gathering.bad)
                if await gathering.wait(self._options.hedge_s if order else float("inf")) or not order:
                    continue
            spare = ShardRange(order.pop(0), low, high)
            spares.append(spare)
            self._ask(segment, stripe, shape, spare, gathering)

    async def _make_good_by_blocks(
        self,
        segment: SegmentRow,
        stripe: int,
        shape: StripeHeader,
        columns: Sequence[Mapping[ShardRange, ShardRange]],
        report_loss: bool,
    ) -> dict[ShardRange, Buffer]:
        """Where one shard has rot here and another there, each column of blocks may be whole in k others."""
        parts: dict[ShardRange, list[Buffer]] = {}
        for column in columns:
            found = await self._gather(segment, stripe, shape, list(column.values()), report_loss)
            for each, part in column.items():
                parts.setdefault(each, []).append(found[part])
        return {each: b"".join(blocks) for each, blocks in parts.items()}

    def _ask(
        self,
        segment: SegmentRow,
        stripe: int,
        shape: StripeHeader,
        wanted: ShardRange,
        gathering: Gathering[Buffer],
    ) -> None:
        """Take a range from memory, or begin to read it."""
        try:
            resident = self._blocks_nowait(segment, stripe, shape, wanted)
        except (Corrupt, UnknownFormat, DiskGone) as error:
            gathering.bad[wanted] = error
            return
        if resident is not None:
            gathering.good[wanted] = resident
        else:
            gathering.start(wanted, partial(self._blocks, segment, stripe, shape, wanted))

    async def _reconstruct(
        self,
        segment: SegmentRow,
        wanted: Sequence[ShardRange],
        good: dict[ShardRange, Buffer],
        columns: dict[int, Buffer],
        low: int,
    ) -> None:
        self.degraded_reads_count += 1
        late = [each for each in wanted if each not in good]
        codec = self._codec(segment)
        size = len(next(iter(columns.values()))) * segment.k
        rebuilt = await self._compute(size, partial(codec.reconstruct, columns, [each.shard for each in late]))
        for each in late:
            good[each] = memoryview(rebuilt[each.shard])[each.low - low : each.high - low]

    # -- shards ------------------------------------------------------------------------------------------------------

    async def _header(self, segment: SegmentRow, stripe: int, index: int, report: bool = True) -> StripeHeader:
        found = self._resident.known_header(segment, stripe, index)
        if found is None:
            read = partial(self.file(segment, index).header, stripe)
            found = await self._trust.timed(segment, index, read, report=report)
            self._resident.remember(segment, stripe, index, found)
        return found

    def _blocks_nowait(
        self, segment: SegmentRow, stripe: int, shape: StripeHeader, wanted: ShardRange
    ) -> Buffer | None:
        header = self._resident.header(segment, stripe, wanted.shard)
        if header is None:
            return None
        check_agreement(header, shape)
        return self.file(segment, wanted.shard).blocks_nowait(stripe, header, wanted.low, wanted.high)

    async def _blocks(self, segment: SegmentRow, stripe: int, shape: StripeHeader, wanted: ShardRange) -> Buffer:
        file, (index, low, high) = self.file(segment, wanted.shard), wanted
        header = self._resident.known_header(segment, stripe, index)
        if header is not None:
            check_agreement(header, shape)
            return await self._trust.timed(
                segment, index, partial(file.blocks, stripe, header, low, high), report=False
            )
        read = partial(file.header_and_blocks, stripe, low, high, shape.length)
        found, payload = await self._trust.timed(segment, index, read, report=False)
        self._resident.remember(segment, stripe, index, found)
        check_agreement(found, shape)
        assert payload is not None
        return payload

    # -- coding ------------------------------------------------------------------------------------------------------

    async def encode(
        self, segment: SegmentRow, stripe: int, data: Buffer, parity: Sequence[bytearray] | None = None
    ) -> EncodedStripe:
        """As `shards.encode_stripe`, in a thread when it takes long."""
        codec = self._codec(segment)
        work = partial(encode_stripe, codec, self.identity(segment), stripe, data, parity)
        return await self._compute(len(data), work)

    def _codec(self, segment: SegmentRow) -> Codec:
        found = self._codecs.get((segment.k, segment.m))
        if found is None:
            found = self._codecs[segment.k, segment.m] = Codec(segment.k, segment.m, self._engine)
        return found

    async def _compute(self, length: int, work: Callable[[], Result]) -> Result:
        factor = 1 if self._engine.name == "zfec" else FAST_ENGINE_FACTOR
        if length < self._options.thread_bytes_min * factor:
            return work()
        if self._limiter is None:
            self._limiter = trio.CapacityLimiter(self._options.coding_threads_max)
        return await trio.to_thread.run_sync(work, limiter=self._limiter)
