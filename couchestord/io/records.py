"""The journal's bytes: file header and records. Pure.

A journal file is one page of header, then records without gaps. A record is a head of 56 bytes, its meta (a mutation's
outcome, see mutations.py) and its body (the bytes of a small object, or none):

    magic 4 | version 1 | reserved 3 | meta length 4 | body length 4 | epoch 8 | sequence 8 | group 8 | body sum 8 |
    head sum 8

`group` is the sequence of the first record of the group that this record was committed in. A group is appended only
after the group before it lay durable on enough disks, so a valid record proves that everything before its group was
durable: that is how a torn tail is told from rot in the middle. The body sum is XXH3 of the body; the head sum is XXH3
over the store's id, the head (body sum included) and the meta, so a record of another store, epoch or sequence never
passes for this one.
"""

import struct
from typing import NamedTuple

import msgspec

from couchestord.errors import Corrupt, UnknownFormat
from couchestord.io.checksum import xxh3_64

FOLDER = "journal"
FILE_HEADER_BYTES = 4096
FILE_FORMAT = 1
RECORD_MAGIC = b"CJRC"
RECORD_VERSION = 1
_FILE_MAGIC = b"CJNL"
_FILE = struct.Struct("<4sHHI")
_HEAD = struct.Struct("<4sB3xIIQQQQ")
_SUM = struct.Struct("<Q")
HEAD_BYTES = _HEAD.size + _SUM.size
META_BYTES_MAX = 4 << 20
BODY_BYTES_MAX = 1 << 20


class FileHeader(msgspec.Struct, frozen=True, array_like=True):
    """Identity of a journal file: same on all of its replicas."""

    store_id: bytes
    epoch: int
    first_sequence: int
    disks: tuple[int, ...]
    """Indexes of the disks that were chosen to hold it."""
    void_from: int
    """Records of older epochs from here on are void, once this file reaches so far. Above `first_sequence` when the
    file begins with a repeat of records that were durable before it: until the repeat is whole, they count."""


class RecordHead(NamedTuple):
    """The head of a valid record."""

    epoch: int
    sequence: int
    group: int
    meta_length: int
    body_length: int
    body_sum: int

    @property
    def length(self) -> int:
        """Bytes of the whole record."""
        return HEAD_BYTES + self.meta_length + self.body_length


def file_name(epoch: int, first_sequence: int) -> str:
    """Name of a journal file below its folder; sorts by epoch, then sequence."""
    return f"{epoch:016x}-{first_sequence:016x}"


def parse_file_name(name: str) -> tuple[int, int] | None:
    """(epoch, first sequence), or None for a name that is not a journal file's."""
    epoch, _, first = name.partition("-")
    try:
        parsed = int(epoch, 16), int(first, 16)
    except ValueError:
        return None
    return parsed if file_name(*parsed) == name else None


def pack_file_header(header: FileHeader) -> bytes:
    """One page."""
    payload = msgspec.msgpack.encode(header)
    head = _FILE.pack(_FILE_MAGIC, FILE_FORMAT, 0, len(payload))
    page = head + _SUM.pack(xxh3_64(head + payload)) + payload
    assert len(page) <= FILE_HEADER_BYTES
    return page.ljust(FILE_HEADER_BYTES, b"\0")


def unpack_file_header(page: bytes) -> FileHeader:
    """Raises Corrupt, or UnknownFormat for a file of a newer program."""
    payload_at = _FILE.size + _SUM.size
    if len(page) < payload_at:
        raise Corrupt("journal file header is cut short")
    magic, version, _, length = _FILE.unpack_from(page)
    if magic != _FILE_MAGIC:
        raise Corrupt("not a journal file")
    payload = page[payload_at : payload_at + length]
    if xxh3_64(page[: _FILE.size] + payload) != _SUM.unpack_from(page, _FILE.size)[0]:
        raise Corrupt("journal file header fails its checksum")
    if version != FILE_FORMAT:
        raise UnknownFormat(
            f"journal file of format {version}; this program reads {FILE_FORMAT}. Use a newer couchestord."
        )
    return msgspec.msgpack.decode(payload, type=FileHeader)


def pack_record(
    store_id: bytes, epoch: int, sequence: int, group: int, meta: bytes, body_length: int, body_sum: int
) -> bytes:
    """Head and meta of a record; the body follows them as it is. `body_sum` is xxh3_64 of the body (0 length: of
    b"").
    """
    assert len(meta) <= META_BYTES_MAX
    assert body_length <= BODY_BYTES_MAX
    head = _HEAD.pack(RECORD_MAGIC, RECORD_VERSION, len(meta), body_length, epoch, sequence, group, body_sum)
    return head + _SUM.pack(xxh3_64(store_id + head + meta)) + meta


def unpack_record(
    store_id: bytes, buffer: bytes | bytearray | memoryview, offset: int = 0, *, epoch: int | None = None
) -> RecordHead:
    """The head of the record at `offset`. Raises Corrupt when it is not whole and right in `buffer`, UnknownFormat
    for a newer one.

    With `epoch`, one of another is Corrupt before anything is summed: for a search through bytes that clients chose.
    """
    if len(buffer) - offset < HEAD_BYTES:
        raise Corrupt("record head is cut short")
    magic, version, meta_length, body_length, its_epoch, sequence, group, body_sum = _HEAD.unpack_from(buffer, offset)
    if magic != RECORD_MAGIC or meta_length > META_BYTES_MAX or body_length > BODY_BYTES_MAX:
        raise Corrupt("not a record")
    if epoch is not None and epoch != its_epoch:
        raise Corrupt("record of another epoch")
    meta_at = offset + HEAD_BYTES
    body_at = meta_at + meta_length
    if len(buffer) < body_at + body_length:
        raise Corrupt("record is cut short")
    view = memoryview(buffer)
    identity = b"".join((store_id, view[offset : offset + _HEAD.size], view[meta_at:body_at]))
    if xxh3_64(identity) != _SUM.unpack_from(buffer, offset + _HEAD.size)[0]:
        raise Corrupt("record fails its checksum")
    if version != RECORD_VERSION:
        raise UnknownFormat(
            f"journal record of version {version}; this program reads {RECORD_VERSION}. Use a newer couchestord."
        )
    if xxh3_64(view[body_at : body_at + body_length]) != body_sum:
        raise Corrupt("record body fails its checksum")
    return RecordHead(its_epoch, sequence, group, meta_length, body_length, body_sum)


def record_digest(meta: bytes | memoryview, body_sum: int) -> int:
    """What the record says, whatever epoch it stands under: XXH3 of the meta, seeded with the body's sum."""
    return xxh3_64(meta, body_sum)
