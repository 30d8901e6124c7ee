"""A blob: many extents in one immutable object of a backend, which says itself what it holds. Pure.

In front lies an index of the extents, behind it their bytes, one extent after the other, in frames: up to 16 KiB of
bytes and the XXH3 of them. So one request brings any range of an extent together with what proves it, and a blob is
read without a catalog. A frame's sum is seeded with whose it is: store, blob, extent, and which frame. One that comes
from another place than was asked for fails as rot does.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from couchestord.errors import Corrupt, UnknownFormat
from couchestord.io.checksum import xxh3_64
from couchestord.remote.backend import Buffer

FRAME_BYTES: Final = 16 << 10
"""Bytes of an extent in a frame; the last one of an extent may be short, and has one at least."""
HEAD_BYTES: Final = 56
EXTENTS_MAX: Final = 1 << 17
_VERSION: Final = 1
_MAGIC: Final = b"CBLB"
_HEAD: Final = struct.Struct("<4sHH16sQQIIQ")
_ENTRY: Final = struct.Struct("<QQIIB7x")
_SUM: Final = struct.Struct("<Q")
_WHOSE: Final = struct.Struct("<16sQQQ")
_PLAIN: Final = 0
_KEY = re.compile(r"blobs/([0-9a-f]{32})/([0-9a-f]{16})-([0-9a-f]{16})")


class BlobName(NamedTuple):
    """Which blob of which store. `epoch`: of the start that made it, so that numbers need not outlive a start."""

    store_id: bytes
    epoch: int
    number: int

    @property
    def key(self) -> str:
        """Under which a backend keeps it. Keys of a store's blobs are in the order of epoch and number."""
        return f"blobs/{self.store_id.hex()}/{self.epoch:016x}-{self.number:016x}"


class Held(NamedTuple):
    """An extent in a blob."""

    extent: int
    offset: int
    """Of its first frame in the blob."""
    length: int
    """Bytes as they are kept; frames add to that."""


class Span(NamedTuple):
    """Bytes of a blob."""

    offset: int
    length: int


def parse_key(key: str) -> BlobName | None:
    """The blob of that key; None for a key that is no blob's."""
    match = _KEY.fullmatch(key)
    return BlobName(bytes.fromhex(match[1]), int(match[2], 16), int(match[3], 16)) if match else None


# -- writing ---------------------------------------------------------------------------------------------------------


class BlobPacker:
    """Gathers the extents of one blob."""

    def __init__(self, size_bytes_max: int) -> None:
        self._left_bytes = size_bytes_max - HEAD_BYTES - _SUM.size
        self._extents: dict[int, Buffer] = {}

    @property
    def extents_count(self) -> int:
        return len(self._extents)

    def add(self, extent: int, data: Buffer) -> bool:
        """Takes an extent that is not in yet, of a byte or more; False when the blob is full. An empty blob takes any.

        The bytes must not change as long as what `pack` returns is in use.
        """
        assert extent not in self._extents
        length = memoryview(data).nbytes
        assert 0 < length < 1 << 32
        needed_bytes = _ENTRY.size + _framed(length)
        if self._extents and (needed_bytes > self._left_bytes or len(self._extents) >= EXTENTS_MAX):
            return False
        self._left_bytes -= needed_bytes
        self._extents[extent] = data
        return True

    def pack(self, name: BlobName) -> tuple[list[Buffer], tuple[Held, ...]]:
        """The blob of that name, in parts, and where in it each extent lies. Sums all of it, for any thread, and copies
        no extent: parts are views of them, with what proves them between.
        """
        assert self._extents
        offset = HEAD_BYTES + _ENTRY.size * len(self._extents) + _SUM.size
        held = []
        for extent, data in self._extents.items():
            held.append(Held(extent, offset, memoryview(data).nbytes))
            offset += _framed(held[-1].length)
        head = _HEAD.pack(_MAGIC, _VERSION, 0, name.store_id, name.epoch, name.number, len(held), FRAME_BYTES, offset)
        entries = [_ENTRY.pack(one.extent, one.offset, one.length, one.length, _PLAIN) for one in held]
        index = b"".join((head, *entries))
        parts: list[Buffer] = [index + _SUM.pack(xxh3_64(index))]
        for extent, data in self._extents.items():
            parts += _frames(memoryview(data).cast("B"), _seed(name, extent))
        return parts, tuple(held)


def _frames(data: memoryview, seed: int) -> Iterator[Buffer]:
    for number, start in enumerate(range(0, len(data), FRAME_BYTES)):
        piece = data[start : start + FRAME_BYTES]
        yield piece
        yield _SUM.pack(xxh3_64(piece, _frame_seed(seed, number)))


# -- reading ---------------------------------------------------------------------------------------------------------


def index_bytes(name: BlobName, head: bytes) -> int:
    """Bytes of head and index together, from the first HEAD_BYTES of a blob. Not proved yet: `read_index` does.

    Raises Corrupt for what cannot be the head of that blob.
    """
    if len(head) < HEAD_BYTES:
        raise Corrupt(f"{name.key} is cut short")
    magic, _, _, store_id, epoch, number, count, _, _ = _HEAD.unpack_from(head)
    if magic != _MAGIC or (store_id, epoch, number) != name or not 0 < count <= EXTENTS_MAX:
        raise Corrupt(f"{name.key} has no head of its own")
    return HEAD_BYTES + _ENTRY.size * int(count) + _SUM.size


def read_index(name: BlobName, data: bytes) -> tuple[Held, ...]:
    """What the blob holds, from its first `index_bytes`. Raises Corrupt; UnknownFormat for a newer or unknown form."""
    length = index_bytes(name, data)
    if len(data) < length:
        raise Corrupt(f"{name.key} is cut short")
    if xxh3_64(data[: length - _SUM.size]) != _SUM.unpack_from(data, length - _SUM.size)[0]:
        raise Corrupt(f"the index of {name.key} fails its checksum")
    _, version, _, _, _, _, count, frame_bytes, size_bytes = _HEAD.unpack_from(data)
    if version > _VERSION or frame_bytes != FRAME_BYTES:
        raise UnknownFormat(f"{name.key} has format {version} with frames of {frame_bytes}. Use a newer couchestord.")
    held = []
    offset = length
    for at in range(HEAD_BYTES, HEAD_BYTES + _ENTRY.size * count, _ENTRY.size):
        extent, found, stored_length, logical_length, codec = _ENTRY.unpack_from(data, at)
        if codec != _PLAIN:
            raise UnknownFormat(f"{name.key} holds an extent of codec {codec}. Use a newer couchestord.")
        if found != offset or stored_length != logical_length or not stored_length:
            raise Corrupt(f"the index of {name.key} contradicts itself")
        held.append(Held(extent, found, stored_length))
        offset += _framed(stored_length)
    if offset != size_bytes:
        raise Corrupt(f"the index of {name.key} contradicts itself")
    return tuple(held)


def size_of(index: Sequence[Held]) -> int:
    """Bytes of the blob of that index."""
    return index[-1].offset + _framed(index[-1].length)


def size_max(length: int, extents_count: int) -> int:
    """Bytes of a blob with so many extents, which hold `length` bytes together; at most."""
    index_bytes = HEAD_BYTES + extents_count * _ENTRY.size + _SUM.size
    return index_bytes + length + (length // FRAME_BYTES + extents_count) * _SUM.size


def span_of(held: Held, start: int, length: int) -> Span:
    """The bytes of the blob that hold, and prove, `length` bytes of an extent from `start` on; both within it."""
    assert 0 <= start < start + length <= held.length
    first, last = start // FRAME_BYTES, (start + length - 1) // FRAME_BYTES
    end = min((last + 1) * FRAME_BYTES, held.length) + (last + 1) * _SUM.size
    return Span(held.offset + first * (FRAME_BYTES + _SUM.size), end - first * (FRAME_BYTES + _SUM.size))


def read_range(name: BlobName, held: Held, start: int, length: int, data: Buffer) -> bytes:
    """The bytes of an extent, verified, from what the blob holds at `span_of`. Raises Corrupt."""
    span = span_of(held, start, length)
    if len(data) != span.length:
        raise Corrupt(f"{name.key} is cut short")
    seed = _seed(name, held.extent)
    first = start // FRAME_BYTES
    pieces: list[memoryview] = []
    with memoryview(data) as view:
        for at in range(0, len(data), FRAME_BYTES + _SUM.size):
            frame = view[at : at + FRAME_BYTES + _SUM.size]
            piece = frame[: -_SUM.size]
            number = first + len(pieces)
            if xxh3_64(piece, _frame_seed(seed, number)) != _SUM.unpack_from(frame, len(piece))[0]:
                raise Corrupt(f"frame {number} of extent {held.extent} in {name.key} fails its checksum")
            pieces.append(piece)
        skipped = start - first * FRAME_BYTES
        pieces[0] = pieces[0][skipped:]
        joined = b"".join(pieces)
    return joined[:length]


def _framed(length: int) -> int:
    return length + -(-length // FRAME_BYTES) * _SUM.size


def _seed(name: BlobName, extent: int) -> int:
    return xxh3_64(_WHOSE.pack(name.store_id, name.epoch, name.number, extent))


def _frame_seed(seed: int, number: int) -> int:
    return (seed + number) % (1 << 64)
