"""The index of a journal file: where its records lie, so that a start need not read and verify all of them. Pure.

An index lies beside its file on the same disk and is no truth: it is written behind the records, when they are durable,
is never synced, and what it says is checked when a record is read. It is a chain of blocks, each with a sum of its own;
a block goes on where the one before it ended, and the first that does not ends the index:

    magic 4 | version 2 | reserved 2 | epoch 8 | first sequence of the file 8 | sequence of the first record 8 |
    records n 8 | end of the last record 8 | offset of each record 8 n | group of each record 8 n | sum 8

The sum is XXH3 of the store's id and all before it.
"""

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from couchestord.io.checksum import xxh3_64
from couchestord.io.records import FILE_HEADER_BYTES, file_name, parse_file_name

SUFFIX = ".index"
_MAGIC = b"CJIX"
_VERSION = 1
_HEAD = struct.Struct("<4sHHQQQQQ")
_SUM = struct.Struct("<Q")
_WORD_BYTES = 8


@dataclass(frozen=True, slots=True)
class Block:
    """Records `first`, `first` + 1, ... of a file: record i begins at `offsets[i - first]`, the last ends at `end`."""

    first: int
    offsets: "array[int]"
    groups: "array[int]"
    end: int


def index_name(epoch: int, first: int) -> str:
    """Name of the index of a journal file."""
    return file_name(epoch, first) + SUFFIX


def parse_index_name(name: str) -> tuple[int, int] | None:
    """(epoch, first sequence) of the file that an index is of; None for a name that is not an index's."""
    return parse_file_name(name.removesuffix(SUFFIX)) if name.endswith(SUFFIX) else None


def pack_block(store_id: bytes, epoch: int, file_first: int, block: Block) -> bytes:
    """A block, to be put behind those before it."""
    head = _HEAD.pack(_MAGIC, _VERSION, 0, epoch, file_first, block.first, len(block.offsets), block.end)
    data = head + block.offsets.tobytes() + block.groups.tobytes()
    return data + _SUM.pack(xxh3_64(store_id + data))


def block_bytes(records: int) -> int:
    """Length of a block of so many records."""
    return _HEAD.size + 2 * _WORD_BYTES * records + _SUM.size


def blocks(store_id: bytes, epoch: int, file_first: int, data: bytes) -> Iterator[Block]:
    """The valid blocks at the beginning of an index, in order. What follows them, of a newer version too, is none."""
    view = memoryview(data)
    at, first, offset = 0, file_first, FILE_HEADER_BYTES
    while at + _HEAD.size <= len(data):
        magic, version, _, *identity, count, end = _HEAD.unpack_from(data, at)
        length = block_bytes(count)
        if magic != _MAGIC or version != _VERSION or at + length > len(data):
            return
        body = view[at : at + length - _SUM.size]
        if xxh3_64(store_id + bytes(body)) != _SUM.unpack_from(data, at + len(body))[0]:
            return
        if identity != [epoch, file_first, first] or not count:
            return
        offsets, groups = array("Q"), array("Q")
        middle = _HEAD.size + _WORD_BYTES * count
        offsets.frombytes(body[_HEAD.size : middle])
        groups.frombytes(body[middle:])
        if offsets[0] != offset:
            return
        yield Block(first, offsets, groups, end)
        at, first, offset = at + length, first + count, end
