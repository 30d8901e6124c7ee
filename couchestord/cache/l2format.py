"""What lies in the folder of the second cache: its state, its segments, their records and indexes. Pure.

A record is believed for what it says itself: its head names whose it is and carries a sum that is seeded with the
folder's salt, and a sum of the bytes behind it. So whatever lies where a record should be, torn, stale, foreign or of
another place, is either exactly the bytes that were put for that chunk or no record.
"""

import struct
from array import array
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from couchestord.errors import Corrupt, UnknownFormat
from couchestord.io.checksum import xxh3_64

VERSION: Final = 1
FOLDER: Final = "segments"
PAGE_BYTES: Final = 4096
ALIGNMENT_BYTES: Final = 64
"""Records begin at multiples of this, and the one after begins behind the zeroes that fill the last up to one."""

_HEAD: Final = struct.Struct("<4sBB2xQIIIIQQ")
_SUM: Final = struct.Struct("<Q")
HEAD_BYTES: Final = _HEAD.size + _SUM.size
_RECORD: Final = b"CL2R"
_SEGMENT: Final = struct.Struct("<4sH2xIQ")
_SEGMENT_MAGIC: Final = b"CL2S"
_INDEX: Final = struct.Struct("<4sH2xIQQII")
_INDEX_MAGIC: Final = b"CL2I"
INDEX_ENTRY_BYTES: Final = 16
ID_MAX: Final = (1 << 64) - 1
_STATE: Final = struct.Struct("<4sHHI")
_STATE_MAGIC: Final = b"CL2F"


class Head(NamedTuple):
    """What a record says of itself."""

    codec: int
    extent: int
    chunk: int
    logical_bytes: int
    """Of the chunk."""
    stored_bytes: int
    """Of what lies behind the head: the chunk, perhaps made smaller."""
    session: int
    turn: int
    body_sum: int


def segment_path(number: int) -> str:
    """The file of a segment."""
    return f"{FOLDER}/{number:08x}"


def record_bytes(stored_bytes: int) -> int:
    """Room that a record takes."""
    return -(-(HEAD_BYTES + stored_bytes) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def pack_head(salt: int, head: Head) -> bytes:
    """The bytes before the stored ones."""
    packed = _HEAD.pack(_RECORD, VERSION, *head)
    return packed + _SUM.pack(xxh3_64(packed, salt))


def unpack_head(salt: int, data: bytes | bytearray | memoryview, at: int = 0) -> Head | None:
    """The head at an offset of `data`; None when there is none, or not one of this folder."""
    if len(data) < at + HEAD_BYTES:
        return None
    magic, version, *fields = _HEAD.unpack_from(data, at)
    if magic != _RECORD or version != VERSION:
        return None
    if xxh3_64(memoryview(data)[at : at + _HEAD.size], salt) != _SUM.unpack_from(data, at + _HEAD.size)[0]:
        return None
    return Head._make(fields)


def stored_of(head: Head, data: bytes | bytearray | memoryview, at: int = 0) -> memoryview | None:
    """The stored bytes of the record at an offset of `data`; None when they are cut short or fail their sum."""
    stored = memoryview(data)[at + HEAD_BYTES : at + HEAD_BYTES + head.stored_bytes]
    if len(stored) != head.stored_bytes or xxh3_64(stored) != head.body_sum:
        return None
    return stored


# -- a segment's first page, and its index ----------------------------------------------------------------------------


def pack_segment(salt: int, number: int, turn: int) -> bytes:
    """The page before the records of a segment that is written from its beginning for the `turn`-th time."""
    packed = _SEGMENT.pack(_SEGMENT_MAGIC, VERSION, number, turn)
    return (packed + _SUM.pack(xxh3_64(packed, salt))).ljust(PAGE_BYTES, b"\0")


def unpack_segment(salt: int, number: int, page: bytes) -> int | None:
    """The turn, or None when this is no first page of that segment in this folder."""
    if len(page) < _SEGMENT.size + _SUM.size:
        return None
    magic, version, found, turn = _SEGMENT.unpack_from(page)
    good = xxh3_64(page[: _SEGMENT.size], salt) == _SUM.unpack_from(page, _SEGMENT.size)[0]
    return int(turn) if good and (magic, version, found) == (_SEGMENT_MAGIC, VERSION, number) else None


@dataclass(frozen=True, slots=True)
class SegmentIndex:
    """Where the records of a segment lie, up to `end`."""

    number: int
    turn: int
    end: int
    is_full: bool
    """Nothing was written behind `end`."""
    keys: "array[int]"
    places: "array[int]"


def index_bytes(entries_count: int) -> int:
    """Size of an index of so many entries."""
    return _INDEX.size + INDEX_ENTRY_BYTES * entries_count + _SUM.size


def pack_index(salt: int, index: SegmentIndex) -> bytes:
    """The index as it lies at the end of a segment."""
    head = _INDEX.pack(_INDEX_MAGIC, VERSION, index.number, index.turn, index.end, index.is_full, len(index.keys))
    packed = head + index.keys.tobytes() + index.places.tobytes()
    return packed + _SUM.pack(xxh3_64(packed, salt))


def unpack_index(salt: int, number: int, turn: int, data: bytes) -> SegmentIndex | None:
    """The index of that segment and turn; None when it is another's, torn or damaged."""
    if len(data) < _INDEX.size:
        return None
    magic, version, found, of_turn, end, is_full, count = _INDEX.unpack_from(data)
    if (magic, version, found, of_turn) != (_INDEX_MAGIC, VERSION, number, turn):
        return None
    length = index_bytes(count) - _SUM.size
    if len(data) < length + _SUM.size or xxh3_64(data[:length], salt) != _SUM.unpack_from(data, length)[0]:
        return None
    middle = _INDEX.size + 8 * count
    keys, places = array("Q", data[_INDEX.size : middle]), array("Q", data[middle:length])
    return SegmentIndex(number, turn, end, bool(is_full), keys, places)


# -- the state --------------------------------------------------------------------------------------------------------


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """An epoch of a store, told from the same number taken by a part of it that was torn off, or by an older copy."""

    epoch: int
    token: bytes
    """Random, drawn with the epoch. Empty: unknown, and like no other."""


class State(msgspec.Struct, frozen=True, array_like=True):
    """Whose chunks the folder holds."""

    store_id: bytes
    folder_id: bytes
    """Random, drawn when the folder was emptied last: what was written before is void."""
    segment_bytes: int
    session: int
    """Counts the times that the folder was opened."""
    openings: tuple[int, ...]
    """For the last of these sessions, the id from which on what older sessions had written was void."""
    mark: Mark
    """The newest epoch of the store that what lies here may come from."""

    @property
    def salt(self) -> int:
        """Seeds the sums of all that belongs to this store and folder."""
        return xxh3_64(self.store_id + self.folder_id)

    @property
    def limits(self) -> list[int]:
        """By the age of a record in sessions: it counts when its extent's id is below this. Older ones never do."""
        found = [ID_MAX]
        for limit in reversed(self.openings):
            found.append(min(found[-1], limit))
        return found


def pack_state(state: State) -> bytes:
    """The page that is the state's file."""
    payload = msgspec.msgpack.encode(state)
    packed = _STATE.pack(_STATE_MAGIC, VERSION, 0, len(payload)) + payload
    page = packed + _SUM.pack(xxh3_64(packed))
    assert len(page) <= PAGE_BYTES
    return page.ljust(PAGE_BYTES, b"\0")


def unpack_state(page: bytes) -> State:
    """Raises Corrupt, and UnknownFormat for what a newer program wrote."""
    if len(page) < _STATE.size:
        raise Corrupt("the state is cut short")
    magic, version, _, length = _STATE.unpack_from(page)
    end = _STATE.size + length
    if magic != _STATE_MAGIC or len(page) < end + _SUM.size:
        raise Corrupt("not the state of a cache")
    if xxh3_64(page[:end]) != _SUM.unpack_from(page, end)[0]:
        raise Corrupt("the state of the cache fails its checksum")
    if version != VERSION:
        raise UnknownFormat(f"the cache is of format {version}, this program knows {VERSION}: empty its folder")
    try:
        return msgspec.msgpack.decode(page[_STATE.size : end], type=State)
    except msgspec.DecodeError as error:
        raise Corrupt(f"the state of the cache does not decode: {error}") from error
