"""Roots and runs: what is packed is read, and nothing else ever is."""

from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from couchestord.errors import Corrupt, UnknownFormat
from couchestord.io.checksum import xxh3_64
from couchestord.remote.backend import check_key
from couchestord.remote.root import (
    Entry,
    Founding,
    Root,
    RootName,
    Run,
    RunName,
    digest_of,
    pack_root,
    pack_run,
    parse_piece_key,
    parse_root_key,
    parse_run_key,
    piece_key,
    unpack_root,
    unpack_run,
)

GOLDEN_ROOT: Final = 1927519455218986691
GOLDEN_RUN: Final = 15561003579502300266
U63 = st.integers(0, (1 << 63) - 1)
U64 = st.integers(0, (1 << 64) - 1)
STORES = st.binary(min_size=16, max_size=16)
DIGESTS = st.binary(min_size=32, max_size=32)
FOUNDINGS = st.builds(Founding, *[st.integers(0, 1 << 40)] * 5)
ROOTS = st.builds(Root, STORES, U63, U63, U63, U63, FOUNDINGS, st.lists(DIGESTS, max_size=5).map(tuple))
ENTRIES = st.lists(st.builds(Entry, st.binary(max_size=50), U64), min_size=1, max_size=5).map(tuple)
RUNS = st.builds(Run, STORES, U63, U63, U63, ENTRIES)
ROOT: Final = Root(bytes(range(16)), 7, 99, 5, 3000, Founding(4, 2, 1 << 20, 0, 1), (bytes(32), bytes(range(32))))
RUN: Final = Run(bytes(range(16)), 7, 100, 5, (Entry(b"meta", 3), Entry(b"", 1 << 63)))


@given(ROOTS)
def test_a_root_that_is_packed_is_read(root: Root) -> None:
    assert unpack_root(root.name, pack_root(root)) == root
    assert parse_root_key(root.name.key) == root.name
    assert parse_run_key(root.name.key) is None
    check_key(root.name.key)


@given(RUNS)
def test_a_run_that_is_packed_is_read(run: Run) -> None:
    assert unpack_run(run.name, pack_run(run)) == run
    assert run.end - run.first == len(run.entries)
    assert parse_run_key(run.name.key) == run.name
    assert parse_root_key(run.name.key) is None
    check_key(run.name.key)


@settings(deadline=None)
@given(st.data())
def test_any_change_is_noticed(data: st.DataObject) -> None:
    packed = data.draw(st.sampled_from((pack_root(ROOT), pack_run(RUN))))
    changed = bytearray(packed)
    changed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    cut = packed[: data.draw(st.integers(0, len(packed) - 1))]
    longer = packed + data.draw(st.binary(min_size=1, max_size=5))
    for spoiled in (bytes(changed), cut, longer):
        with pytest.raises(Corrupt):
            unpack_root(ROOT.name, spoiled)
        with pytest.raises(Corrupt):
            unpack_run(RUN.name, spoiled)


OTHERS: Final = ((b"x" * 16, 7, 99), (ROOT.store_id, 8, 99), (ROOT.store_id, 7, 100))


@pytest.mark.parametrize("other", OTHERS)
def test_a_root_under_another_name(other: tuple[bytes, int, int]) -> None:
    with pytest.raises(Corrupt, match="another"):
        unpack_root(RootName(*other), pack_root(ROOT))


@pytest.mark.parametrize("other", [(*it[:2], it[2] + 1) for it in OTHERS[:2]] + [(RUN.store_id, 7, 99)])
def test_a_run_under_another_name(other: tuple[bytes, int, int]) -> None:
    with pytest.raises(Corrupt, match="another"):
        unpack_run(RunName(*other), pack_run(RUN))


def newer(packed: bytes) -> bytes:
    head = packed[:4] + b"\x02\0" + packed[6:12]
    return head + xxh3_64(head + packed[20:], 2).to_bytes(8, "little") + packed[20:]


def test_a_newer_format_is_not_read() -> None:
    with pytest.raises(UnknownFormat, match="newer"):
        unpack_root(ROOT.name, newer(pack_root(ROOT)))
    with pytest.raises(UnknownFormat, match="newer"):
        unpack_run(RUN.name, newer(pack_run(RUN)))


def test_the_formats_stay_as_they_are() -> None:
    assert xxh3_64(pack_root(ROOT)) == GOLDEN_ROOT
    assert xxh3_64(pack_run(RUN)) == GOLDEN_RUN
    assert ROOT.name.key == "roots/000102030405060708090a0b0c0d0e0f/0000000000000007-0000000000000063"
    assert RUN.name.key == "log/000102030405060708090a0b0c0d0e0f/0000000000000007-0000000000000064"


def test_a_digest_that_is_none() -> None:
    short = Root(bytes(16), 1, 1, 1, 1, ROOT.founding, (b"short",))
    with pytest.raises(AssertionError):
        pack_root(short)


def test_pieces_are_named_by_what_they_are() -> None:
    digest = digest_of(b"abc")
    assert digest.hex().startswith("ba7816bf")
    key = piece_key(bytes(16), digest)
    check_key(key)
    assert parse_piece_key(key) == digest
    for other in (key.upper(), key[:-1], key + "0", "roots/" + key, RootName(bytes(16), 1, 1).key):
        assert parse_piece_key(other) is None


def test_names_sort_by_age() -> None:
    names = [RootName(bytes(16), epoch, sequence) for epoch in (1, 2, 300) for sequence in (1, 20, 1 << 40)]
    assert sorted(names) == names
    assert [name.key for name in names] == sorted(name.key for name in names)
    assert RunName(bytes(16), 1, 1).key != names[0].key
