"""What a mutation did: the meta of journal records. Pure.

A record holds the outcome, not the request: ids, times, etags and places are decided before it is written, so applying
it needs no clock, no randomness and no conditions, and replaying the log gives the catalog row by row. Encoded as
MessagePack arrays behind a tag; fields are only ever appended, with a default, and a tag is never used for something
else.
"""

from typing import Any

import msgspec

from couchestord.io import fileoutcomes as files
from couchestord.io.outcome import Extent as Extent
from couchestord.io.outcome import MadeDirectory as MadeDirectory
from couchestord.io.outcome import Outcome as Outcome
from couchestord.io.outcome import Piece as Piece

IN_JOURNAL = 0
IN_BLOB = 1
LOST = 2
"""Places that are no segments: ids of segments begin above them. Of a body in the record `stripe`; in the blob
`stripe`, whose frames begin at `start`; and nowhere, for what a node that was made anew from a bucket did not get back,
and what was given up (`ec.losing`).
"""


class BucketMade(Outcome, frozen=True, tag=1):
    name: str
    root: int
    owner: str
    created_ns: int
    policy: int = 0


class BucketRemoved(Outcome, frozen=True, tag=2):
    name: str


class BucketVersioned(Outcome, frozen=True, tag=3):
    name: str
    versioning: str


class BucketPolicySet(Outcome, frozen=True, tag=4):
    """New contents of the bucket are kept under another policy."""

    name: str
    policy: int


class ObjectPut(Outcome, frozen=True, tag=10):
    """An entry now names a new inode. The inode, its cookie and, when `extents` is not None, its content have the id
    `id`.

    `extents`: a new content of one whole piece, extent i with id + i. Else `pieces` of contents that exist.
    """

    directory: int
    name: bytes
    id: int
    size: int
    etag: bytes
    modified_ns: int
    attributes: bytes
    made: tuple[MadeDirectory, ...] = ()
    extents: tuple[Extent, ...] | None = None
    pieces: tuple[Piece, ...] = ()
    keep_current: bool = False
    """The entry's present object becomes a noncurrent version instead of going."""
    versioned: bool = False
    """The new object has a version id of its own; else it is the null version."""
    drop_null: bool = False
    """A noncurrent null version goes."""
    upload: str = ""
    """The upload that this completes."""
    result: bytes = b""
    policy: int = 0
    """That of the new content; pieces keep theirs."""
    content: int = 0
    """Id of the new content, with extent i having this + i, when it was chosen before; 0: it is `id`."""
    keep_open: bool = False
    """A mount shows the bucket. The object that goes stays without a name until it is freed, it may be open; and the
    times of directories follow.
    """


class ObjectDeleted(Outcome, frozen=True, tag=11):
    """The live entry goes (its object becomes a noncurrent version with `keep_current`); with `marker` a delete
    marker of that id comes.
    """

    directory: int
    name: bytes
    keep_current: bool = False
    marker: int = 0
    marker_versioned: bool = False
    drop_null: bool = False
    modified_ns: int = 0
    made: tuple[MadeDirectory, ...] = ()
    keep_open: bool = False
    """As in `ObjectPut`."""
    with_directory: bool = False
    """The directory goes, too, and those that it lay in, as far as they are empty, though somebody asked to keep them.
    """


class VersionDeleted(Outcome, frozen=True, tag=12):
    """The version `id` of an entry goes; when it was the current one, the newest left takes its place, unless that
    is a marker.
    """

    directory: int
    name: bytes
    id: int


class UploadMade(Outcome, frozen=True, tag=20):
    upload: str
    bucket: str
    key: bytes
    created_ns: int
    attributes: bytes


class PartPut(Outcome, frozen=True, tag=21):
    """A part is a content of its own (id `id`), or pieces of others."""

    upload: str
    number: int
    id: int
    size: int
    etag: bytes
    modified_ns: int
    checksums: bytes
    extents: tuple[Extent, ...] = ()
    pieces: tuple[Piece, ...] = ()
    policy: int = 0
    """That of the new content."""


class UploadAborted(Outcome, frozen=True, tag=22):
    upload: str


class ResultsForgotten(Outcome, frozen=True, tag=23):
    """Results of completed uploads made before `before_ns` are gone."""

    before_ns: int


class UserMade(Outcome, frozen=True, tag=30):
    name: str
    admin: bool
    created_ns: int


class UserRemoved(Outcome, frozen=True, tag=31):
    name: str


class KeyMade(Outcome, frozen=True, tag=32):
    access_key: str
    user: str
    secret_key: str
    created_ns: int


class KeyRemoved(Outcome, frozen=True, tag=33):
    access_key: str


class SettingPut(Outcome, frozen=True, tag=40):
    name: str
    value: bytes


class JobPut(Outcome, frozen=True, tag=41):
    """Progress of a background job; empty: forgotten."""

    name: str
    state: bytes


class PolicyPut(Outcome, frozen=True, tag=42):
    """A policy is new, or another from now on."""

    id: int
    name: str
    k: int
    m: int
    stripe_bytes: int
    min_healthy_shards: int
    disk_class: str
    created_ns: int


class SegmentMade(Outcome, frozen=True, tag=50):
    """A segment is open. `disks[i]` is the index of the disk with shard i, -1 for none."""

    id: int
    epoch: int
    k: int
    m: int
    stripe_bytes: int
    disks: tuple[int, ...]
    policy: int = 0


class SegmentSealed(Outcome, frozen=True, tag=51):
    """No stripe will be added. `stripes_end` is the page after its last stripe, -1 when it has to be found on the
    disks.
    """

    id: int
    stripes_end: int
    missing: int = 0


class SegmentDropped(Outcome, frozen=True, tag=52):
    id: int


class ShardsLost(Outcome, frozen=True, tag=53):
    """Bit i of `missing`: shard i of the segment is not whole on its disk."""

    id: int
    missing: int


class ShardPlaced(Outcome, frozen=True, tag=54):
    """Shard `index` of the segment is whole, verified and synced on `disk`."""

    id: int
    index: int
    disk: int


class Move(msgspec.Struct, frozen=True, array_like=True):
    """An extent keeps its id and goes to another place."""

    extent: int
    segment: int
    stripe: int
    start: int


class ExtentsMoved(Outcome, frozen=True, tag=55):
    moves: tuple[Move, ...]


class BlobBegun(Outcome, frozen=True, tag=60):
    """An object of that name may be in the bucket from now on. Ids from `id` on are used, `ids` of them."""

    id: int
    epoch: int
    ids: int = 1


class Copied(msgspec.Struct, frozen=True, array_like=True):
    """Where the frames of an extent begin in a blob."""

    extent: int
    start: int


class BlobConfirmed(Outcome, frozen=True, tag=61):
    """The blob was proved to be there; these extents have it for their copy, and no other. One that lies in a bucket
    only lies there now.
    """

    id: int
    size: int
    copies: tuple[Copied, ...]


class BlobDropped(Outcome, frozen=True, tag=62):
    """Nothing is in the blob, nor will be: it may be deleted once no catalog that may come back asks for it."""

    id: int


class CopiesLost(Outcome, frozen=True, tag=63):
    """These extents have no copy any more."""

    extents: tuple[int, ...]


class BlobForgotten(Outcome, frozen=True, tag=64):
    """The blob is not in the bucket."""

    id: int


AnyOutcome = (
    BucketMade
    | BucketRemoved
    | BucketVersioned
    | BucketPolicySet
    | ObjectPut
    | ObjectDeleted
    | VersionDeleted
    | UploadMade
    | PartPut
    | UploadAborted
    | ResultsForgotten
    | UserMade
    | UserRemoved
    | KeyMade
    | KeyRemoved
    | SettingPut
    | JobPut
    | PolicyPut
    | SegmentMade
    | SegmentSealed
    | SegmentDropped
    | ShardsLost
    | ShardPlaced
    | ExtentsMoved
    | BlobBegun
    | BlobConfirmed
    | BlobDropped
    | CopiesLost
    | BlobForgotten
    | files.AnyFileOutcome
)

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(AnyOutcome)


def encode(outcome: AnyOutcome) -> bytes:
    """The meta of a record."""
    return _ENCODER.encode(outcome)


def decode(meta: bytes | memoryview) -> AnyOutcome:
    """Raises msgspec.ValidationError for a meta that no program of this version wrote."""
    outcome: AnyOutcome = _DECODER.decode(meta)
    return outcome


def encode_pieces(pieces: tuple[Piece, ...]) -> bytes:
    """A part's pieces, as its row holds them."""
    return _ENCODER.encode(pieces)


def decode_pieces(encoded: bytes) -> tuple[Piece, ...]:
    """As `encode_pieces` took them."""
    return msgspec.msgpack.decode(encoded, type=tuple[Piece, ...])
