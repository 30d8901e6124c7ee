"""Which operation a request asks for, and on what. Pure.

A target is decoded once, here. What was decoded is what is signed over, authorised and stored: no later step looks at
the raw path again.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from couchestord.errors import InvalidArgument, InvalidURI, MethodNotAllowed, NotSupported

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_QUERY_FIELDS_MAX: Final = 200


class Operation(StrEnum):
    __hash__ = str.__hash__  # that of an enumeration is a function in Python

    LIST_BUCKETS = "ListBuckets"
    CREATE_BUCKET = "CreateBucket"
    HEAD_BUCKET = "HeadBucket"
    DELETE_BUCKET = "DeleteBucket"
    GET_BUCKET_LOCATION = "GetBucketLocation"
    GET_BUCKET_VERSIONING = "GetBucketVersioning"
    LIST_OBJECTS = "ListObjects"
    LIST_OBJECTS_V2 = "ListObjectsV2"
    LIST_UPLOADS = "ListMultipartUploads"
    DELETE_OBJECTS = "DeleteObjects"
    PUT_OBJECT = "PutObject"
    COPY_OBJECT = "CopyObject"
    GET_OBJECT = "GetObject"
    HEAD_OBJECT = "HeadObject"
    DELETE_OBJECT = "DeleteObject"
    CREATE_UPLOAD = "CreateMultipartUpload"
    UPLOAD_PART = "UploadPart"
    UPLOAD_PART_COPY = "UploadPartCopy"
    COMPLETE_UPLOAD = "CompleteMultipartUpload"
    ABORT_UPLOAD = "AbortMultipartUpload"
    LIST_PARTS = "ListParts"


@dataclass(frozen=True)
class Query:
    """The fields of a query string, decoded once, in their order."""

    fields: tuple[tuple[bytes, bytes], ...]

    @cached_property
    def _first(self) -> Mapping[bytes, bytes]:
        return dict(reversed(self.fields))

    def __contains__(self, name: str) -> bool:
        return name.encode("ascii") in self._first

    def raw(self, name: str) -> bytes | None:
        """The first value of a field."""
        return self._first.get(name.encode("ascii"))

    def text(self, name: str, default: str = "") -> str:
        """The first value as text. Raises InvalidArgument when it is not UTF-8."""
        value = self.raw(name)
        if value is None:
            return default
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidArgument(f"{name} is not UTF-8") from None

    def number(self, name: str, default: int, largest: int) -> int:
        """A count: `default` when absent or empty, at most `largest`. Raises InvalidArgument when it is none."""
        text = self.text(name)
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) > 0x7FFFFFFF:
            raise InvalidArgument(f"{name} must be a whole number from 0 to {0x7FFFFFFF}")
        return min(int(text), largest)


NO_QUERY: Final = Query(())


class Target(NamedTuple):
    """What a request line names. `path` is decoded; `bucket` is empty for the service, `key` for a bucket."""

    path: bytes
    bucket: str
    key: bytes
    query: Query


def parse_target(raw: bytes) -> Target:
    """A request target in path style. `+` is a plus in the path and a space in the query. Raises InvalidURI."""
    path, _, query = raw.partition(b"?")
    if not path.startswith(b"/"):
        raise InvalidURI("the target must be a path")
    path = _unquote(path)
    bucket, _, key = path[1:].partition(b"/")
    # A bucket's name that is no ASCII stays visible in the error that the store's check gives it.
    return Target(path, bucket.decode("utf-8", "backslashreplace"), key, parse_query(query))


def parse_query(raw: bytes) -> Query:
    """Raises InvalidURI."""
    if not raw:
        return NO_QUERY
    parts = [part for part in raw.split(b"&") if part]
    if len(parts) > _QUERY_FIELDS_MAX:
        raise InvalidURI("too many query fields")
    pairs = (part.replace(b"+", b" ").partition(b"=") for part in parts)
    return Query(tuple((_unquote(name), _unquote(value)) for name, _, value in pairs))


def parse_copy_source(raw: bytes) -> tuple[str, bytes, str | None]:
    """`x-amz-copy-source`: bucket, key, version. Raises InvalidArgument."""
    path, mark, query = raw.partition(b"?")
    if mark and not query.startswith(b"versionId="):
        # An unencoded question mark in the key.
        path, query = raw, b""
    try:
        bucket, _, key = _unquote(path).removeprefix(b"/").partition(b"/")
        version = parse_query(query).text("versionId") or None
        name = bucket.decode("ascii")
    except (InvalidURI, UnicodeDecodeError):
        name, key, version = "", b"", None
    if not name or not key:
        raise InvalidArgument("x-amz-copy-source must be bucket/key, URL-encoded")
    return name, key, version


def _unquote(value: bytes) -> bytes:
    if b"%" not in value:
        return value
    if _BAD_ESCAPE.search(value):
        raise InvalidURI("a percent sign must be followed by two hexadecimal digits")
    return unquote_to_bytes(value)


# -- the table -------------------------------------------------------------------------------------------------------

_SERVICE: Final = {b"GET": Operation.LIST_BUCKETS}
_BUCKET: Final = {
    b"GET": Operation.LIST_OBJECTS,
    b"PUT": Operation.CREATE_BUCKET,
    b"HEAD": Operation.HEAD_BUCKET,
    b"DELETE": Operation.DELETE_BUCKET,
}
_OBJECT: Final = {
    b"GET": Operation.GET_OBJECT,
    b"PUT": Operation.PUT_OBJECT,
    b"HEAD": Operation.HEAD_OBJECT,
    b"DELETE": Operation.DELETE_OBJECT,
}
_BUCKET_SUBRESOURCES: Final = {
    (b"GET", "location"): Operation.GET_BUCKET_LOCATION,
    (b"GET", "versioning"): Operation.GET_BUCKET_VERSIONING,
    (b"GET", "uploads"): Operation.LIST_UPLOADS,
    (b"POST", "delete"): Operation.DELETE_OBJECTS,
}
_OBJECT_SUBRESOURCES: Final = {
    (b"POST", "uploads"): Operation.CREATE_UPLOAD,
    (b"POST", "uploadId"): Operation.COMPLETE_UPLOAD,
    (b"PUT", "uploadId"): Operation.UPLOAD_PART,
    (b"GET", "uploadId"): Operation.LIST_PARTS,
    (b"DELETE", "uploadId"): Operation.ABORT_UPLOAD,
}
SUBRESOURCES: Final = frozenset(
    {
        "accelerate",
        "acl",
        "analytics",
        "annotation",
        "attributes",
        "cors",
        "delete",
        "encryption",
        "intelligent-tiering",
        "inventory",
        "legal-hold",
        "lifecycle",
        "location",
        "logging",
        "metadataConfiguration",
        "metadataInventoryTable",
        "metadataJournalTable",
        "metadataTable",
        "metrics",
        "notification",
        "object-lock",
        "ownershipControls",
        "partNumber",
        "policy",
        "policyStatus",
        "publicAccessBlock",
        "renameObject",
        "replication",
        "requestPayment",
        "restore",
        "retention",
        "select",
        "session",
        "tagging",
        "torrent",
        "uploadId",
        "uploads",
        "versioning",
        "versions",
        "website",
    }
)
"""Query fields that turn a request into another operation. One that is not in the tables above must never be taken for
the plain operation: `PUT ?acl` would overwrite the object."""


def route(method: bytes, target: Target, *, copy_source: bool) -> Operation:
    """The operation. `copy_source`: the request has an x-amz-copy-source.

    Raises NotSupported for what S3 knows and this program does not, MethodNotAllowed for the rest.
    """
    fields = target.query.fields
    named = [name for name, _ in fields if name.decode("latin-1") in SUBRESOURCES] if fields else []
    if not target.bucket:
        return _plain(_SERVICE, method, named)
    if not target.key:
        operation = _chosen(_BUCKET, _BUCKET_SUBRESOURCES, method, named)
        if operation is Operation.LIST_OBJECTS and target.query.raw("list-type") == b"2":
            return Operation.LIST_OBJECTS_V2
        return operation
    return _object(method, target, named, copy_source=copy_source)


def _object(method: bytes, target: Target, named: list[bytes], *, copy_source: bool) -> Operation:
    if method == b"PUT" and "uploadId" in target.query:
        if "partNumber" not in target.query:
            raise InvalidArgument("partNumber is missing")
        named = [name for name in named if name != b"partNumber"]
    operation = _chosen(_OBJECT, _OBJECT_SUBRESOURCES, method, named)
    if method == b"PUT" and "versionId" in target.query:
        raise InvalidArgument("a version cannot be written to: PUT takes no versionId")
    if copy_source:
        if operation is Operation.PUT_OBJECT:
            return Operation.COPY_OBJECT
        if operation is Operation.UPLOAD_PART:
            return Operation.UPLOAD_PART_COPY
    return operation


def _chosen(
    plain: Mapping[bytes, Operation],
    by_subresource: Mapping[tuple[bytes, str], Operation],
    method: bytes,
    named: list[bytes],
) -> Operation:
    if len(named) == 1:
        operation = by_subresource.get((method, named[0].decode("ascii")))
        if operation is not None:
            return operation
    return _plain(plain, method, named)


def _plain(plain: Mapping[bytes, Operation], method: bytes, named: list[bytes]) -> Operation:
    if named:
        raise NotSupported(f"this server does not support {method.decode('latin-1')} ?{named[0].decode('ascii')}")
    if method == b"POST":
        raise NotSupported("this server does not support uploads by HTML form")
    operation = plain.get(method)
    if operation is None:
        raise MethodNotAllowed(f"{method.decode('latin-1')} does not fit this resource")
    return operation
