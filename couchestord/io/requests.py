"""What the store's writer is asked to do. Pure values.

A request is decided inside the writer's transaction (`store.decide`): it either becomes an outcome (mutations.py) or
an error. Front ends and background jobs hand requests over; nothing else changes the catalog.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from couchestord.io.mutations import Extent
from couchestord.model import DEFAULT_POLICY, Attributes, Conditions, Policy


@dataclass(frozen=True, slots=True)
class MakeBucket:
    name: str
    owner: str
    policy: str = DEFAULT_POLICY


@dataclass(frozen=True, slots=True)
class RemoveBucket:
    """`owner`: whom it must belong to."""

    name: str
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class SetVersioning:
    name: str
    versioning: str


@dataclass(frozen=True, slots=True)
class SetBucketPolicy:
    name: str
    policy: str


@dataclass(frozen=True, slots=True)
class PutObject:
    """`extents` with segment 0 lie in `body`, which rides in the record; those with segment 1 in blobs that were
    confirmed and are held, and then their ids begin with `content`. `policy`: the id of the one they lie under.
    """

    bucket: str
    key: bytes
    size: int
    etag: bytes
    attributes: Attributes
    conditions: Conditions
    extents: tuple[Extent, ...]
    body: bytes = b""
    body_sum: int = 0
    policy: int = 0
    content: int = 0


@dataclass(frozen=True, slots=True)
class CopyObject:
    """By reference. `attributes` None: the source's, whose checksums the copy has in any case."""

    bucket: str
    key: bytes
    source_bucket: str
    source_key: bytes
    source_version_id: str | None
    attributes: Attributes | None
    conditions: Conditions
    source_conditions: Conditions


@dataclass(frozen=True, slots=True)
class DeleteObject:
    bucket: str
    key: bytes
    version_id: str | None
    conditions: Conditions


@dataclass(frozen=True, slots=True)
class MakeUpload:
    bucket: str
    key: bytes
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class PutPart:
    bucket: str
    key: bytes
    upload: str
    number: int
    size: int
    etag: bytes
    checksums: Mapping[str, str]
    extents: tuple[Extent, ...]
    body: bytes = b""
    body_sum: int = 0
    policy: int = 0
    content: int = 0


@dataclass(frozen=True, slots=True)
class CopyPart:
    """A part by reference: `length` bytes from `first` on of the source."""

    bucket: str
    key: bytes
    upload: str
    number: int
    source_bucket: str
    source_key: bytes
    source_version_id: str | None
    first: int | None
    last: int | None
    source_conditions: Conditions


@dataclass(frozen=True, slots=True)
class CompleteUpload:
    """`checksums`: those of the object that the parts make."""

    bucket: str
    key: bytes
    upload: str
    parts: tuple[tuple[int, str], ...]
    conditions: Conditions
    checksums: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AbortUpload:
    """`idle_before_ns`: only when no part came since then."""

    bucket: str
    key: bytes
    upload: str
    idle_before_ns: int | None = None


@dataclass(frozen=True, slots=True)
class ForgetResults:
    before_ns: int


@dataclass(frozen=True, slots=True)
class MakeUser:
    name: str
    admin: bool


@dataclass(frozen=True, slots=True)
class RemoveUser:
    name: str


@dataclass(frozen=True, slots=True)
class MakeKey:
    user: str
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class RemoveKey:
    access_key: str


@dataclass(frozen=True, slots=True)
class PutSetting:
    name: str
    value: bytes


@dataclass(frozen=True, slots=True)
class PutPolicy:
    """A policy that replaces `old`, or with None a new one, whose id and time are then chosen. Answers the policy.

    That the disks can hold it is for the caller to see to.
    """

    policy: Policy
    old: Policy | None


@dataclass(frozen=True, slots=True)
class SaveJob:
    """Progress of a background job; empty: forget it."""

    name: str
    state: bytes


@dataclass(frozen=True, slots=True)
class MakeSegment:
    """`disks[i]` is the disk of shard i, -1 for none. Answers the segment's row; its files do not exist yet."""

    k: int
    m: int
    stripe_bytes: int
    disks: tuple[int, ...]
    policy: int = 0


@dataclass(frozen=True, slots=True)
class SealSegment:
    """`stripes_end`: the page after the last stripe, -1 when it has to be found. `missing`: bit i, shard i is not
    whole.
    """

    id: int
    stripes_end: int
    missing: int = 0


@dataclass(frozen=True, slots=True)
class DropSegment:
    """Answers True when the segment was sealed and without live bytes, and is gone; else False and nothing happened."""

    id: int


@dataclass(frozen=True, slots=True)
class LoseShards:
    id: int
    missing: int


@dataclass(frozen=True, slots=True)
class PlaceShard:
    """Answers False, and does nothing, when the segment is gone."""

    id: int
    index: int
    disk: int


@dataclass(frozen=True, slots=True)
class ExtentMove:
    """From (segment, stripe, start) to another; compared with the row before it is set."""

    extent: int
    old: tuple[int, int, int]
    new: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class MoveExtents:
    """Answers how many extents were still at their old place and moved; the others' new bytes are garbage."""

    moves: tuple[ExtentMove, ...]


@dataclass(frozen=True, slots=True)
class BeginBlob:
    """Answers the number of a blob that none was named like. `epoch`: the one that this start has claimed in the
    bucket. `ids`: so many ids after the number are the caller's as well.
    """

    epoch: int
    ids: int = 0


@dataclass(frozen=True, slots=True)
class ConfirmBlob:
    """The blob was proved to hold, for each of these extents, so many bytes (its length), from there on. Answers how
    many of them still exist, and had no copy or one in the blob `replaces`; they have one now. May be said of one blob
    several times, for other extents. Raises Unavailable when it was not begun in `epoch`, or dropped.
    """

    epoch: int
    id: int
    size: int
    held: tuple[tuple[int, int, int], ...]
    """(extent, start, length)."""
    replaces: int = 0


@dataclass(frozen=True, slots=True)
class DropBlob:
    """Answers True when the blob was confirmed and nothing is in it: it may be deleted, and nothing comes into it."""

    id: int


@dataclass(frozen=True, slots=True)
class ForgetBlob:
    """The blob is not in the bucket. Answers True when it was dropped, or begun before `epoch` and never confirmed; the
    catalog knows nothing of it any more.
    """

    epoch: int
    id: int


@dataclass(frozen=True, slots=True)
class LoseCopies:
    """The blob is gone or bad: of these extents, those that lie elsewhere have no copy any more. Answers how many."""

    blob: int
    extents: tuple[int, ...]
