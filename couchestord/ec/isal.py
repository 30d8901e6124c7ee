"""ISA-L as an engine: Intel's library, 10 to 30 times as fast as zfec, driven with zfec's own generator rows.

ISA-L's `ec_encode_data` multiplies shards with any matrix, so with the rows of `galois.generator` it writes the bytes
that zfec writes. Its own generators are others and are never used. It is called through cffi in ABI mode: no compiler,
and the GIL is released for each call.

cffi and a library are optional. The system's libisal.so.2 comes first; else the copy that the pyeclib wheel carries,
found by its path, without importing pyeclib. That path is private to the wheel, and a distribution's library may be
old: nothing from here is used before `choice` has checked it.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from couchestord.ec.codec import Buffer, Coder, Target
from couchestord.ec.galois import Matrix, generator, invert_matrix, multiply_matrices

SYSTEM_LIBRARY = "libisal.so.2"
LEAST_BYTES = 1024
"""A call costs about 3 us, one of zfec 0.4 us: below this zfec is faster."""
TABLE_BYTES = 32
"""ISA-L's expanded form of one coefficient."""
CACHE_BYTES_MAX = 4 << 20

_DECLARATIONS = """
void ec_init_tables(int k, int rows, unsigned char *coefficients, unsigned char *tables);
void ec_encode_data(int size, int k, int rows, unsigned char *tables, unsigned char **sources, unsigned char **targets);
"""


class IsalEngine:
    """ISA-L from the shared library `library`, a name for the dynamic linker or a path.

    Raises ImportError without cffi, OSError when the library cannot be loaded, AttributeError when it is not ISA-L.
    """

    __slots__ = ("_ffi", "_library", "least_bytes", "name", "note")

    def __init__(self, library: str, note: str = "") -> None:
        import cffi

        self.name = "isal"
        self.note = note
        self.least_bytes = LEAST_BYTES
        self._ffi: Any = cffi.FFI()
        self._ffi.cdef(_DECLARATIONS)
        self._library: Any = self._ffi.dlopen(library)
        # Symbols are looked up at first use: use them here, where a failure is expected.
        _ = self._library.ec_init_tables, self._library.ec_encode_data

    def coder(self, k: int, m: int) -> Coder:
        return _IsalCoder(self._ffi, self._library, k, m)


def candidates() -> Iterator[IsalEngine]:
    """The engines of the libraries that are here and load, the preferred first; none when there are none."""
    yield from _load(SYSTEM_LIBRARY, f"the system's {SYSTEM_LIBRARY}")
    for path in _libraries_in_wheel():
        yield from _load(str(path), f"{path.name} of the pyeclib wheel")


def _load(library: str, note: str) -> Iterator[IsalEngine]:
    try:
        yield IsalEngine(library, note)
    except (ImportError, OSError, AttributeError):
        return


def _libraries_in_wheel() -> list[Path]:
    try:
        spec = importlib.util.find_spec("pyeclib")
    except (ImportError, ValueError):
        return []
    packages = (spec.submodule_search_locations if spec else None) or ()
    return [path for package in packages for path in sorted(Path(package).parent.glob("pyeclib.libs/libisal*.so.2*"))]


class _IsalCoder:
    __slots__ = ("_bytes", "_decoding", "_encoding", "_ffi", "_k", "_library", "_m", "_pointers")

    def __init__(self, ffi: Any, library: Any, k: int, m: int) -> None:
        self._ffi = ffi
        self._library = library
        self._k = k
        self._m = m
        self._bytes = ffi.typeof("unsigned char[]")
        self._pointers = ffi.typeof("unsigned char *[]")
        rows = generator(k, k + m)
        self._encoding = _tables(ffi, library, rows[k:])
        # The cache is bounded by bytes, whatever the geometry: 4+2 and 10+4 fit with all their patterns of loss.
        entries_max = max(8, min(2048, CACHE_BYTES_MAX // (TABLE_BYTES * k * max(1, m))))
        self._decoding = lru_cache(maxsize=entries_max)(partial(_decoding_tables, ffi, library, rows))

    def encode(self, data: Sequence[Buffer], size_bytes: int) -> list[bytearray]:
        parity = [bytearray(size_bytes) for _ in range(self._m)]
        self._multiply(self._encoding, data, parity, size_bytes)
        return parity

    def encode_into(self, data: Sequence[Buffer], parity: Sequence[Target], size_bytes: int) -> None:
        self._multiply(self._encoding, data, parity, size_bytes)

    def reconstruct(
        self, have: tuple[int, ...], shards: Sequence[Buffer], want: tuple[int, ...], size_bytes: int
    ) -> list[bytearray]:
        rebuilt = [bytearray(size_bytes) for _ in want]
        self._multiply(self._decoding(have, want), shards, rebuilt, size_bytes)
        return rebuilt

    def _multiply(self, tables: Any, sources: Sequence[Buffer], targets: Sequence[Target], size_bytes: int) -> None:
        ffi, kind = self._ffi, self._bytes
        # These hold the buffers: they must live until the call returns, and no bytearray can be resized meanwhile.
        held_sources = [ffi.from_buffer(kind, source) for source in sources]
        held_targets = [ffi.from_buffer(kind, target, require_writable=True) for target in targets]
        self._library.ec_encode_data(
            size_bytes,
            self._k,
            len(held_targets),
            tables,
            ffi.new(self._pointers, held_sources),
            ffi.new(self._pointers, held_targets),
        )


def _tables(ffi: Any, library: Any, rows: Matrix) -> Any:
    """The coefficients of some rows, in the form that ISA-L multiplies with."""
    if not rows:
        return None
    tables = ffi.new("unsigned char[]", TABLE_BYTES * len(rows) * len(rows[0]))
    library.ec_init_tables(len(rows[0]), len(rows), ffi.from_buffer("unsigned char[]", b"".join(rows)), tables)
    return tables


def _decoding_tables(ffi: Any, library: Any, rows: Matrix, have: tuple[int, ...], want: tuple[int, ...]) -> Any:
    """From the shards `have` to the data, from the data to the shards `want`, as one matrix."""
    to_data = invert_matrix(tuple(rows[index] for index in have))
    return _tables(ffi, library, multiply_matrices(tuple(rows[index] for index in want), to_data))
