"""EcEncoder and EcDecoder: bytes to shards and back."""

import random
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couchestord.ec import Buffer, EcDecoder, EcEncoder, choose_engine
from couchestord.errors import DataLost, InvalidArgument

ENGINE = choose_engine()


@given(st.integers(1, 12), st.integers(0, 6), st.binary(max_size=5000), st.randoms(use_true_random=False))
def test_library_round_trip(k: int, m: int, data: bytes, rng: random.Random) -> None:
    shards = EcEncoder(k, m, engine=ENGINE).encode(data)
    assert len(shards) == k + m
    assert {len(shard) for shard in shards} == {-(-len(data) // k)}
    assert b"".join(shards[:k]) == data.ljust(k * len(shards[0]), b"\0")
    lost = rng.sample(range(k + m), rng.randint(0, m))
    decoder = EcDecoder(k, m, engine=ENGINE)
    as_list = [None if index in lost else shard for index, shard in enumerate(shards)]
    as_mapping: Mapping[int, Buffer] = {index: memoryview(s) for index, s in enumerate(as_list) if s is not None}
    assert decoder.decode(as_list, len(data)) == data
    assert decoder.decode(as_mapping, len(data)) == data
    assert isinstance(decoder.decode(as_mapping, len(data)), bytes)


def test_library_refuses_what_it_cannot_do() -> None:
    for cls in (EcEncoder, EcDecoder):
        for k, m in [(0, 1), (1, -1), (200, 56)]:
            with pytest.raises(InvalidArgument):
                cls(k, m)
    shards = EcEncoder(4, 2).encode(memoryview(b"0123456789"))
    decoder = EcDecoder(4, 2)
    with pytest.raises(DataLost, match=r"3 of 4\+2"):
        decoder.decode([None, None, None, *shards[3:]], 10)
    with pytest.raises(InvalidArgument, match="4 shards in the list"):
        decoder.decode(shards[2:], 10)
    with pytest.raises(InvalidArgument, match="differ"):
        decoder.decode([*shards[:5], b""], 10)
    with pytest.raises(InvalidArgument, match="no shard"):
        decoder.decode({**dict(enumerate(shards)), 6: shards[0]}, 10)
    for length in (-1, 13):
        with pytest.raises(InvalidArgument, match="length"):
            decoder.decode(shards, length)
