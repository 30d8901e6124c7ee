"""The choice of an engine, and the check that an engine must pass before it touches a stripe.

The check compares with parity bytes that are stored here, so that a change of the on-disk code cannot go unnoticed, and
with `galois`, over geometries and lengths that reach the different kernels of a vectorised library. It takes about
10 ms.
"""

from collections.abc import Callable, Iterable
from typing import Literal

from couchestord.ec import isal
from couchestord.ec.codec import Engine, ZfecEngine
from couchestord.ec.galois import combine, generator
from couchestord.errors import InternalError, InvalidArgument

Preference = Literal["auto", "zfec", "isal"]

GOLDEN: tuple[tuple[int, int, tuple[str, ...]], ...] = (
    (4, 2, ("fd56e7e6edbba66860d428f6ed1ded53", "09bde965fb4c832632eb2ed3355c78c3")),
    (
        6,
        3,
        ("6e279786648010b1a31330ddad98f953", "d7eb8ce637683fac802f3dd3ce7fe5fb", "2b97cf5dbb0da8011e74aa8e158b7715"),
    ),
    (
        10,
        4,
        (
            "beeb3b3ce57720ddb735792b22d83828",
            "4d89527942daf992ce83c0cc2b11a264",
            "061d854561dc8ad9fc11257aa07b7af6",
            "6367e4612636402e4f96dd6cbfd327d1",
        ),
    ),
)
"""k, m and the m parity shards, in hex, of `sample(k, 16)`. Fixed for ever: they are what lies on disks."""

GEOMETRIES = ((1, 2), (2, 1), (4, 2), (3, 3), (10, 4), (5, 5), (6, 6), (3, 8))
"""Numbers of rows from 1 to 8: ISA-L has a kernel for each up to 6 and combines them beyond."""
LENGTHS_BYTES = (1, 15, 31, 32, 33, 63, 64, 65, 127, 129, 1000, 4111)
_PERIOD = bytes((167 * i + 13) & 255 for i in range(256))
_VALUES = bytes(range(256)) * 2


def sample(k: int, size_bytes: int) -> list[bytes]:
    """k shards that are easy to write down again: byte i of shard s is (167 * i + 59 * s + 13) mod 256."""
    shifted = (_PERIOD.translate(_VALUES[59 * s % 256 :][:256]) for s in range(k))
    return [(period * (size_bytes // 256 + 1))[:size_bytes] for period in shifted]


def choose_engine(
    prefer: Preference = "auto", *, candidates: Callable[[], Iterable[Engine]] = isal.candidates
) -> Engine:
    """The engine to code with, checked. "auto" and "isal" take ISA-L where it is here and right, else zfec.

    The `note` of the engine says where ISA-L was found, or why it is not used; a library that fails the check is never
    an error, because zfec is always there. `candidates` gives the engines to try before zfec. Raises
    InvalidArgument for another preference, InternalError when zfec itself fails the check: then nothing may be written.
    """
    if prefer not in ("auto", "zfec", "isal"):
        raise InvalidArgument(f"no such engine: {prefer!r} (auto, zfec or isal)")
    refused: list[str] = []
    if prefer != "zfec":
        for engine in candidates():
            fault = find_fault(engine)
            if not fault:
                engine.note = "; ".join([engine.note, *refused])
                return engine
            refused.append(f"{engine.name} ({engine.note}) refused: {fault}")
        if not refused:
            refused.append("ISA-L is not here: install libisal2 and cffi, or couchestord[isal]")
    zfec = ZfecEngine("; ".join(refused) or "chosen by the configuration")
    fault = find_fault(zfec)
    if fault:
        raise InternalError(f"zfec is unusable: {fault}")
    return zfec


def find_fault(engine: Engine) -> str:
    """What is wrong with an engine, in a few words; empty when nothing is."""
    # A foreign library may raise anything; whatever it is, that library is not used.
    try:
        for k, m, parity in GOLDEN:
            if [bytes(shard).hex() for shard in engine.coder(k, m).encode(sample(k, 16), 16)] != list(parity):
                return f"golden vector of {k}+{m} does not match"
        for k, m in GEOMETRIES:
            fault = _fault_of_geometry(engine, k, m)
            if fault:
                return fault
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _fault_of_geometry(engine: Engine, k: int, m: int) -> str:
    coder = engine.coder(k, m)
    rows = generator(k, k + m)
    for size_bytes in LENGTHS_BYTES:
        data = sample(k, size_bytes)
        shards = data + [combine(row, data) for row in rows[k:]]
        if [bytes(shard) for shard in coder.encode(data, size_bytes)] != shards[k:]:
            return f"parity of {k}+{m} at {size_bytes} bytes is wrong"
        # Lose the first m shards: as many data shards as can be lost, and parity with them where m > k.
        have, lost = tuple(range(m, k + m)), tuple(range(m))
        rebuilt = coder.reconstruct(have, [shards[index] for index in have], lost, size_bytes)
        if [bytes(shard) for shard in rebuilt] != shards[:m]:
            return f"reconstruction of {k}+{m} at {size_bytes} bytes is wrong"
    return ""
