"""Drafts beside plain bytes."""

import random

import pytest

from couchestord.frontends.posix.drafts import Draft, Layer


def apply(base: bytes, layer: Layer) -> bytes:
    """What a layer makes of a file that is published."""
    data = bytearray(base[: layer.cut])
    data += bytes(max(0, layer.size - len(data)))
    for content, lays in layer.contents():
        for lay in lays:
            data[lay.offset : lay.offset + lay.length] = content[lay.start : lay.start + lay.length]
    assert len(data) == layer.size
    return bytes(data)


@pytest.mark.parametrize("seed", range(40))
def test_as_plain_bytes(seed: int) -> None:
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


def test_what_is_held_is_counted() -> None:
    layer = Layer(0, 0)
    rng = random.Random(1)
    for _ in range(500):
        if rng.random() < 0.1:
            layer.truncate(rng.randrange(300))
        layer.write(rng.randrange(300), bytes(rng.randrange(1, 50)))
        assert layer.dirty_bytes == sum(map(len, layer.runs))
        ends = [start + len(run) for start, run in zip(layer.starts, layer.runs, strict=True)]
        assert all(end < start for end, start in zip(ends, layer.starts[1:], strict=False))
