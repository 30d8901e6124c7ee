"""The superblock's pages."""

import struct

import pytest

from couchestord.errors import Corrupt, UnknownFormat
from couchestord.io import superblock as sb
from couchestord.io.checksum import xxh3_64

IDENTITY = sb.Identity(b"s" * 16, b"d" * 16, 2, 6, 4, 2, (), 123)
ROOT = sb.SnapshotRoot(7, 1, 1000, 99, 2**63)


def used(page: bytes) -> int:
    return len(page.rstrip(b"\0"))


def newer(page: bytes, page_index: int) -> bytes:
    """The page as a program of the next format would write it."""
    head = page[:4] + struct.pack("<H", sb.FORMAT + 1) + page[6:12]
    length = struct.unpack("<I", page[8:12])[0]
    total = xxh3_64(head + page[20 : 20 + length], (sb.FORMAT + 1) << 8 | page_index)
    return head + struct.pack("<Q", total) + page[20:]


def test_identity_comes_back() -> None:
    page = sb.pack_identity(IDENTITY)
    assert len(page) == sb.PAGE_BYTES
    assert sb.unpack_identity(page) == IDENTITY


@pytest.mark.parametrize("root", [None, ROOT])
@pytest.mark.parametrize("generation", [0, 1, 2, 3])
def test_slots_alternate_and_come_back(generation: int, root: sb.SnapshotRoot | None) -> None:
    slot = sb.Slot(generation, 5, root)
    offset, page = sb.pack_slot(slot)
    assert offset == sb.PAGE_BYTES * (1 + generation % 2)
    pages = [b"\0" * sb.PAGE_BYTES] * 2
    pages[offset // sb.PAGE_BYTES - 1] = page
    assert sb.newest_slot(pages) == slot


def test_each_flipped_byte_is_refused() -> None:
    identity, slot = sb.pack_identity(IDENTITY), sb.pack_slot(sb.Slot(2, 1, ROOT))[1]
    for at in range(used(identity)):
        damaged = bytearray(identity)
        damaged[at] ^= 0xFF
        with pytest.raises(Corrupt):
            sb.unpack_identity(bytes(damaged))
    for at in range(used(slot)):
        damaged = bytearray(slot)
        damaged[at] ^= 1
        with pytest.raises(Corrupt):
            sb.newest_slot([bytes(damaged), bytes(sb.PAGE_BYTES)])


def test_a_cut_page_is_refused() -> None:
    page = sb.pack_identity(IDENTITY)
    for length in range(used(page)):
        with pytest.raises(Corrupt):
            sb.unpack_identity(page[:length])


def test_the_higher_generation_counts_and_a_torn_one_leaves_the_other() -> None:
    old, new = sb.pack_slot(sb.Slot(4, 3))[1], sb.pack_slot(sb.Slot(5, 4))[1]
    assert sb.newest_slot([old, new]).generation == 5
    torn = new[:22] + b"\0" * (sb.PAGE_BYTES - 22)
    assert sb.newest_slot([old, torn]).generation == 4


def test_a_slot_in_the_others_place_is_refused() -> None:
    page = sb.pack_slot(sb.Slot(4, 3))[1]
    with pytest.raises(Corrupt):
        sb.newest_slot([b"\0" * sb.PAGE_BYTES, page])
    with pytest.raises(Corrupt):
        sb.newest_slot([sb.pack_identity(IDENTITY), sb.pack_identity(IDENTITY)])
    with pytest.raises(Corrupt):
        sb.unpack_identity(page)


def test_newer_formats_are_unknown_not_damaged() -> None:
    with pytest.raises(UnknownFormat, match="newer couchestord"):
        sb.unpack_identity(newer(sb.pack_identity(IDENTITY), 0))
    with pytest.raises(UnknownFormat):
        sb.newest_slot([newer(sb.pack_slot(sb.Slot(4, 3))[1], 1), sb.pack_slot(sb.Slot(3, 3))[1]])
    for name in ("min_reader", "min_writer"):
        asking = sb.Identity(b"s", b"d", 0, 6, 4, 2, (), 1, **{name: sb.FORMAT + 1})
        with pytest.raises(UnknownFormat):
            sb.unpack_identity(sb.pack_identity(asking))
