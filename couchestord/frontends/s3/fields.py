"""Headers of requests and responses: attributes, conditions, ranges, times. Pure."""

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from couchestord.errors import InvalidArgument, InvalidRequest, MetadataTooLarge, NotSupported
from couchestord.frontends.http import Response
from couchestord.frontends.s3.routes import Query
from couchestord.model import NO_CONDITIONS, Attributes, ByteRange, Conditions, ObjectInfo

Headers = Mapping[bytes, bytes]
Header = tuple[bytes, bytes]

METADATA_BYTES_MAX: Final = 2048
_METADATA: Final = b"x-amz-meta-"
_STANDARD: Final = {
    "cache-control": b"cache-control",
    "content-disposition": b"content-disposition",
    "content-encoding": b"content-encoding",
    "content-language": b"content-language",
    "content-type": b"content-type",
    "expires": b"expires",
}
_DAYS: Final = (b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed")
"""From 1 January 1970 on."""
_MONTHS: Final = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
_ACCEPT_RANGES: Final = (b"Accept-Ranges", b"bytes")
_DEFAULT_TYPE: Final = b"binary/octet-stream"
_DEFAULT_TYPE_HEADER: Final = (b"content-type", _DEFAULT_TYPE)
_NO_ATTRIBUTES: Final = Attributes()
_RANGE_BYTES_MAX: Final = 128
"""No range is longer. What the expression costs grows with the square of the white space in a value."""
_RANGE = re.compile(rb"\s*bytes\s*=\s*([0-9]*)\s*-\s*([0-9]*)\s*\Z")
_UNSENDABLE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_UNSUPPORTED: Final = (
    b"x-amz-grant-",
    b"x-amz-mfa",
    b"x-amz-object-lock-",
    b"x-amz-server-side-encryption",
    b"x-amz-copy-source-server-side-encryption",
    b"x-amz-tagging",
    b"x-amz-website-redirect-location",
    b"x-amz-write-offset-bytes",
    b"x-amz-if-match-",
    b"x-amz-rename-source",
)
_ACCEPTED: Final = {
    b"x-amz-acl": (b"private", b"bucket-owner-full-control"),
    b"x-amz-storage-class": (b"STANDARD",),
    b"x-amz-object-ownership": (b"BucketOwnerEnforced",),
    b"x-amz-bucket-object-lock-enabled": (b"false", b"False"),
    b"x-amz-tagging-directive": (b"COPY",),
}


def refuse_unsupported(headers: Headers) -> None:
    """Raises NotSupported for a header that asks for something this server would not do."""
    for name, value in headers.items():
        if not name.startswith(b"x-amz-"):
            continue
        accepted = _ACCEPTED.get(name)
        if value not in accepted if accepted is not None else name.startswith(_UNSUPPORTED):
            raise NotSupported(f"this server does not support {name.decode('latin-1')}: {value.decode('latin-1')}")


def text(value: bytes) -> str:
    """The value of a header: UTF-8, or Latin-1 where it is not."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def attributes_of(headers: Headers) -> Attributes:
    """What a PUT, a copy or a new upload stores beside the body. Raises MetadataTooLarge."""
    standard = {}
    for name, header in _STANDARD.items():
        value = headers.get(header)
        if value is None:
            continue
        if name == "content-encoding":
            codings = [coding.strip() for coding in value.split(b",")]
            value = b", ".join(coding for coding in codings if coding and coding.lower() != b"aws-chunked")
        if value:
            standard[name] = text(value)
    metadata, size = {}, 0
    for header, value in headers.items():
        if header.startswith(_METADATA):
            name = header[len(_METADATA) :].decode("latin-1")
            metadata[name] = text(value)
            size += len(name) + len(value)
    if size > METADATA_BYTES_MAX:
        raise MetadataTooLarge(f"user metadata takes {size} bytes, more than {METADATA_BYTES_MAX}")
    return Attributes(standard, metadata) if standard or metadata else _NO_ATTRIBUTES


# -- conditions ------------------------------------------------------------------------------------------------------


def _etags(value: bytes | None) -> tuple[str, ...]:
    """An empty list is a condition too, one that no etag meets."""
    if value is None:
        return ()
    tags = (tag.strip() for tag in text(value).split(","))
    return tuple(tag.removeprefix("W/").strip('"') for tag in tags if tag) or ("",)


def _time_ns(value: bytes | None) -> int | None:
    """An HTTP date; one that cannot be read is no condition (RFC 9110 13.1.3)."""
    if value is None:
        return None
    try:
        at = parsedate_to_datetime(value.decode("latin-1"))
        return int(at.replace(tzinfo=at.tzinfo or UTC).timestamp()) * 1_000_000_000
    except (ValueError, OverflowError):
        return None


def read_conditions(headers: Headers, prefix: bytes = b"") -> Conditions:
    """Conditions of a GET or HEAD, or with `prefix` those of a copy's source."""
    match, none = headers.get(prefix + b"if-match"), headers.get(prefix + b"if-none-match")
    since, until = headers.get(prefix + b"if-modified-since"), headers.get(prefix + b"if-unmodified-since")
    if match is none is since is until is None:
        return NO_CONDITIONS
    return Conditions(_etags(match), _etags(none), _time_ns(since), _time_ns(until))


def write_conditions(headers: Headers, bucket_owner: str | None = None) -> Conditions:
    """Conditions of what changes an object in a bucket that must belong to `bucket_owner`, None: to anybody.

    Raises NotSupported for those that S3 does not define.
    """
    match, none = headers.get(b"if-match"), headers.get(b"if-none-match")
    if none is not None and none != b"*":
        raise NotSupported("on writes, If-None-Match must be *")
    if b"if-modified-since" in headers or b"if-unmodified-since" in headers:
        raise NotSupported("on writes, conditions on the time are not supported")
    if match is none is None and bucket_owner is None:
        return NO_CONDITIONS
    return Conditions(_etags(match), _etags(none), bucket_owner=bucket_owner)


def byte_range(value: bytes | None) -> ByteRange | None:
    """A Range header; None for one that is malformed or has several ranges, which S3 ignores."""
    match = _RANGE.match(value) if value and len(value) <= _RANGE_BYTES_MAX else None
    if match is None:
        return None
    first, last = (int(group) if group else None for group in match.groups())
    if (first is None and last is None) or (first is not None and last is not None and last < first):
        return None
    return ByteRange(first, last)


def copy_range(value: bytes) -> ByteRange:
    """x-amz-copy-source-range. Raises InvalidArgument."""
    found = byte_range(value)
    if found is None or found.first is None or found.last is None:
        raise InvalidArgument("x-amz-copy-source-range must be bytes=first-last")
    return found


# -- times -----------------------------------------------------------------------------------------------------------


def http_time(ns: int) -> bytes:
    """As in Last-Modified. A third of the price of email.utils.formatdate, which was 3 % of a small GET."""
    days, second = divmod(ns // 1_000_000_000, 86400)
    minute, second = divmod(second, 60)
    at = date.fromordinal(_EPOCH_DAY + days)
    parts = (_DAYS[days % 7], at.day, _MONTHS[at.month - 1], at.year, minute // 60, minute % 60, second)
    return b"%b, %02d %b %04d %02d:%02d:%02d GMT" % parts


def iso_time(ns: int) -> str:
    """As in XML: milliseconds."""
    seconds, rest = divmod(ns // 1_000_000, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC).isoformat()[:19]}.{rest:03d}Z"


# -- responses -------------------------------------------------------------------------------------------------------


def _sendable(value: str) -> bytes | None:
    """What the mount stored as an attribute may hold anything; a header may not."""
    encoded = value.encode("utf-8", "surrogateescape")
    return None if _UNSENDABLE.search(encoded) else encoded


def checksum_headers(checksums: Mapping[str, str]) -> list[Header]:
    return [(f"x-amz-checksum-{name}".encode(), value.encode("ascii")) for name, value in checksums.items()]


def version_headers(version_id: str | None, *, delete_marker: bool = False) -> list[Header]:
    headers = [] if version_id is None else [(b"x-amz-version-id", version_id.encode("ascii"))]
    if delete_marker:
        headers.append((b"x-amz-delete-marker", b"true"))
    return headers


def etag_header(etag: str) -> Header:
    return b"ETag", b'"' + etag.encode("ascii") + b'"'


def object_headers(info: ObjectInfo, query: Query, *, checksums: bool) -> list[Header]:
    """The headers of a GET or HEAD but the length. `query`: with overrides (response-content-type, ...).

    Raises InvalidRequest for an override that may not be sent.
    """
    headers = [etag_header(info.etag), (b"Last-Modified", http_time(info.modified_ns)), _ACCEPT_RANGES]
    if info.version_id is not None:
        headers += version_headers(info.version_id)
    stored = info.attributes.headers
    if query.fields or stored:
        headers += _standard_headers(stored, query)
    else:
        headers.append(_DEFAULT_TYPE_HEADER)
    if info.attributes.metadata:
        headers += _metadata_headers(info.attributes.metadata)
    if checksums:
        headers += checksum_headers(info.attributes.checksums)
    return headers


def _standard_headers(stored: Mapping[str, str], query: Query) -> list[Header]:
    """What was stored, unless the query wants something else."""
    headers = []
    for name, header in _STANDARD.items():
        value = query.raw("response-" + name) if query.fields else None
        if value is not None:
            if _UNSENDABLE.search(value):
                raise InvalidRequest(f"response-{name} has characters that no header may have")
            value = value.strip()
        elif name in stored:
            value = _sendable(stored[name])
        elif name == "content-type":
            value = _DEFAULT_TYPE
        if value is not None:
            headers.append((header, value))
    return headers


def _metadata_headers(metadata: Mapping[str, str]) -> list[Header]:
    headers, missing = [], 0
    for name, stored in metadata.items():
        value = _sendable(stored)
        encoded_name = name.encode("utf-8", "surrogateescape")
        if value is None or not _TOKEN.match(encoded_name):
            missing += 1
        else:
            headers.append((_METADATA + encoded_name, value.strip()))
    if missing:
        headers.append((b"x-amz-missing-meta", b"%d" % missing))
    return headers


def xml_response(document: bytes, status: int = 200, headers: tuple[Header, ...] = ()) -> Response:
    return Response(status, [(b"Content-Type", b"application/xml"), *headers], document)
