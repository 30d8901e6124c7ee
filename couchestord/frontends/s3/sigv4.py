"""AWS Signature Version 4, as S3 uses it. Pure: the clock is passed in.

Everything that a request is decided on is covered by its signature: method, path, query, host and every `x-amz-`
header. The hash of the payload, or how it is signed piece by piece, is part of that (`Payload`); the body is checked
against it while it arrives, by `body`.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Final
from urllib.parse import quote_from_bytes

from couchestord.errors import (
    AccessDenied,
    AuthorizationHeaderMalformed,
    AuthorizationQueryMalformed,
    InvalidAccessKeyId,
    InvalidArgument,
    InvalidRequest,
    NotSupported,
    RequestTimeTooSkewed,
    SignatureDoesNotMatch,
)
from couchestord.frontends.s3.routes import Target
from couchestord.model import AccessKey

ALGORITHM: Final = "AWS4-HMAC-SHA256"
EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
PRESIGNED_SECONDS_MAX: Final = 7 * 86400
_SIGNING_KEYS_MAX: Final = 1024
_PLAIN_PATH = re.compile(rb"[A-Za-z0-9/_.~-]*\Z")
_HEX_64 = re.compile(rb"[0-9a-f]{64}\Z")
_TIMESTAMP = re.compile(r"[0-9]{8}T[0-9]{6}Z\Z")


class Payload(Enum):
    """How the body is covered by the signature."""

    HASHED = "hashed"
    """x-amz-content-sha256 is the SHA-256 of the body."""
    UNSIGNED = "UNSIGNED-PAYLOAD"
    SIGNED_CHUNKS = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
    SIGNED_CHUNKS_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
    UNSIGNED_CHUNKS_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


@dataclass(frozen=True, slots=True)
class SigningScope:
    """What later signatures of the same request (chunks, trailer) are made with."""

    key: bytes
    timestamp: str
    scope: str
    seed_signature: str


@dataclass(frozen=True, slots=True)
class Authorized:
    """A request whose signature is right."""

    access_key: AccessKey
    payload: Payload
    payload_sha256: str
    """Lower-case hex; empty unless `payload` is HASHED."""
    signing: SigningScope


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a request says about its own signature."""

    access_key: str
    date: str
    region: str
    service: str
    timestamp: str
    signed_headers: tuple[str, ...]
    signature: str
    presigned: bool
    expires_s: int = 0


class Verifier:
    """Checks signatures for one region. Keeps a bounded cache of derived keys."""

    def __init__(self, region: str, find_key: Callable[[str], AccessKey | None], skew_s: int = 15 * 60) -> None:
        self._region = region
        self._find_key = find_key
        self._skew_s = skew_s
        self._signing_keys: dict[tuple[str, str], bytes] = {}

    def verify(self, method: bytes, target: Target, headers: Mapping[bytes, bytes], now_ns: int) -> Authorized:
        """Who signed the request. `headers` by lower-case name, repeated ones joined by a comma.

        Raises a subclass of Denied, or InvalidArgument, InvalidRequest, NotSupported for what is no signature at all.
        """
        claim = _claim(target, headers)
        if claim.service != "s3":
            raise self._malformed(claim, "the credential's service must be s3")
        if claim.region != self._region:
            raise self._malformed(claim, f"the region {claim.region!r} is wrong; expecting {self._region!r}")
        if not claim.timestamp.startswith(claim.date):
            raise self._malformed(claim, "the credential's date is not the date of the request")
        access_key = self._find_key(claim.access_key)
        if access_key is None:
            raise InvalidAccessKeyId("the access key does not exist")
        self._check_time(claim, now_ns // 1_000_000_000)
        payload_header = _payload_header(claim, headers)
        scope = f"{claim.date}/{claim.region}/s3/aws4_request"
        key = self._signing_key(access_key.secret_key, claim.date)
        canonical = canonical_request(method, target, headers, claim.signed_headers, payload_header)
        signature = sign(key, string_to_sign(claim.timestamp, scope, canonical))
        if not hmac.compare_digest(signature.encode("ascii"), claim.signature.encode("utf-8")):
            raise SignatureDoesNotMatch("the signature does not match; check the secret key and the signing method")
        payload, sha256 = _payload(payload_header, claim)
        return Authorized(access_key, payload, sha256, SigningScope(key, claim.timestamp, scope, signature))

    def _malformed(self, claim: _Claim, why: str) -> AuthorizationHeaderMalformed | AuthorizationQueryMalformed:
        return AuthorizationQueryMalformed(why) if claim.presigned else AuthorizationHeaderMalformed(why)

    def _check_time(self, claim: _Claim, now_s: int) -> None:
        age_s = now_s - _seconds(claim.timestamp)
        if claim.presigned:
            if age_s < -self._skew_s:
                raise AccessDenied("the presigned URL is not yet valid")
            if age_s > claim.expires_s:
                raise AccessDenied("the presigned URL has expired")
        elif abs(age_s) > self._skew_s:
            raise RequestTimeTooSkewed("the difference between the request's time and the server's is too large")

    def _signing_key(self, secret: str, date: str) -> bytes:
        cached = self._signing_keys.get((secret, date))
        if cached is None:
            cached = signing_key(secret, date, self._region)
            if len(self._signing_keys) >= _SIGNING_KEYS_MAX:
                del self._signing_keys[next(iter(self._signing_keys))]
            self._signing_keys[secret, date] = cached
        return cached


# -- the arithmetic --------------------------------------------------------------------------------------------------


def signing_key(secret: str, date: str, region: str) -> bytes:
    """The key that one secret gives for one day (YYYYMMDD) and region."""
    key = ("AWS4" + secret).encode("utf-8")
    for part in (date, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode("ascii"), "sha256")
    return key


def sign(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode("utf-8"), "sha256").hex()


def string_to_sign(timestamp: str, scope: str, canonical: bytes) -> str:
    return f"{ALGORITHM}\n{timestamp}\n{scope}\n{hashlib.sha256(canonical).hexdigest()}"


def canonical_request(
    method: bytes, target: Target, headers: Mapping[bytes, bytes], signed_headers: Sequence[str], payload: bytes
) -> bytes:
    """What a request is signed over. Raises SignatureDoesNotMatch when a signed header is not there."""
    lines = []
    for name in signed_headers:
        value = headers.get(name.encode("ascii"))
        if value is None:
            raise SignatureDoesNotMatch(f"the signed header {name} is not in the request")
        if b"  " in value:
            value = b" ".join(value.split())
        lines.append(name.encode("ascii") + b":" + value + b"\n")
    path = target.path
    if not _PLAIN_PATH.match(path):
        path = quote_from_bytes(path, safe="/-_.~").encode("ascii")
    fields = target.query.fields
    return b"\n".join(
        (
            method,
            path,
            _canonical_query(fields) if fields else b"",
            b"".join(lines),
            ";".join(signed_headers).encode("ascii"),
            payload,
        )
    )


def _canonical_query(fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    pairs = sorted(
        (quote_from_bytes(name, safe="-_.~"), quote_from_bytes(value, safe="-_.~"))
        for name, value in fields
        if name != b"X-Amz-Signature"
    )
    return "&".join(f"{name}={value}" for name, value in pairs).encode("ascii")


def _seconds(timestamp: str) -> int:
    at = timestamp
    try:
        # strptime costs ten times as much; that the form is YYYYMMDDTHHMMSSZ was checked when the claim was read
        date = datetime(int(at[:4]), int(at[4:6]), int(at[6:8]), int(at[9:11]), int(at[11:13]), int(at[13:15]), 0, UTC)
        return int(date.timestamp())
    except ValueError:
        raise AccessDenied("the date of the request is none") from None


# -- what a request claims -------------------------------------------------------------------------------------------


def _claim(target: Target, headers: Mapping[bytes, bytes]) -> _Claim:
    header = headers.get(b"authorization")
    presigned = "X-Amz-Signature" in target.query or "X-Amz-Algorithm" in target.query
    if header is not None:
        if presigned:
            raise InvalidArgument("only one way of authentication is allowed")
        claim = _header_claim(header, headers)
    elif presigned:
        claim = _query_claim(target)
    elif "Signature" in target.query and "AWSAccessKeyId" in target.query:
        raise NotSupported("this server does not support Signature Version 2; use Version 4")
    else:
        raise AccessDenied("anonymous requests are not allowed")
    signed = set(claim.signed_headers)
    if "host" not in signed:
        raise AccessDenied("the host header must be signed")
    for name in headers:
        if name.startswith(b"x-amz-") and name.decode("latin-1") not in signed:
            raise AccessDenied(f"the header {name.decode('latin-1')} is in the request and not signed")
    return claim


def _header_claim(header: bytes, headers: Mapping[bytes, bytes]) -> _Claim:
    text = header.decode("latin-1")
    scheme, _, rest = text.partition(" ")
    if scheme == "AWS":
        raise NotSupported("this server does not support Signature Version 2; use Version 4")
    if scheme == "AWS4-ECDSA-P256-SHA256":
        raise NotSupported("this server does not support Signature Version 4A; use Version 4")
    if scheme != ALGORITHM:
        raise InvalidArgument("unsupported authorization type")
    fields: dict[str, str] = {}
    for part in rest.split(","):
        name, _, value = part.strip().partition("=")
        if name in fields:
            raise AuthorizationHeaderMalformed(f"{name} is there twice")
        fields[name] = value
    try:
        credential, signed, signature = fields["Credential"], fields["SignedHeaders"], fields["Signature"]
    except KeyError as error:
        raise AuthorizationHeaderMalformed(f"{error.args[0]} is missing") from None
    scope = credential.rsplit("/", 4)
    if len(scope) != 5 or scope[4] != "aws4_request" or not signed.isascii():
        raise AuthorizationHeaderMalformed("the credential must be KEY/YYYYMMDD/REGION/SERVICE/aws4_request")
    return _Claim(
        scope[0], scope[1], scope[2], scope[3], _header_time(headers), _signed_names(signed), signature, presigned=False
    )


def _signed_names(text: str) -> tuple[str, ...]:
    return tuple(text.lower().split(";"))


def _header_time(headers: Mapping[bytes, bytes]) -> str:
    value = headers.get(b"x-amz-date")
    if value is not None:
        text = value.decode("latin-1")
        if _TIMESTAMP.match(text):
            return text
    elif b"date" in headers:
        try:
            date = parsedate_to_datetime(headers[b"date"].decode("latin-1"))
            return date.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
        except (ValueError, OverflowError):
            pass
    raise AccessDenied("the request needs a valid x-amz-date or Date header")


def _query_claim(target: Target) -> _Claim:
    query = target.query
    values = []
    for name in ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature"):
        value = query.raw("X-Amz-" + name)
        if value is None or not value.isascii():
            raise AuthorizationQueryMalformed(f"X-Amz-{name} is missing or malformed")
        values.append(value.decode("ascii"))
    algorithm, credential, timestamp, expires, signed, signature = values
    if algorithm != ALGORITHM:
        raise AuthorizationQueryMalformed(f"X-Amz-Algorithm must be {ALGORITHM}")
    scope = credential.rsplit("/", 4)
    if len(scope) != 5 or scope[4] != "aws4_request":
        raise AuthorizationQueryMalformed("X-Amz-Credential must be KEY/YYYYMMDD/REGION/SERVICE/aws4_request")
    if not _TIMESTAMP.match(timestamp):
        raise AuthorizationQueryMalformed("X-Amz-Date must be YYYYMMDDTHHMMSSZ")
    if not expires.isdigit() or not 1 <= int(expires[:10]) <= PRESIGNED_SECONDS_MAX:
        raise AuthorizationQueryMalformed(f"X-Amz-Expires must be from 1 to {PRESIGNED_SECONDS_MAX} seconds")
    names = _signed_names(signed)
    return _Claim(scope[0], scope[1], scope[2], scope[3], timestamp, names, signature, True, int(expires))


def _payload_header(claim: _Claim, headers: Mapping[bytes, bytes]) -> bytes:
    value = headers.get(b"x-amz-content-sha256")
    if value is not None:
        return value
    if claim.presigned:
        return b"UNSIGNED-PAYLOAD"
    raise InvalidRequest("the header x-amz-content-sha256 is missing")


def _payload(header: bytes, claim: _Claim) -> tuple[Payload, str]:
    """An unknown mode is refused: taking it for a known one would leave the body unchecked."""
    if _HEX_64.match(header):
        return Payload.HASHED, header.decode("ascii")
    text = header.decode("latin-1")
    try:
        payload = Payload(text)
    except ValueError:
        payload = Payload.HASHED
    if payload is not Payload.HASHED:
        if claim.presigned and payload in (Payload.SIGNED_CHUNKS, Payload.SIGNED_CHUNKS_TRAILER):
            raise InvalidArgument("a presigned URL cannot carry signed chunks")
        return payload, ""
    if text.startswith("STREAMING-"):
        raise NotSupported(f"this server does not support x-amz-content-sha256: {text}")
    raise InvalidArgument("x-amz-content-sha256 must be a SHA-256 in hex, UNSIGNED-PAYLOAD or a known STREAMING value")
