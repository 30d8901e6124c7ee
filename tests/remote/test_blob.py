"""Blobs: what is packed is read, any range of it, and nothing else ever is."""

import struct
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from couchestord.errors import Corrupt, UnknownFormat
from couchestord.io.checksum import xxh3_64
from couchestord.remote.backend import parts_length
from couchestord.remote.blob import (
    FRAME_BYTES,
    HEAD_BYTES,
    BlobName,
    BlobPacker,
    Held,
    index_bytes,
    parse_key,
    read_index,
    read_range,
    size_max,
    span_of,
)

NAME: Final = BlobName(bytes(range(16)), 7, 3)
MIB: Final = 1 << 20
GOLDEN: Final = 10139494905600716393
U64 = st.integers(0, (1 << 64) - 1)
LENGTHS = st.one_of(
    st.integers(1, 100), st.integers(1, 4).map(lambda n: n * FRAME_BYTES), st.integers(1, 4 * FRAME_BYTES + 1)
)


def content(extent: int, length: int) -> bytes:
    """Bytes that are nowhere alike."""
    return b"".join(struct.pack("<QQ", extent, at) for at in range(0, length, 16))[:length]


def packed(lengths: dict[int, int], name: BlobName = NAME) -> tuple[bytes, tuple[Held, ...]]:
    packer = BlobPacker(64 * MIB)
    for extent, length in lengths.items():
        assert packer.add(extent, content(extent, length))
    parts, held = packer.pack(name)
    return b"".join(parts), held


def read(blob: bytes, held: Held, start: int, length: int, name: BlobName = NAME) -> bytes:
    span = span_of(held, start, length)
    return read_range(name, held, start, length, blob[span.offset : span.offset + span.length])


def index_of(blob: bytes, name: BlobName = NAME) -> tuple[Held, ...]:
    return read_index(name, blob[: index_bytes(name, blob[:HEAD_BYTES])])


@settings(deadline=None)
@given(st.dictionaries(U64, LENGTHS, min_size=1, max_size=6), st.data())
def test_what_is_packed_is_read(lengths: dict[int, int], data: st.DataObject) -> None:
    blob, held = packed(lengths)
    assert index_of(blob) == held
    assert [(one.extent, one.length) for one in held] == list(lengths.items())
    one = data.draw(st.sampled_from(held))
    start = data.draw(st.integers(0, one.length - 1))
    length = data.draw(st.integers(1, one.length - start))
    assert read(blob, one, start, length) == content(one.extent, one.length)[start : start + length]
    span = span_of(one, 0, one.length)
    assert span.offset == one.offset
    assert held[-1].offset + span_of(held[-1], 0, held[-1].length).length == len(blob)
    assert 0 <= size_max(sum(lengths.values()), len(lengths)) - len(blob) <= 8 * len(lengths)


@settings(deadline=None)
@given(st.data())
def test_a_changed_byte_is_noticed_by_whoever_reads_it(data: st.DataObject) -> None:
    blob, held = packed({5: 40_000, 6: 3})
    at = data.draw(st.integers(0, len(blob) - 1))
    changed = bytearray(blob)
    changed[at] ^= data.draw(st.integers(1, 255))
    if at < held[0].offset:
        with pytest.raises(Corrupt):
            index_of(bytes(changed))
        return
    one = held[1] if at >= held[1].offset else held[0]
    with pytest.raises(Corrupt):
        read(bytes(changed), one, 0, one.length)
    frame = (at - one.offset) // (FRAME_BYTES + 8)
    for start in range(0, one.length, FRAME_BYTES):
        length = min(FRAME_BYTES, one.length - start)
        if start == frame * FRAME_BYTES:
            with pytest.raises(Corrupt):
                read(bytes(changed), one, start, length)
        else:
            assert read(bytes(changed), one, start, length) == content(one.extent, one.length)[start : start + length]


def test_bytes_of_another_place_are_noticed() -> None:
    """Frames that are whole, but another's: of another frame, extent, blob, epoch, store."""
    same = content(9, 2 * FRAME_BYTES)
    packer = BlobPacker(MIB)
    packer.add(1, same)
    packer.add(2, same)
    packer.add(3, bytes(2 * FRAME_BYTES))
    parts, (first, second, third) = packer.pack(NAME)
    blob = b"".join(parts)
    assert read(blob, first, 0, len(same)) == read(blob, second, 0, len(same))
    with pytest.raises(Corrupt):
        read(blob, second._replace(offset=first.offset), 0, 1)
    with pytest.raises(Corrupt):
        read(blob, third._replace(offset=third.offset + FRAME_BYTES + 8), 0, 1)
    for other in (NAME._replace(number=4), NAME._replace(epoch=8), NAME._replace(store_id=bytes(16))):
        with pytest.raises(Corrupt):
            read(blob, first, 0, 1, other)
        with pytest.raises(Corrupt):
            index_of(blob, other)


def test_a_blob_that_is_cut_short_is_noticed() -> None:
    blob, (held,) = packed({1: 100})
    for length in (0, HEAD_BYTES - 1, HEAD_BYTES, held.offset - 1):
        with pytest.raises(Corrupt):
            read_index(NAME, blob[:length])
    for length in (held.offset, held.offset + 7, held.offset + 8, len(blob) - 1):
        with pytest.raises(Corrupt):
            read(blob[:length], held, 0, 100)


@pytest.mark.parametrize(
    ("offset", "value", "error"),
    [
        (4, b"\x02", UnknownFormat),  # version
        (44, b"\x00\x80", UnknownFormat),  # bytes in a frame
        (HEAD_BYTES + 24, b"\x01", UnknownFormat),  # codec
        (48, b"\x01", Corrupt),  # size
        (HEAD_BYTES + 8, b"\x01", Corrupt),  # offset of an extent
        (HEAD_BYTES + 16, b"\x00", Corrupt),  # its length
        (40, b"\x00", Corrupt),  # no extents
        (40, b"\xff\xff\xff\xff", Corrupt),  # too many
    ],
)
def test_an_index_with_a_right_sum_that_is_not_ours(offset: int, value: bytes, error: type[Exception]) -> None:
    blob, (held,) = packed({1: 100})
    index = bytearray(blob[: held.offset - 8])
    index[offset : offset + len(value)] = value
    with pytest.raises(error):
        read_index(NAME, bytes(index) + struct.pack("<Q", xxh3_64(bytes(index))))


def test_a_blob_takes_what_fits_and_always_one() -> None:
    packer = BlobPacker(100_000)
    assert packer.add(1, bytes(200_000))
    assert not packer.add(2, b"x")
    packer = BlobPacker(100_000)
    taken = 0
    while packer.add(taken, bytes(1000)):
        taken += 1
    parts, held = packer.pack(NAME)
    assert len(held) == taken == packer.extents_count
    assert 100_000 - 1040 < parts_length(parts) <= 100_000


def test_no_extent_is_copied() -> None:
    data = bytearray(3 * FRAME_BYTES + 1)
    packer = BlobPacker(MIB)
    packer.add(1, data)
    parts, _ = packer.pack(NAME)
    views = [part for part in parts if isinstance(part, memoryview) and part.obj is data]
    assert [len(view) for view in views] == [FRAME_BYTES, FRAME_BYTES, FRAME_BYTES, 1]


@settings(deadline=None)
@given(st.binary(min_size=16, max_size=16), U64, U64)
def test_keys(store_id: bytes, epoch: int, number: int) -> None:
    name = BlobName(store_id, epoch, number)
    assert parse_key(name.key) == name


@settings(deadline=None)
@given(st.tuples(U64, U64), st.tuples(U64, U64))
def test_keys_are_in_the_order_of_epoch_and_number(one: tuple[int, int], other: tuple[int, int]) -> None:
    keys = [BlobName(bytes(16), *pair).key for pair in (one, other)]
    assert (keys[0] < keys[1]) == (one < other)


@pytest.mark.parametrize("key", ["", "blobs", "blobs/x", NAME.key.upper(), NAME.key + "0", "x/" + NAME.key])
def test_other_keys_are_no_blobs(key: str) -> None:
    assert parse_key(key) is None


def test_golden_bytes() -> None:
    """The form of what lies in buckets: a change of these bytes is a change of the format."""
    packer = BlobPacker(MIB)
    packer.add(17, b"hello")
    packer.add(18, bytes(FRAME_BYTES) + b"!")
    parts, _ = packer.pack(NAME)
    blob = b"".join(parts)
    assert len(blob) == 56 + 64 + 8 + 5 + 8 + FRAME_BYTES + 8 + 1 + 8
    assert xxh3_64(blob) == GOLDEN
