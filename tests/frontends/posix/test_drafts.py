"""Drafts beside plain bytes."""

import random
import time

import pytest

from couchestord.frontends.posix import drafts
from couchestord.frontends.posix.drafts import PIECE_COST_BYTES, Draft, Layer


def apply(base: bytes, layer: Layer) -> bytes:
    """What a layer makes of a file that is published."""
    data = bytearray(base[: layer.cut])
    data += bytes(max(0, layer.size - len(data)))
    for pieces, length, lays in layer.contents():
        content = b"".join(pieces)
        assert len(content) == length == sum(each.length for each in lays)
        for lay in lays:
            data[lay.offset : lay.offset + lay.length] = content[lay.start : lay.start + lay.length]
    assert len(data) == layer.size
    return bytes(data)


@pytest.mark.parametrize("piece_bytes_max", [1, 20, 60, drafts.PIECE_BYTES_MAX])
@pytest.mark.parametrize("seed", range(15))
def test_as_plain_bytes(monkeypatch: pytest.MonkeyPatch, seed: int, piece_bytes_max: int) -> None:
    monkeypatch.setattr(drafts, "PIECE_BYTES_MAX", piece_bytes_max)
    rng = random.Random(seed)
    published = rng.randbytes(rng.randrange(100))
    plain = bytearray(published)
    draft = Draft(len(published))
    layer: Layer | None = None
    for _ in range(300):
        kind = rng.random()
        if kind < 0.6:
            offset, data = rng.randrange(160), rng.randbytes(rng.randrange(1, 40))
            plain += bytes(max(0, offset - len(plain)))
            plain[offset : offset + len(data)] = data
            draft.write(offset, data, 1)
        elif kind < 0.75:
            size = rng.randrange(200)
            plain = plain[:size] + bytes(max(0, size - len(plain)))
            draft.truncate(size, 1)
        elif layer is None:
            layer = draft.begin()
        elif rng.random() < 0.5:
            published, layer = apply(published, layer), None
            draft.published()
        else:
            layer = None
            draft.failed()
        assert draft.size == len(plain)
        first = rng.randrange(len(plain) + 1)
        length = rng.randrange(len(plain) - first + 1)
        found = bytearray(published[first : first + length])
        found += bytes(length - len(found))
        for each in draft.layers():
            each.read_over(found, first)
        assert found == plain[first : first + length]
    if layer is not None:
        draft.failed()
    assert apply(published, draft.begin()) == plain


@pytest.mark.parametrize("piece_bytes_max", [1, 70, drafts.PIECE_BYTES_MAX])
def test_what_is_held_is_counted(monkeypatch: pytest.MonkeyPatch, piece_bytes_max: int) -> None:
    monkeypatch.setattr(drafts, "PIECE_BYTES_MAX", piece_bytes_max)
    layer = Layer(0, 0)
    rng = random.Random(1)
    for _ in range(500):
        if rng.random() < 0.1:
            layer.truncate(rng.randrange(300))
        layer.write(rng.randrange(300), bytes(rng.randrange(1, 50)))
        assert layer.dirty_bytes == sum(map(len, layer.pieces)) + PIECE_COST_BYTES * len(layer.pieces)
        ends = [start + len(piece) for start, piece in zip(layer.starts, layer.pieces, strict=True)]
        assert all(end <= start for end, start in zip(ends, layer.starts[1:], strict=False))


def test_long_pieces_are_what_was_written_and_short_ones_become_one() -> None:
    layer, long = Layer(0, 0), [bytes([number]) * drafts.PIECE_BYTES_MAX for number in range(3)]
    for number, data in enumerate(long):
        layer.write(number * len(data), data)
    ((pieces, length, lays),) = layer.contents()
    assert [one is other for one, other in zip(pieces, long, strict=True)] == [True] * 3
    assert (length, len(lays)) == (3 * drafts.PIECE_BYTES_MAX, 1)
    layer.write(drafts.PIECE_BYTES_MAX + 5, b"into the second")
    assert long[1] == bytes([1]) * drafts.PIECE_BYTES_MAX  # which may be in use elsewhere
    order = list(range(0, 1 << 20, 1000))
    for shuffled in (order, order[::-1], random.Random(1).sample(order, len(order))):
        layer = Layer(0, 0)
        for at in shuffled:
            layer.write(at, bytes(1000))
        assert len(layer.pieces) <= 2 * (1 << 20) // drafts.PIECE_BYTES_MAX + 1
        assert max(map(len, layer.pieces)) <= drafts.PIECE_BYTES_MAX


@pytest.mark.parametrize("order", ["backwards", "at random"])
def test_many_short_writes_cost_no_more_each_than_few(order: str) -> None:
    offsets = list(range(0, 48 << 20, 4096))[::-1]
    if order == "at random":
        random.Random(1).shuffle(offsets)
    layer, data, begun_s = Layer(0, 0), bytes(4096), time.process_time()
    for offset in offsets:
        layer.write(offset, data)
    # some 50 ms; to move all that lies beside each of them takes minutes
    assert time.process_time() - begun_s < 5
    assert layer.length == 48 << 20


def test_what_could_not_be_published_may_be_in_use_still() -> None:
    """An error on the way knows what it was sending; Python refuses to resize that."""
    draft = Draft(0)
    for at in range(0, 3000, 10):
        draft.write(at, b"0123456789", 1)
    views = [memoryview(piece) for content in draft.begin().contents() for piece in content.pieces]
    draft.write(5, b"new" * 900, 1)
    draft.truncate(2800, 1)
    draft.failed()
    draft.write(2, b"later", 1)
    draft.truncate(2001, 1)
    assert b"".join(views) == b"0123456789" * 300
    assert apply(b"", draft.begin()) == b"01later" + (b"new" * 900)[2:1996]
