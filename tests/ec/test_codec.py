"""Both engines: equal bytes, every pattern of loss, and what a caller may do wrong."""

import itertools
import random
import threading
from collections.abc import Sequence
from typing import ClassVar

import pytest
from codewords import codeword, random_shards
from hypothesis import given
from hypothesis import strategies as st

from couchestord.ec import isal
from couchestord.ec.codec import Buffer, Codec, Coder, Engine, ZfecEngine
from couchestord.errors import DataLost, InvalidArgument

ISAL = next(isal.candidates(), None)
needs_isal = pytest.mark.skipif(ISAL is None, reason="ISA-L is absent: no cffi, or neither libisal2 nor pyeclib")
ENGINES = [
    pytest.param(ZfecEngine(), id="zfec"),
    pytest.param(ISAL, id="isal", marks=needs_isal),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("k", "m"), [(1, 1), (1, 3), (2, 1), (4, 2), (6, 3), (10, 4), (3, 9), (32, 8)])
@pytest.mark.parametrize("size_bytes", [1, 7, 31, 32, 33, 100, 1023, 1024, 1025, 5003])
def test_parity_is_the_product_with_the_generator(engine: Engine, k: int, m: int, size_bytes: int) -> None:
    data = random_shards(k, size_bytes)
    expected = codeword(k, m, data)[k:]
    assert Codec(k, m, engine).encode(data) == expected
    assert engine.coder(k, m).encode(data, size_bytes) == expected
    targets = [bytearray(size_bytes) for _ in range(m)]
    Codec(k, m, engine).encode_into(data, [memoryview(target) for target in targets])
    assert targets == expected


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("k", "m", "size_bytes"), [(4, 2, 1500), (4, 2, 40), (6, 3, 1100), (6, 3, 9), (1, 2, 1200)])
def test_every_pattern_of_loss(engine: Engine, k: int, m: int, size_bytes: int) -> None:
    shards = codeword(k, m, random_shards(k, size_bytes))
    codec = Codec(k, m, engine)
    for lost_count in range(m + 1):
        for lost in itertools.combinations(range(k + m), lost_count):
            present = {index: shard for index, shard in enumerate(shards) if index not in lost}
            assert codec.reconstruct(present, lost) == {index: shards[index] for index in lost}


@pytest.mark.parametrize("engine", ENGINES)
def test_samples_of_loss_of_10_4(engine: Engine) -> None:
    rng = random.Random(104)
    shards = codeword(10, 4, random_shards(10, 2049))
    codec = Codec(10, 4, engine)
    for _ in range(150):
        indexes = rng.sample(range(14), 10)  # In no order: the mapping's order must not matter.
        want = rng.choices(range(14), k=5)  # Present ones and repeated ones too.
        found = codec.reconstruct({index: shards[index] for index in indexes}, want)
        assert found == {index: shards[index] for index in want}


@pytest.mark.parametrize("engine", ENGINES)
def test_fewer_than_k_is_data_lost(engine: Engine) -> None:
    shards = codeword(4, 2, random_shards(4, 2000))
    codec = Codec(4, 2, engine)
    for kept in itertools.combinations(range(6), 3):
        with pytest.raises(DataLost, match=r"3 of 4\+2"):
            codec.reconstruct({index: shards[index] for index in kept}, [0])
    with pytest.raises(DataLost):
        codec.reconstruct({}, [0])


@needs_isal
@given(
    st.integers(1, 20).flatmap(lambda k: st.tuples(st.just(k), st.integers(0, 12))),
    st.integers(0, 3000),
    st.randoms(use_true_random=False),
)
def test_round_trip_across_engines(geometry: tuple[int, int], size_bytes: int, rng: random.Random) -> None:
    """What one engine writes the other reads, for any geometry, length and loss."""
    assert ISAL is not None
    k, m = geometry
    data = random_shards(k, size_bytes, rng.getrandbits(32))
    codecs = [Codec(k, m, ZfecEngine()), Codec(k, m, ISAL)]
    rng.shuffle(codecs)
    shards: list[Buffer] = [*data, *codecs[0].encode(data)]
    assert shards[k:] == codecs[1].encode(data)
    lost = rng.sample(range(k + m), rng.randint(0, m))
    present = {index: shard for index, shard in enumerate(shards) if index not in lost}
    assert codecs[1].reconstruct(present, lost) == {index: shards[index] for index in lost}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size_bytes", [100, 3000])
def test_inputs_are_unchanged(engine: Engine, size_bytes: int) -> None:
    data = random_shards(4, size_bytes)
    copies: list[Buffer] = [bytearray(data[0]), memoryview(bytearray(data[1])), data[2], memoryview(data[3])]
    order = tuple(id(shard) for shard in copies)
    codec = Codec(4, 2, engine)
    shards: list[Buffer] = [*copies, *codec.encode(copies)]
    before = [bytes(shard) for shard in shards]
    present = {index: shards[index] for index in (5, 4, 3, 2)}
    found = codec.reconstruct(present, [0, 1, 2])
    found[2][:] = bytes(size_bytes)  # What comes back is the caller's own, never one of the inputs.
    assert [bytes(shard) for shard in shards] == before
    assert tuple(id(shard) for shard in copies) == order
    assert list(present) == [5, 4, 3, 2]
    assert [present[index] is shards[index] for index in present] == [True] * 4
    assert isinstance(copies[0], bytearray)
    # A coder leaves the sequence alone as well: zfec would sort it in place, even a tuple.
    have = (1, 2, 3, 5)
    taken = tuple(before[index] for index in have)
    engine.coder(4, 2).reconstruct(have, taken, (0,), size_bytes)
    assert taken == tuple(before[index] for index in have)
    copies[0].append(0)  # No buffer is held after a call: this raises BufferError otherwise.


@pytest.mark.parametrize("engine", ENGINES)
def test_edge_geometries_and_empty_shards(engine: Engine) -> None:
    for size_bytes in (0, 5, 2000):
        plain = Codec(1, 0, engine)
        assert plain.encode([bytes(size_bytes)]) == []
        plain.encode_into([bytes(size_bytes)], [])
        assert plain.reconstruct({0: bytes(size_bytes)}, [0]) == {0: bytes(size_bytes)}
        with pytest.raises(DataLost):
            plain.reconstruct({}, [0])
        data = random_shards(1, size_bytes)
        assert Codec(1, 2, engine).encode(data) == data * 2  # A code with k=1 is a mirror.
    wide = random_shards(3, 2000)
    assert Codec(3, 0, engine).encode(wide) == []
    assert Codec(4, 2, engine).encode([b""] * 4) == [b"", b""]
    assert Codec(4, 2, engine).reconstruct(dict.fromkeys((2, 3, 4, 5), b""), [0, 5]) == {0: b"", 5: b""}
    largest = random_shards(200, 1030)
    codec = Codec(200, 55, engine)
    shards: list[Buffer] = [*largest, *codec.encode(largest)]
    assert codec.reconstruct(dict(enumerate(shards[55:], start=55)), [0, 54]) == {0: largest[0], 54: largest[54]}


@pytest.mark.parametrize("engine", ENGINES)
def test_wrong_arguments_are_refused(engine: Engine) -> None:
    for k, m in [(0, 2), (4, -1), (255, 1)]:
        with pytest.raises(InvalidArgument):
            Codec(k, m, engine)
    codec = Codec(4, 2, engine)
    data = random_shards(4, 2000)
    shards = codeword(4, 2, data)
    with pytest.raises(InvalidArgument, match="3 data shards"):
        codec.encode(data[:3])
    with pytest.raises(InvalidArgument, match="differ"):
        codec.encode([*data[:3], data[3][:-1]])
    with pytest.raises(InvalidArgument, match="differ"):
        codec.reconstruct({0: data[0], 1: data[1], 2: data[2], 5: shards[5][1:]}, [3])
    for index in (-1, 6):
        with pytest.raises(InvalidArgument, match="no shard"):
            codec.reconstruct(dict(enumerate(data)), [index])
        with pytest.raises(InvalidArgument, match="no shard"):
            codec.reconstruct({**dict(enumerate(data)), index: data[0]}, [4])
    with pytest.raises(InvalidArgument, match="1 buffers"):
        codec.encode_into(data, [bytearray(2000)])
    with pytest.raises(InvalidArgument, match="1999"):
        codec.encode_into(data, [bytearray(2000), bytearray(1999)])
    # Items of a memoryview are not bytes: C would write past the end of a buffer measured with len().
    with pytest.raises(InvalidArgument, match="8000"):
        codec.encode_into(data, [bytearray(2000), memoryview(bytearray(8000)).cast("I")])
    with pytest.raises((BufferError, TypeError)):
        codec.encode_into(data, [memoryview(bytes(2000)), memoryview(bytes(2000))])


@pytest.mark.parametrize("engine", ENGINES)
def test_shards_over_the_limit_are_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("couchestord.ec.codec.SHARD_BYTES_MAX", 2000)
    codec = Codec(2, 1, engine)
    assert len(codec.encode(random_shards(2, 2000))) == 1
    with pytest.raises(InvalidArgument, match="over the limit"):
        codec.encode(random_shards(2, 2001))


@pytest.mark.parametrize("engine", ENGINES)
def test_one_codec_in_several_threads(engine: Engine) -> None:
    codec = Codec(4, 2, engine)
    wrong: list[int] = []

    def work(seed: int) -> None:
        shards = codeword(4, 2, random_shards(4, 1500, seed))
        for lost in itertools.combinations(range(6), 2):
            present = {index: shard for index, shard in enumerate(shards) if index not in lost}
            if codec.reconstruct(present, lost) != {index: shards[index] for index in lost}:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_small_shards_go_to_zfec() -> None:
    class Recorder:
        name, note, least_bytes = "isal", "", 1024
        sizes: ClassVar[list[int]] = []

        def coder(self, k: int, m: int) -> Coder:
            coder = ZfecEngine().coder(k, m)

            class Recording:
                reconstruct, encode_into = coder.reconstruct, coder.encode_into

                def encode(self, data: Sequence[Buffer], size_bytes: int) -> list[bytes] | list[bytearray]:
                    Recorder.sizes.append(size_bytes)
                    return coder.encode(data, size_bytes)

            return Recording()

    codec = Codec(4, 2, Recorder())
    for size_bytes in (0, 1, 1023, 1024, 1025):
        data = random_shards(4, size_bytes)
        assert codec.encode(data) == codeword(4, 2, data)[4:]
    assert Recorder.sizes == [1024, 1025]
