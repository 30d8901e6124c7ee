"""Seen to fail with: removal that leaves a hole in a chain, growth that forgets the count, bits of places that meet."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couchestord.cache import l2index as index
from couchestord.cache.l2format import ALIGNMENT_BYTES
from couchestord.cache.l2index import L2Index


@given(st.integers(16, (1 << 44) - 1), st.integers(0, (1 << 20) - 1))
def test_a_key_stands_for_one_chunk(extent: int, chunk: int) -> None:
    key = index.key_of(extent, chunk)
    assert 0 < key < 1 << 64
    assert (index.extent_of(key), index.chunk_of(key)) == (extent, chunk)


def test_what_no_key_stands_for_is_none() -> None:
    assert index.key_of(1 << 44, 0) == 0
    assert index.key_of(16, 1 << 20) == 0


@given(
    st.integers(0, (1 << 16) - 1),
    st.integers(64, index.SEGMENT_BYTES_MAX // ALIGNMENT_BYTES - 1),
    st.integers(1, index.RECORD_BYTES_MAX // ALIGNMENT_BYTES),
)
def test_a_place_says_where(segment: int, offset: int, length: int) -> None:
    place = index.place_of(segment, offset * ALIGNMENT_BYTES, length * ALIGNMENT_BYTES)
    assert 0 < place < 1 << 64
    assert index.segment_of(place) == segment
    assert index.range_of(place) == (offset * ALIGNMENT_BYTES, length * ALIGNMENT_BYTES)
    assert not index.was_read(place)


@pytest.fixture(scope="module")
def neighbours() -> list[int]:
    """Keys that meet in one small table, so that chains are long."""
    tables = L2Index()
    tables.put(16 << 20, 1)
    first = tables._table(16 << 20)
    return [key for key in range(16 << 20, 300_000 << 20, 1 << 20) if tables._table(key) is first]


def test_no_place_is_found_for_a_chunk_without_a_key() -> None:
    """Not in a slot that was emptied, either."""
    found = L2Index()
    keys = [key for key in range(16 << 20, 300_000 << 20, 1 << 20) if found._table(key) is found._table(0)]
    for key in keys:
        found.put(key, 1 << 12)
    assert found.count > 50
    for key in keys:
        found.remove(key)
        assert found.get(0) == 0


@pytest.mark.parametrize("seed", range(10))
def test_is_as_a_dict(seed: int, neighbours: list[int]) -> None:
    rng = random.Random(seed)
    found, model = L2Index(), dict[int, int]()
    keys = neighbours if seed % 2 else [index.key_of(16 + number, rng.randrange(3)) for number in range(200)]
    assert len(keys) > 50
    for _ in range(3000):
        key, what = rng.choice(keys), rng.random()
        place = index.place_of(rng.randrange(99), 4096 + 64 * rng.randrange(999), 64 * rng.randrange(1, 99))
        if what < 0.4:
            found.put(key, place)
            model[key] = place
        elif what < 0.5:
            assert found.add(key, place) == (key not in model)
            model.setdefault(key, place)
        elif what < 0.8:
            found.remove(key)
            model.pop(key, None)
        elif key in model:
            found.mark(key)
            model[key] |= 1
            assert index.was_read(found.get(key))
        assert found.get(key) == model.get(key, 0)
    assert found.count == len(model)
    assert {key: found.get(key) for key in keys} == {key: model.get(key, 0) for key in keys}
    assert sorted(found) == sorted(model)
