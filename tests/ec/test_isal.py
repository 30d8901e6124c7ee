"""Finding ISA-L, doing without it, and its cache of decode tables."""

import builtins
import importlib.util
import sys
from typing import Any

import pytest
from codewords import codeword, random_shards

from couchestord.ec import isal
from couchestord.ec.choice import choose_engine

ISAL = next(isal.candidates(), None)
needs_isal = pytest.mark.skipif(ISAL is None, reason="ISA-L is absent: no cffi, or neither libisal2 nor pyeclib")


def test_isal_is_tested_where_pyeclib_is_installed() -> None:
    """The skips above must not hide a loader that finds nothing."""
    if importlib.util.find_spec("cffi") and importlib.util.find_spec("pyeclib"):
        assert ISAL is not None
        assert choose_engine("auto").name == "isal"


def test_absent_isal_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_cffi(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cffi":
            raise ModuleNotFoundError("No module named 'cffi'", name="cffi")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_cffi)
    assert list(isal.candidates()) == []
    engine = choose_engine("isal")
    assert engine.name == "zfec"
    assert "not here" in engine.note


def test_absent_libraries_and_foreign_ones_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cffi", reason="cffi is not installed")
    monkeypatch.setattr(isal, "SYSTEM_LIBRARY", "libc.so.6")  # Loads, and is not ISA-L.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert list(isal.candidates()) == []
    monkeypatch.setattr(isal, "SYSTEM_LIBRARY", "libcouchestord-absent.so.2")
    assert choose_engine("auto").name == "zfec"


@needs_isal
def test_library_of_the_system_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    somewhere = [*isal._libraries_in_wheel(), isal.SYSTEM_LIBRARY][0]
    monkeypatch.setattr(isal, "SYSTEM_LIBRARY", str(somewhere))
    assert next(isal.candidates()).note.startswith("the system's")


def test_pyeclib_itself_is_never_imported() -> None:
    list(isal.candidates())
    assert "pyeclib" not in sys.modules


@needs_isal
def test_decode_tables_are_cached_and_bounded() -> None:
    assert ISAL is not None
    coder: Any = ISAL.coder(100, 100)
    limit = coder._decoding.cache_info().maxsize
    assert limit * 100 * 100 * isal.TABLE_BYTES <= 2 * isal.CACHE_BYTES_MAX
    data = random_shards(10, 1024)
    shards = codeword(10, 4, data)
    coder = ISAL.coder(10, 4)
    for _ in range(3):
        coder.reconstruct(tuple(range(4, 14)), shards[4:], (0, 3), 1024)
    info = coder._decoding.cache_info()
    assert (info.hits, info.misses, info.currsize) == (2, 1, 1)
    assert info.maxsize >= 1001  # All ways to lose four of fourteen.
