"""Seen to fail with: lengths not compared, what does not shrink compressed all the same."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couchestord.cache.compressor import WORTH_RATIO, Lz4, NoCompression, make_compressor
from couchestord.errors import Corrupt


@given(st.binary(max_size=2000), st.integers(1, 50))
def test_what_was_compressed_comes_back(data: bytes, times: int) -> None:
    whole = data * times
    packed = Lz4().compress(whole)
    if packed is not None:
        assert len(packed) < WORTH_RATIO * len(whole)
        assert Lz4().decompress(memoryview(packed), len(whole)) == whole


def test_random_bytes_are_left_as_they_are() -> None:
    rest = bytes((index * 7919 + index * index // 3) % 251 for index in range(300))
    assert Lz4().compress(rest) is None
    assert NoCompression().compress(bytes(1000)) is None


@pytest.mark.parametrize("length", [999, 1001, 0])
def test_another_length_is_damage(length: int) -> None:
    packed = Lz4().compress(bytes(1000))
    assert packed is not None
    for compressor, data in ((Lz4(), packed), (NoCompression(), bytes(1000))):
        with pytest.raises(Corrupt):
            compressor.decompress(data, length)


@given(st.binary(max_size=300), st.integers(0, 70_000))
def test_any_bytes_are_damage_or_of_that_length(data: bytes, length: int) -> None:
    with suppress(Corrupt):
        assert len(Lz4().decompress(data, length)) == length


def test_names() -> None:
    assert isinstance(make_compressor("lz4"), Lz4)
    assert isinstance(make_compressor("none"), NoCompression)
    assert (Lz4.codec, NoCompression.codec) == (1, 0)
