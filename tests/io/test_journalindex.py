"""Seen to fail with: the sum not compared; blocks that do not follow each other taken; another file's index taken."""

from array import array

import pytest

from couchestord.io.journalindex import Block, block_bytes, blocks, index_name, pack_block, parse_index_name
from couchestord.io.records import FILE_HEADER_BYTES

STORE = b"0123456789abcdef"


def block_at(first: int, count: int, start: int) -> Block:
    offsets = array("Q", (start + 100 * number for number in range(count)))
    return Block(first, offsets, array("Q", [first] * count), start + 100 * count)


ONE = block_at(7, 5, FILE_HEADER_BYTES)
TWO = block_at(12, 3, ONE.end)
PACKED = [pack_block(STORE, 3, 7, block) for block in (ONE, TWO)]


def test_blocks_follow_each_other() -> None:
    assert list(blocks(STORE, 3, 7, b"".join(PACKED))) == [ONE, TWO]
    assert [len(packed) for packed in PACKED] == [block_bytes(5), block_bytes(3)]
    assert list(blocks(STORE, 3, 7, b"")) == []


def test_what_was_not_written_to_its_end_is_left_out() -> None:
    whole = b"".join(PACKED)
    for length in range(len(PACKED[0]), len(whole)):
        assert list(blocks(STORE, 3, 7, whole[:length])) == [ONE]
        assert list(blocks(STORE, 3, 7, whole[:length] + bytes(len(whole)))) == [ONE]


def test_each_flipped_byte_is_found() -> None:
    for at in range(len(PACKED[1])):
        rotten = bytearray(PACKED[1])
        rotten[at] ^= 1
        assert list(blocks(STORE, 3, 7, PACKED[0] + bytes(rotten))) == [ONE]


def test_another_files_index_is_not_believed() -> None:
    for store, epoch, first in ((b"another store...", 3, 7), (STORE, 4, 7), (STORE, 3, 8)):
        assert list(blocks(store, epoch, first, PACKED[0])) == []
    assert list(blocks(STORE, 3, 7, PACKED[1])) == []
    assert list(blocks(STORE, 3, 7, PACKED[0] + PACKED[0])) == [ONE]
    gap = pack_block(STORE, 3, 7, block_at(12, 3, ONE.end + 8))
    assert list(blocks(STORE, 3, 7, PACKED[0] + gap)) == [ONE]


def test_a_newer_version_is_left_alone() -> None:
    assert list(blocks(STORE, 3, 7, PACKED[0][:4] + b"\x02" + PACKED[0][5:])) == []


@pytest.mark.parametrize("name", ["", ".index", "0-0.index", index_name(1, 2) + ".new", index_name(1, 2)[:-6]])
def test_names_of_others(name: str) -> None:
    assert parse_index_name(name) is None


def test_names() -> None:
    assert parse_index_name(index_name(1, 2)) == (1, 2)
