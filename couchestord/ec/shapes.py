"""What lies where in a stripe, as its header says, or as is guessed before one was read."""

from collections.abc import Mapping, Sequence

from couchestord.ec.codec import Buffer
from couchestord.ec.gather import ShardRange
from couchestord.ec.shards import CHECK_BYTES, StripeHeader, shard_length
from couchestord.errors import Corrupt
from couchestord.io.catalog.read import SegmentRow


class NotFull(Exception):
    """A stripe whose shape was guessed holds less. Whoever waits for its bytes asks again, elsewhere."""

    def __init__(self, header: StripeHeader) -> None:
        super().__init__(header)
        self.header = header


def full_shape(segment: SegmentRow) -> StripeHeader:
    """A guess, which has no sums: most stripes are full, so that header and bytes can be read at once."""
    return StripeHeader(segment.stripe_bytes, shard_length(segment.stripe_bytes, segment.k), b"")


def check_agreement(header: StripeHeader, shape: StripeHeader) -> None:
    """Raises Corrupt when a shard says that its stripe is of another shape than that another said, or NotFull when that
    was a guess.
    """
    if header.length == shape.length:
        return
    if not shape.sums:
        raise NotFull(header)
    raise Corrupt(f"a shard says its stripe holds {header.length} bytes, another says {shape.length}")


def cut(shape: StripeHeader, start: int, length: int) -> list[tuple[ShardRange, int, int]]:
    """The blocks that hold a range of a stripe's data, shard by shard, and where in each its part begins and ends."""
    size = shape.shard_length
    cuts: list[tuple[ShardRange, int, int]] = []
    for index in range(start // size, (start + length - 1) // size + 1):
        low = max(0, start - index * size)
        high = min(size, start + length - index * size)
        aligned = low // CHECK_BYTES * CHECK_BYTES
        wanted = ShardRange(index, aligned, min(size, -(-high // CHECK_BYTES) * CHECK_BYTES))
        cuts.append((wanted, low - aligned, high - aligned))
    return cuts


def by_blocks(wanted: Sequence[ShardRange]) -> list[dict[ShardRange, ShardRange]]:
    """Column of blocks by column of blocks: which part of each range lies there."""
    low, high = min(each.low for each in wanted), max(each.high for each in wanted)
    return [
        {
            each: ShardRange(each.shard, max(each.low, at), min(each.high, at + CHECK_BYTES))
            for each in wanted
            if each.low < at + CHECK_BYTES and at < each.high
        }
        for at in range(low, high, CHECK_BYTES)
    ]


def columns_of(good: Mapping[ShardRange, Buffer], low: int, high: int) -> dict[int, Buffer]:
    """By shard index, the payloads that are here between two columns."""
    return {
        each.shard: memoryview(payload)[low - each.low : high - each.low]
        for each, payload in good.items()
        if each.low <= low and each.high >= high
    }


def joined(pieces: Sequence[memoryview]) -> memoryview:
    """All of it; no copy is made of one piece."""
    return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
