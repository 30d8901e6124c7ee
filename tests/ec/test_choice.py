"""The check of an engine, and the fall back to zfec."""

from collections.abc import Iterable, Sequence

import pytest
from codewords import codeword, random_shards

from couchestord.ec import choice, isal
from couchestord.ec.choice import choose_engine, find_fault
from couchestord.ec.codec import Buffer, Codec, Coder, Engine, Target, ZfecEngine
from couchestord.errors import InternalError, InvalidArgument


class BrokenEngine:
    """zfec, with one fault: "parity" or "reconstruct" flips the last bit, "raise" raises."""

    name = "isal"
    least_bytes = 0

    def __init__(self, fault: str, least_wrong_bytes: int = 0) -> None:
        self.note = "a broken library"
        self.fault = fault
        self.least_wrong_bytes = least_wrong_bytes

    def coder(self, k: int, m: int) -> Coder:
        if self.fault == "raise":
            raise OSError("cannot map the library")
        return BrokenCoder(self, ZfecEngine().coder(k, m))


class BrokenCoder:
    def __init__(self, engine: BrokenEngine, good: Coder) -> None:
        self.engine = engine
        self.good = good

    def _spoil(self, fault: str, shard: bytearray) -> bytearray:
        if self.engine.fault == fault and len(shard) >= self.engine.least_wrong_bytes:
            shard[-1] ^= 1
        return shard

    def encode(self, data: Sequence[Buffer], size_bytes: int) -> list[bytearray]:
        return [self._spoil("parity", bytearray(shard)) for shard in self.good.encode(data, size_bytes)]

    def encode_into(self, data: Sequence[Buffer], parity: Sequence[Target], size_bytes: int) -> None:
        for target, shard in zip(parity, self.encode(data, size_bytes), strict=True):
            target[:] = shard

    def reconstruct(
        self, have: tuple[int, ...], shards: Sequence[Buffer], want: tuple[int, ...], size_bytes: int
    ) -> list[bytearray]:
        return [self._spoil("reconstruct", s) for s in self.good.reconstruct(have, shards, want, size_bytes)]


@pytest.mark.parametrize("prefer", ["auto", "isal"])
@pytest.mark.parametrize(
    ("fault", "least_wrong_bytes", "said"),
    [
        ("parity", 0, "golden vector of 4+2"),
        ("parity", 4000, "parity of 1+2 at 4111 bytes"),
        ("reconstruct", 0, "reconstruction of 1+2"),
        ("raise", 0, "OSError: cannot map the library"),
    ],
)
def test_engine_with_a_fault_is_refused(
    prefer: choice.Preference, fault: str, least_wrong_bytes: int, said: str
) -> None:
    engine = choose_engine(prefer, candidates=lambda: [BrokenEngine(fault, least_wrong_bytes)])
    assert engine.name == "zfec"
    assert said in engine.note
    assert "a broken library" in engine.note
    data = random_shards(4, 3000)
    assert Codec(4, 2, engine).encode(data) == codeword(4, 2, data)[4:]


def test_second_library_is_tried_and_the_first_is_named() -> None:
    good = BrokenEngine(fault="")
    engine = choose_engine(candidates=lambda: [BrokenEngine("parity"), good])
    assert engine is good
    assert "refused" in engine.note


def test_zfec_by_preference_touches_no_candidate() -> None:
    def candidates() -> Iterable[Engine]:
        raise AssertionError("asked for candidates")

    assert choose_engine("zfec", candidates=candidates).name == "zfec"
    with pytest.raises(InvalidArgument, match="no such engine"):
        choose_engine("fast", candidates=candidates)  # type: ignore[arg-type]


def test_broken_zfec_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "ZfecEngine", lambda note: BrokenEngine("parity"))
    with pytest.raises(InternalError, match="zfec is unusable"):
        choose_engine("zfec")


def test_engines_that_are_here_pass_the_check() -> None:
    engines: list[Engine] = [ZfecEngine(), *isal.candidates()]
    for engine in engines:
        assert find_fault(engine) == ""


def test_golden_vectors_agree_with_the_arithmetic() -> None:
    for k, m, parity in choice.GOLDEN:
        assert [shard.hex() for shard in codeword(k, m, choice.sample(k, 16))[k:]] == list(parity)
    assert choice.sample(2, 300)[1][299] == (167 * 299 + 59 + 13) % 256
