"""The bytes of shard files: segment header, stripe header, payload. Pure.

A segment is k+m shard files, one per disk, `segments/<id, 16 hex digits>.<shard index>`. Page 0 (a page is 4096 bytes)
is the segment header. Stripes follow without gaps, each at the same page in every file of the segment: one page of
stripe header, then the shard's payload, padded to a page. A stripe is named by the page of its header, so the first one
is stripe 1.

Shard i < k holds the bytes from i * shard_length on of the stripe's data, filled up with zeros; the m others are
parity. The stripe header says whose shard it is (store, segment, stripe, index, epoch, k, m), how long the data and the
shard are, and holds one XXH3 per 16 KiB block of the payload; a checksum over all of that ends it. So any range is
verified by reading its blocks only, and a shard of another stripe, segment, epoch or store never passes for the one
asked for.

    stripe header: magic 4 | version 2 | blocks 2 | store id 16 | segment 8 | stripe 8 | epoch 8 | index 2 | k 2 | m 2 |
                   reserved 2 | data length 4 | shard length 4 | block sums 8 each | header sum 8
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from couchestord.ec.codec import Buffer, Codec
from couchestord.errors import Corrupt, InvalidArgument, UnknownFormat
from couchestord.io.checksum import xxh3_64

PAGE_BYTES = 4096
CHECK_BYTES = 16 << 10
"""A block: what one checksum covers."""
ALIGN_BYTES = 64
"""Shard lengths are multiples of this, so that vector instructions run to the end."""
ALGORITHM = "rs-zfec-0x11d"
FOLDER = "segments"
SEGMENT_FORMAT = 1
STRIPE_FORMAT = 1
STORE_ID_BYTES = 16

_SEGMENT_MAGIC = b"CSEG"
_STRIPE_MAGIC = b"CSTR"
_SEGMENT = struct.Struct("<4sHHIQ")
_STRIPE = struct.Struct("<4sHH16sQQQHHHHII")
_SUM = struct.Struct("<Q")
BLOCKS_MAX = (PAGE_BYTES - _STRIPE.size - _SUM.size) // _SUM.size
_STRIPE_BYTES_MAX = 1 << 30


class SegmentHeader(msgspec.Struct, frozen=True, array_like=True):
    """Page 0 of a shard file. With the stripe headers it is all that reading the segment needs."""

    store_id: bytes
    segment: int
    epoch: int
    index: int
    """The shard that this file holds."""
    algorithm: str
    k: int
    m: int
    local_groups: int
    stripe_bytes: int
    check_bytes: int
    disks: tuple[int, ...]
    """Disk of each shard when the file was made, -1 for none."""


@dataclass(frozen=True, slots=True)
class SegmentIdentity:
    """What every stripe header of a segment must say."""

    store_id: bytes
    segment: int
    epoch: int
    k: int
    m: int


@dataclass(frozen=True, slots=True)
class StripeHeader:
    """What a valid stripe header says of its shard; lengths in bytes."""

    length: int
    """Data of the whole stripe."""
    shard_length: int
    sums: bytes
    """XXH3 of each block of this shard's payload, 8 bytes each."""


@dataclass(frozen=True, slots=True)
class EncodedStripe:
    """A stripe ready to be written: per shard its header page and its payload, to be padded to a page."""

    pages: tuple[bytes, ...]
    payloads: tuple[Buffer, ...]
    shard_length: int

    @property
    def pages_count(self) -> int:
        """Pages that the stripe takes in each shard file."""
        return stripe_pages(self.shard_length)

    def buffers(self, index: int) -> list[Buffer]:
        """What lies at the stripe's page in the file of shard `index`."""
        padding = -self.shard_length % PAGE_BYTES
        return [self.pages[index], self.payloads[index], *([bytes(padding)] if padding else [])]


def shard_path(segment: int, index: int) -> str:
    """The file of a shard on its disk."""
    return f"{FOLDER}/{segment:016x}.{index}"


def parse_shard_name(name: str) -> tuple[int, int] | None:
    """(segment, shard index) of a file name below `segments`; None for a name that is not a shard file's."""
    segment, dot, index = name.partition(".")
    if not dot or len(segment) != 16 or not index.isascii() or not index.isdigit() or str(int(index)) != index:
        return None
    try:
        parsed = int(segment, 16), int(index)
    except ValueError:
        return None
    return parsed if shard_path(*parsed) == f"{FOLDER}/{name}" else None


def shard_length(length: int, k: int) -> int:
    """Bytes of each shard of a stripe with `length` bytes of data."""
    return -(-length // (k * ALIGN_BYTES)) * ALIGN_BYTES


def stripe_pages(shard_length_: int) -> int:
    """Pages that a stripe takes in each shard file, its header included."""
    return 1 + -(-shard_length_ // PAGE_BYTES)


def full_stripe_pages(k: int, stripe_bytes: int) -> int:
    """Pages of a stripe that is full: how far behind it the next one lies."""
    return stripe_pages(shard_length(stripe_bytes, k))


def check_stripe_bytes(k: int, stripe_bytes: int) -> None:
    """InvalidArgument unless full stripes of that size can be written: at most what a header page has sums for."""
    if stripe_bytes < 1:
        raise InvalidArgument(f"a stripe of {stripe_bytes} bytes holds nothing")
    limit = min(BLOCKS_MAX * CHECK_BYTES * k, _STRIPE_BYTES_MAX)
    if stripe_bytes > limit or blocks_count(shard_length(stripe_bytes, k)) > BLOCKS_MAX:
        raise InvalidArgument(f"a stripe of {stripe_bytes} bytes is over the limit of {limit} for k={k}")


def blocks_count(shard_length_: int) -> int:
    """Blocks of a shard, the last one possibly short."""
    return -(-shard_length_ // CHECK_BYTES)


# -- segment header ------------------------------------------------------------------------------------------------


def pack_segment_header(header: SegmentHeader) -> bytes:
    """Page 0 of a shard file."""
    payload = msgspec.msgpack.encode(header)
    page = _SEGMENT.pack(_SEGMENT_MAGIC, SEGMENT_FORMAT, 0, len(payload), xxh3_64(payload, SEGMENT_FORMAT)) + payload
    assert len(page) <= PAGE_BYTES
    return page.ljust(PAGE_BYTES, b"\0")


def unpack_segment_header(page: Buffer) -> SegmentHeader:
    """Raises Corrupt, or UnknownFormat for a file that only a newer program can read."""
    if len(page) < PAGE_BYTES:
        raise Corrupt("segment header is cut short")
    magic, version, _, length, checksum = _SEGMENT.unpack_from(page)
    if magic != _SEGMENT_MAGIC:
        raise Corrupt("not a segment header")
    payload = bytes(page[_SEGMENT.size : _SEGMENT.size + length])
    if len(payload) != length or xxh3_64(payload, version) != checksum:
        raise Corrupt("segment header fails its checksum")
    if version != SEGMENT_FORMAT:
        raise UnknownFormat(
            f"segment of format {version}; this program reads {SEGMENT_FORMAT}. Use a newer couchestord."
        )
    try:
        header = msgspec.msgpack.decode(payload, type=SegmentHeader)
    except msgspec.ValidationError as error:
        raise Corrupt(f"segment header does not decode: {error}") from error
    if header.algorithm != ALGORITHM or header.check_bytes != CHECK_BYTES or header.local_groups:
        raise UnknownFormat(
            f"segment coded with {header.algorithm}, {header.local_groups} local groups, checksums over "
            f"{header.check_bytes} bytes: this program does not know that. Use a newer couchestord."
        )
    return header


def check_segment_header(header: SegmentHeader, identity: SegmentIdentity, index: int) -> None:
    """Raises Corrupt when a valid header belongs to another shard than asked for."""
    found = SegmentIdentity(header.store_id, header.segment, header.epoch, header.k, header.m)
    if found != identity or header.index != index:
        raise Corrupt(
            f"the file of shard {header.index} of segment {header.segment} (epoch {header.epoch}) stands in the place "
            f"of shard {index} of segment {identity.segment} (epoch {identity.epoch})"
        )


# -- stripe header -------------------------------------------------------------------------------------------------


def pack_stripe_header(identity: SegmentIdentity, stripe: int, index: int, length: int, payload: Buffer) -> bytes:
    """The header page of one shard of a stripe with `length` bytes of data. Reads the payload once, to sum it."""
    view = memoryview(payload)
    size = view.nbytes
    assert size == shard_length(length, identity.k)
    assert len(identity.store_id) <= STORE_ID_BYTES
    blocks = blocks_count(size)
    assert blocks <= BLOCKS_MAX
    head = _STRIPE.pack(
        _STRIPE_MAGIC, STRIPE_FORMAT, blocks, identity.store_id, identity.segment, stripe, identity.epoch, index,
        identity.k, identity.m, 0, length, size,
    )  # fmt: skip
    sums = [xxh3_64(view[at : at + CHECK_BYTES]) for at in range(0, size, CHECK_BYTES)]
    head += struct.pack(f"<{blocks}Q", *sums)
    return (head + _SUM.pack(xxh3_64(head))).ljust(PAGE_BYTES, b"\0")


def unpack_stripe_header(page: Buffer, identity: SegmentIdentity, stripe: int, index: int) -> StripeHeader:
    """The header of that shard of that stripe. Raises Corrupt when the page is damaged or another's, UnknownFormat."""
    if len(page) < PAGE_BYTES:
        raise Corrupt("stripe header is cut short")
    (magic, version, blocks, store_id, segment, found_stripe, epoch, found_index, k, m, _, length, size) = (
        _STRIPE.unpack_from(page)
    )
    if magic != _STRIPE_MAGIC or blocks > BLOCKS_MAX:
        raise Corrupt("not a stripe header")
    end = _STRIPE.size + blocks * _SUM.size
    if xxh3_64(page[:end]) != _SUM.unpack_from(page, end)[0]:
        raise Corrupt("stripe header fails its checksum")
    if version != STRIPE_FORMAT:
        raise UnknownFormat(f"stripe of format {version}; this program reads {STRIPE_FORMAT}. Use a newer couchestord.")
    found = (store_id, segment, found_stripe, epoch, found_index, k, m)
    wanted = (
        identity.store_id.ljust(STORE_ID_BYTES, b"\0"), identity.segment, stripe, identity.epoch, index, identity.k,
        identity.m,
    )  # fmt: skip
    if found != wanted:
        raise Corrupt(
            f"shard {found_index} of stripe {found_stripe} of segment {segment} (epoch {epoch}, {k}+{m}) stands in the "
            f"place of shard {index} of stripe {stripe} of segment {identity.segment} (epoch {identity.epoch})"
        )
    if not length or size != shard_length(length, k) or blocks != blocks_count(size):
        raise Corrupt("stripe header contradicts itself")
    return StripeHeader(length, size, bytes(page[_STRIPE.size : end]))


def verify_blocks(header: StripeHeader, first_block: int, payload: Buffer) -> None:
    """Raises Corrupt unless `payload`, from the start of a block to the end of one, has the sums of its blocks."""
    view = memoryview(payload)
    start = first_block * CHECK_BYTES
    end = start + view.nbytes
    if not view.nbytes or end > header.shard_length or (end % CHECK_BYTES and end != header.shard_length):
        raise Corrupt("shard is cut short")
    found = [xxh3_64(view[at : at + CHECK_BYTES]) for at in range(0, view.nbytes, CHECK_BYTES)]
    wanted = header.sums[first_block * _SUM.size : (first_block + len(found)) * _SUM.size]
    if struct.pack(f"<{len(found)}Q", *found) != wanted:
        sums = struct.unpack(f"<{len(found)}Q", wanted)
        number = next(number for number, (one, other) in enumerate(zip(found, sums, strict=True)) if one != other)
        raise Corrupt(f"block {first_block + number} fails its checksum")


# -- a whole stripe ------------------------------------------------------------------------------------------------


def encode_stripe(
    codec: Codec, identity: SegmentIdentity, stripe: int, data: Buffer, parity: Sequence[bytearray] | None = None
) -> EncodedStripe:
    """Cut, code and sum one stripe. No copy is made of data shards that are whole.

    `parity`: m buffers of the shard's length to be written over, else new ones are made. The data and these buffers
    must not change as long as the result is in use.
    """
    view = memoryview(data).cast("B")
    length = view.nbytes
    if not length:
        raise InvalidArgument("a stripe without data")
    size = shard_length(length, codec.k)
    shards: list[Buffer] = [view[index * size : (index + 1) * size] for index in range(codec.k)]
    shards = [shard if len(shard) == size else bytes(shard).ljust(size, b"\0") for shard in shards]
    if parity is None:
        shards += codec.encode(shards)
    else:
        codec.encode_into(shards, parity)
        shards += parity
    pages = tuple(pack_stripe_header(identity, stripe, index, length, payload) for index, payload in enumerate(shards))
    return EncodedStripe(pages, tuple(shards), size)
