"""The superblock: who a disk is, and the newest epoch and snapshot it has seen. Pure.

File `superblock`, three pages of 4096 bytes. Page 0 is written once, when the store is made: magic, format, store,
disk. Pages 1 and 2 are slots, written in turn, so that a torn write leaves the other one: the valid slot of the higher
generation counts. Every page carries an XXH3 over its head and payload, seeded with version and page index, so that
a page in another's place is refused. The sum is checked before the version is believed: rot is no newer format.
"""

import struct
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from couchestord.errors import Corrupt, UnknownFormat
from couchestord.io.checksum import xxh3_64

PATH = "superblock"
PAGE_BYTES = 4096
TOKEN_BYTES = 8
FORMAT = 1
"""The format this program writes. `min_reader` and `min_writer` on a disk say which programs may read and write it."""
_HEAD = struct.Struct("<4sHHI")
_SUM = struct.Struct("<Q")
_PAYLOAD_AT = _HEAD.size + _SUM.size
_MAGIC_IDENTITY = b"CDSK"
_MAGIC_SLOT = b"CDSR"


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """Page 0: never changes."""

    store_id: bytes
    disk_id: bytes
    index: int
    """Position of the disk in the store, from 0."""
    disks_count: int
    k: int
    m: int
    disk_classes: tuple[str, ...]
    """Class of every disk of the store, by index, so that one that is missing has its class too. Empty: all default."""
    created_ns: int
    min_reader: int = FORMAT
    min_writer: int = FORMAT
    stripe_bytes: int = 1 << 20
    min_healthy_shards: int = 0
    shards_per_disk: int = 1
    """Most shards of one segment that a disk may hold."""
    log_after: int = 0
    """The log begins behind this sequence. Not 0 in a store that was made anew from what it had published elsewhere:
    what came before is in its catalog and in no record."""


class SnapshotRoot(msgspec.Struct, frozen=True, array_like=True):
    """Where the newest catalog snapshot lies: a run of stripes whose bytes are the snapshot's table of pieces."""

    segment: int
    stripe: int
    length: int
    sequence: int
    """The catalog is that after this sequence."""
    checksum: int


class Slot(msgspec.Struct, frozen=True, array_like=True):
    """Pages 1 and 2: what changes."""

    generation: int
    epoch: int
    snapshot: SnapshotRoot | None = None
    epochs: tuple[int, ...] = ()
    """The newest epoch that each disk of the store was told of, by index. A journal file of a newer one on it was
    written by a part of the store that was started alone."""
    m: int | None = None
    """The most lost disks that any policy makes good, and the journal must outlive. None: as many as k, m and the
    number of disks in the identity tell.
    """
    away: tuple[int, ...] = ()
    """Disks that the copies of the end of the log do not count on, by index: it has less copies for them, since they
    were missing, or they came back since."""
    token: bytes = b""
    """Random, drawn with each epoch that a start or a failure takes: tells the epoch from one of the same number that
    a part of the store took alone, or an older copy of it. Empty: nobody asked for one."""


_T = TypeVar("_T", Identity, Slot)


def _pack(page_index: int, magic: bytes, value: Identity | Slot) -> bytes:
    payload = msgspec.msgpack.encode(value)
    head = _HEAD.pack(magic, FORMAT, 0, len(payload))
    page = head + _SUM.pack(xxh3_64(head + payload, FORMAT << 8 | page_index)) + payload
    assert len(page) <= PAGE_BYTES
    return page.ljust(PAGE_BYTES, b"\0")


def _unpack(page_index: int, magic: bytes, page: bytes, kind: type[_T]) -> _T:
    if len(page) < _PAYLOAD_AT:
        raise Corrupt("superblock page is cut short")
    found, version, _, length = _HEAD.unpack_from(page)
    if found != magic:
        raise Corrupt("not a superblock page")
    payload = page[_PAYLOAD_AT : _PAYLOAD_AT + length]
    if xxh3_64(page[: _HEAD.size] + payload, version << 8 | page_index) != _SUM.unpack_from(page, _HEAD.size)[0]:
        raise Corrupt("superblock page fails its checksum")
    if version > FORMAT:
        raise UnknownFormat(
            f"superblock of format {version}; this program reads up to {FORMAT}. Use a newer couchestord."
        )
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except msgspec.DecodeError as error:
        raise Corrupt(f"superblock page does not decode: {error}") from error


def pack_identity(identity: Identity) -> bytes:
    """Page 0."""
    return _pack(0, _MAGIC_IDENTITY, identity)


def unpack_identity(page: bytes) -> Identity:
    """Read page 0. Raises Corrupt, or UnknownFormat for a disk that a newer program made."""
    identity = _unpack(0, _MAGIC_IDENTITY, page, Identity)
    if identity.min_reader > FORMAT or identity.min_writer > FORMAT:
        raise UnknownFormat(
            f"the disk asks for a program that reads format {identity.min_reader} and writes format "
            f"{identity.min_writer}; "
            f"this one knows {FORMAT}. Use a newer couchestord."
        )
    return identity


def pack_slot(slot: Slot) -> tuple[int, bytes]:
    """(offset in the file, page) of a slot. Generations alternate between the two places."""
    page_index = 1 + slot.generation % 2
    return page_index * PAGE_BYTES, _pack(page_index, _MAGIC_SLOT, slot)


def newest_slot(pages: Sequence[bytes]) -> Slot:
    """The valid slot of the highest generation among pages 1 and 2. Raises Corrupt when neither is valid."""
    found: list[Slot] = []
    for page_index, page in enumerate(pages, start=1):
        try:
            found.append(_unpack(page_index, _MAGIC_SLOT, page, Slot))
        except Corrupt:
            continue
    if not found:
        raise Corrupt("both slots of the superblock are damaged")
    return max(found, key=lambda slot: slot.generation)
