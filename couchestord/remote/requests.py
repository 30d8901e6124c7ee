"""S3 requests, signed, and what S3 answers to them, read. Pure: the clock is passed in."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from couchestord.elements import read
from couchestord.errors import MalformedXML
from couchestord.remote.backend import Buffer, Page, Stored, parts_length
from couchestord.remote.location import Credentials, Location
from couchestord.remote.messages import Ask, Reply
from couchestord.signing import (
    ALGORITHM,
    EMPTY_SHA256,
    SigningKey,
    canonical_query,
    canonical_request,
    signing_key,
    string_to_sign,
)

_CONTENT_RANGE = re.compile(rb"bytes (?:([0-9]{1,15})-([0-9]{1,15})|\*)/([0-9]{1,15})")
_MESSAGE_LENGTH_MAX: Final = 300


class Request(NamedTuple):
    """What is wanted, not signed yet. The key `""` is the bucket itself."""

    method: bytes
    key: str = ""
    query: Sequence[tuple[bytes, bytes]] = ()
    headers: Mapping[bytes, bytes] = {}
    body: Sequence[Buffer] = ()
    body_sha256: str = EMPTY_SHA256


class Signer:
    """Signs requests to one bucket in one region (Signature Version 4)."""

    def __init__(self, location: Location, region: str) -> None:
        self._location = location
        self._region = region
        self._key: tuple[Credentials, str, SigningKey] | None = None

    def sign(self, request: Request, credentials: Credentials, now_ns: int) -> Ask:
        """The request as it is sent. All headers but Content-Length are signed: some servers never see that one."""
        location, method = self._location, request.method
        timestamp = datetime.fromtimestamp(now_ns // 10**9, UTC).strftime("%Y%m%dT%H%M%SZ")
        date = timestamp[:8]
        path = f"/{location.bucket}" + (f"/{location.prefix}{request.key}" if request.key else "")
        payload = request.body_sha256.encode("ascii")
        headers = {
            b"host": location.authority.encode("ascii"),
            b"x-amz-content-sha256": payload,
            b"x-amz-date": timestamp.encode("ascii"),
            **request.headers,
        }
        if credentials.session_token:
            headers[b"x-amz-security-token"] = credentials.session_token.encode("ascii")
        names = sorted(headers)
        scope = f"{date}/{self._region}/s3/aws4_request"
        canonical = canonical_request(method, path.encode("ascii"), request.query, headers, names, payload)
        signature = self._signing_key(credentials, date).sign(string_to_sign(timestamp, scope, canonical))
        headers[b"authorization"] = (
            f"{ALGORITHM} Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={b';'.join(names).decode('ascii')}, Signature={signature}"
        ).encode("ascii")
        if method == b"PUT":
            headers[b"content-length"] = b"%d" % parts_length(request.body)
        target = quote(path, safe="/-_.~").encode("ascii")
        if request.query:
            target += b"?" + canonical_query(request.query)
        return Ask(method, target, list(headers.items()), request.body)

    def _signing_key(self, credentials: Credentials, date: str) -> SigningKey:
        if self._key is None or self._key[:2] != (credentials, date):
            self._key = (credentials, date, signing_key(credentials.secret_key, date, self._region))
        return self._key[2]


def sha256_of(parts: Sequence[Buffer]) -> bytes:
    """Of all parts, one after the other. Lets other threads run."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


class Refusal(NamedTuple):
    """What a reply that is no success says."""

    status: int
    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.status} {self.code}".rstrip() + (f": {self.message}" if self.message else "")


def read_refusal(reply: Reply) -> Refusal:
    """Of any reply: what is no S3 error has no code."""
    try:
        root = read(reply.body, "Error")
        code, message = root.child("Code") or "", root.child("Message") or ""
    except MalformedXML:
        code, message = "", ""
    region = reply.headers.get(b"x-amz-bucket-region", b"").decode("latin-1")
    if region:
        message = f"{message} (the bucket is in the region {region})"
    return Refusal(reply.status, code, "".join(filter(str.isprintable, message))[:_MESSAGE_LENGTH_MAX])


def read_page(body: bytes, prefix: str) -> Page:
    """A page of ListObjectsV2 in the encoding `url`; `prefix` is taken off the keys. Raises MalformedXML."""
    root = read(body, "ListBucketResult")
    found: list[Stored] = []
    for child in root.children:
        if child.name != "Contents":
            continue
        key, size = unquote(child.child("Key") or ""), child.child("Size") or ""
        if not key.startswith(prefix) or not size.isascii() or not size.isdigit():
            raise MalformedXML("a listing holds what was not asked for")
        found.append(Stored(key.removeprefix(prefix), int(size)))
    more = root.child("IsTruncated") == "true"
    if more and not found:
        raise MalformedXML("a listing that goes on holds nothing")
    return Page(tuple(found), more)


def is_whole_range(reply: Reply, offset: int, length: int) -> bool:
    """Whether a 206 or 200 brought the range that was asked for, as far as the object reaches."""
    if reply.status == 200:
        return offset == 0 and len(reply.body) <= length
    match = _CONTENT_RANGE.fullmatch(reply.headers.get(b"content-range", b""))
    if match is None or match[1] is None:
        return False
    first, last, size = int(match[1]), int(match[2]), int(match[3])
    return first == offset and last == min(offset + length, size) - 1 and len(reply.body) == last - first + 1
