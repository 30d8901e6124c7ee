"""The values that pass between front ends and store. Pure: no I/O, no clock."""

from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

KEY_LENGTH_BYTES_MAX = 1024
BUCKET_NAME_LENGTH_MIN = 3
BUCKET_NAME_LENGTH_MAX = 63
PART_NUMBER_MAX = 10_000
PART_BYTES_MIN = 5 << 20
"""Least size of every part but the last, checked by complete_upload."""
OBJECT_BYTES_MAX = 5 << 40
LIST_KEYS_MAX = 1000


@runtime_checkable
class FillingBody(Protocol):
    """A body that can be read into the memory where it is wanted, instead of piece by piece: that saves a copy."""

    async def read_into(self, buffer: memoryview) -> int:
        """Write the next bytes over the start of `buffer`, which is not empty: how many, 0 at the end.

        Called by one task at a time. A call that was cancelled may have lost bytes: give the body up then.
        """
        ...


Body = bytes | AsyncIterable[bytes | bytearray] | FillingBody
"""A body: bytes, or what is consumed once: an async iterable of bytes-like pieces, or a FillingBody."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What travels with an object and is returned with it.

    `headers` holds standard HTTP headers by lower-case name (content-type, cache-control, content-disposition,
    content-encoding, content-language, expires). `metadata` is the user's (x-amz-meta-*, lower-case names without that
    prefix). `checksums` maps an algorithm (crc32, crc32c, crc64nvme, sha1, sha256) to base64, and `type` to
    FULL_OBJECT or COMPOSITE; those an upload is begun with say which `algorithm` and `type` the object's will be.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conditions:
    """Preconditions. Etags without quotes; `*` matches any object. Times in nanoseconds since 1970, UTC."""

    if_match: tuple[str, ...] = ()
    if_none_match: tuple[str, ...] = ()
    if_modified_since_ns: int | None = None
    if_unmodified_since_ns: int | None = None
    bucket_owner: str | None = None
    """Of a change: whom the bucket must belong to when it is made."""


NO_CONDITIONS = Conditions()


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A range as asked for: first and last offset, both inclusive. `first` None: the last `last` bytes. `last` None:
    to the end.
    """

    first: int | None
    last: int | None = None


class ObjectInfo(NamedTuple):
    """One version of an object."""

    bucket: str
    key: bytes
    size_bytes: int
    etag: str
    """Without quotes: MD5 in hex, or `hex-parts` for a multipart object."""
    modified_ns: int
    attributes: Attributes
    version_id: str | None = None
    """None in a bucket that never was versioned; "null" for the version written while it was not."""
    delete_marker: bool = False
    parts_count: int | None = None


ANY_CLASS = "any"
"""What commands and files write for `Policy.disk_class` being empty."""
DEFAULT_POLICY = "default"


@dataclass(frozen=True, slots=True)
class Policy:
    """How data is coded and where it lies: k data and m parity shards, on disks of one class.

    Id 0 is the default policy, which every store has. A policy that changes applies to new segments only.
    """

    id: int = 0
    name: str = DEFAULT_POLICY
    k: int = 4
    m: int = 2
    stripe_bytes: int = 1 << 20
    """Data bytes of a full stripe."""
    min_healthy_shards: int = 0
    """Fewest shards that a segment may be written with; 0: k."""
    disk_class: str = ""
    """Class of the disks that its segments lie on; empty: any."""
    created_ns: int = 0

    @property
    def shards_count(self) -> int:
        return self.k + self.m

    @property
    def shards_min(self) -> int:
        """Fewest shards that a segment may be written with."""
        return self.min_healthy_shards or self.k


@dataclass(frozen=True, slots=True)
class BucketInfo:
    name: str
    created_ns: int
    owner: str
    versioning: str = ""
    """"", "Enabled" or "Suspended"."""
    policy: str = DEFAULT_POLICY
    """Name of the policy that new objects are kept under."""


@dataclass(frozen=True, slots=True)
class ListEntry:
    """A row of a listing."""

    key: bytes
    size_bytes: int
    etag: str
    modified_ns: int


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a listing, keys and common prefixes each in bytewise order.

    `next_start`, when not None, is the `start_after` of the next page (a key or a common prefix).
    """

    entries: tuple[ListEntry, ...]
    prefixes: tuple[bytes, ...]
    next_start: bytes | None


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """What a delete did. `version_id` is the marker made or the version removed, None without versioning."""

    version_id: str | None = None
    delete_marker: bool = False


@dataclass(frozen=True, slots=True)
class UploadInfo:
    upload_id: str
    bucket: str
    key: bytes
    initiated_ns: int


@dataclass(frozen=True, slots=True)
class PartInfo:
    number: int
    size_bytes: int
    etag: str
    modified_ns: int
    checksums: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may sign requests. `admin` may do everything; policies come later."""

    name: str
    admin: bool
    created_ns: int


@dataclass(frozen=True, slots=True, repr=False)
class AccessKey:
    """A pair of access key and secret. Its repr never shows the secret."""

    user: str
    access_key: str
    secret_key: str
    created_ns: int

    def __repr__(self) -> str:
        return f"AccessKey(user={self.user!r}, access_key={self.access_key!r})"
