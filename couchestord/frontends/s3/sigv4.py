"""AWS Signature Version 4, as S3 uses it. Pure: the clock is passed in.

Everything that a request is decided on is covered by its signature: method, path, query, host and every `x-amz-`
header. The hash of the payload, or how it is signed piece by piece, is part of that (`Payload`); the body is checked
against it while it arrives, by `body`.
"""

import hmac
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Final, NamedTuple

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
from couchestord.signing import ALGORITHM, EMPTY_SHA256, SigningKey, canonical_request, signing_key, string_to_sign

PRESIGNED_SECONDS_MAX: Final = 7 * 86400
_SIGNING_KEYS_MAX: Final = 1024
_STATED_MAX: Final = 1024
_STATED_BYTES_MAX: Final = 1024
"""What a client states at greater length is read anew each time."""
_SIGNED_HEADERS_MAX: Final = 200
_STATED_WRONGLY: Final = (
    "the credential must be KEY/YYYYMMDD/REGION/SERVICE/aws4_request, and the signed headers are named once each"
)
_SIGNATURE_LENGTH: Final = 64
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


_USUAL_PAYLOADS: Final = {
    b"UNSIGNED-PAYLOAD": (Payload.UNSIGNED, ""),
    EMPTY_SHA256.encode("ascii"): (Payload.HASHED, EMPTY_SHA256),
}
_MODES: Final = {mode.value.encode("ascii"): mode for mode in Payload if mode is not Payload.HASHED}


class SigningScope(NamedTuple):
    """What later signatures of the same request (chunks, trailer) are made with."""

    key: SigningKey
    timestamp: str
    scope: str
    seed_signature: str


class Authorized(NamedTuple):
    """A request whose signature is right."""

    access_key: AccessKey
    payload: Payload
    payload_sha256: str
    """Lower-case hex; empty unless `payload` is HASHED."""
    key: SigningKey
    timestamp: str
    scope: str
    signature: str

    @property
    def signing(self) -> SigningScope:
        """What chunks and trailer are signed with."""
        return SigningScope(self.key, self.timestamp, self.scope, self.signature)


class _Stated:
    """What a client says in every request of a day: with whose key it signs, for which scope, over which headers."""

    __slots__ = ("access_key", "covered", "date", "region", "scope", "service", "signed_headers")

    def __init__(
        self, access_key: str, date: str, region: str, service: str, signed_headers: tuple[bytes, ...]
    ) -> None:
        self.access_key = access_key
        self.date = date
        self.region = region
        self.service = service
        self.scope = f"{date}/{region}/{service}/aws4_request"
        self.signed_headers = signed_headers
        self.covered: tuple[bytes, ...] = ()
        """Names of headers, as they came last, of which all that must be signed are."""


class _Claim(NamedTuple):
    """What a request says about its own signature."""

    stated: _Stated
    timestamp: str
    signature: str
    presigned: bool
    expires_s: int = 0
    unknown: bytes = b""
    """The Authorization header, unless what it states is known."""


class Verifier:
    """Checks signatures for one region. Keeps bounded caches of derived keys and of what known clients state."""

    def __init__(self, region: str, find_key: Callable[[str], AccessKey | None], skew_s: int = 15 * 60) -> None:
        self._region = region
        self._find_key = find_key
        self._skew_s = skew_s
        self._signing_keys: dict[tuple[str, str], SigningKey] = {}
        self._stated: dict[bytes, _Stated] = {}
        self._time = ("", 0)
        self._header_read = (b"", "")

    def verify(self, method: bytes, target: Target, headers: Mapping[bytes, bytes], now_ns: int) -> Authorized:
        """Who signed the request. `headers` by lower-case name, repeated ones joined by a comma.

        Raises a subclass of Denied, or InvalidArgument, InvalidRequest, NotSupported for what is no signature at all.
        """
        claim = self._claim(target, headers)
        stated, timestamp, claimed, presigned, _, unknown = claim
        if unknown or presigned:
            self._check_scope(claim)
        if not timestamp.startswith(stated.date):
            raise _malformed(claim, "the credential's date is not the date of the request")
        access_key = self._find_key(stated.access_key)
        if access_key is None:
            raise InvalidAccessKeyId("the access key does not exist")
        self._check_time(claim, now_ns // 1_000_000_000)
        payload_header = _payload_header(claim, headers)
        key = self._signing_key(access_key.secret_key, stated.date)
        canonical = canonical_request(
            method, target.path, target.query.fields, headers, stated.signed_headers, payload_header
        )
        signature = key.sign(string_to_sign(timestamp, stated.scope, canonical))
        if not hmac.compare_digest(signature.encode("ascii"), claimed.encode("utf-8")):
            raise SignatureDoesNotMatch("the signature does not match; check the secret key and the signing method")
        if unknown:
            self._remember(claim)
        payload, sha256 = _USUAL_PAYLOADS.get(payload_header) or _payload(payload_header, claim)
        return Authorized(access_key, payload, sha256, key, timestamp, stated.scope, signature)

    def _check_scope(self, claim: _Claim) -> None:
        """What a known client states was looked at when it was new."""
        if claim.stated.service != "s3":
            raise _malformed(claim, "the credential's service must be s3")
        if claim.stated.region != self._region:
            raise _malformed(claim, f"the region {claim.stated.region!r} is wrong; expecting {self._region!r}")

    def _claim(self, target: Target, headers: Mapping[bytes, bytes]) -> _Claim:
        header = headers.get(b"authorization")
        query = target.query
        presigned = bool(query.fields) and ("X-Amz-Signature" in query or "X-Amz-Algorithm" in query)
        if header is not None:
            if presigned:
                raise InvalidArgument("only one way of authentication is allowed")
            known = self._stated.get(header[:-_SIGNATURE_LENGTH])
            if known is not None:
                claim = _Claim(known, self._header_time(headers), header[-_SIGNATURE_LENGTH:].decode("latin-1"), False)
            else:
                stated, signature = _read_authorization(header)
                claim = _Claim(stated, self._header_time(headers), signature, False, unknown=header)
        elif presigned:
            claim = _query_claim(target)
        elif "Signature" in query and "AWSAccessKeyId" in query:
            raise NotSupported("this server does not support Signature Version 2; use Version 4")
        else:
            raise AccessDenied("anonymous requests are not allowed")
        names = tuple(headers)
        if names != claim.stated.covered:
            _check_covered(names, claim.stated)
        return claim

    def _header_time(self, headers: Mapping[bytes, bytes]) -> str:
        # requests of the same second come together
        value = headers.get(b"x-amz-date")
        if value is not None and value == self._header_read[0]:
            return self._header_read[1]
        text = _header_time(headers)
        if value is not None:
            self._header_read = (value, text)
        return text

    def _remember(self, claim: _Claim) -> None:
        """What stands before a signature that was right is known from now on, when nothing comes behind it."""
        is_short = len(claim.unknown) <= _STATED_BYTES_MAX
        if is_short and claim.unknown.endswith(b"Signature=" + claim.signature.encode("ascii")):
            if len(self._stated) >= _STATED_MAX:
                del self._stated[next(iter(self._stated))]
            self._stated[claim.unknown[:-_SIGNATURE_LENGTH]] = claim.stated

    def _check_time(self, claim: _Claim, now_s: int) -> None:
        timestamp, signed_s = self._time
        if timestamp != claim.timestamp:
            signed_s = _seconds(claim.timestamp)
            # requests of the same second come together
            self._time = (claim.timestamp, signed_s)
        age_s = now_s - signed_s
        if claim.presigned:
            if age_s < -self._skew_s:
                raise AccessDenied("the presigned URL is not yet valid")
            if age_s > claim.expires_s:
                raise AccessDenied("the presigned URL has expired")
        elif abs(age_s) > self._skew_s:
            raise RequestTimeTooSkewed("the difference between the request's time and the server's is too large")

    def _signing_key(self, secret: str, date: str) -> SigningKey:
        cached = self._signing_keys.get((secret, date))
        if cached is None:
            cached = signing_key(secret, date, self._region)
            if len(self._signing_keys) >= _SIGNING_KEYS_MAX:
                del self._signing_keys[next(iter(self._signing_keys))]
            self._signing_keys[secret, date] = cached
        return cached


# -- what a request claims --------------------------------------------------------------------------------------------


def _seconds(timestamp: str) -> int:
    at = timestamp
    try:
        # strptime costs ten times as much; that the form is YYYYMMDDTHHMMSSZ was checked when the claim was read
        date = datetime(int(at[:4]), int(at[4:6]), int(at[6:8]), int(at[9:11]), int(at[11:13]), int(at[13:15]), 0, UTC)
        return int(date.timestamp())
    except ValueError:
        raise AccessDenied("the date of the request is none") from None


def _check_covered(names: tuple[bytes, ...], stated: _Stated) -> None:
    """What decides on a request must be signed. Raises AccessDenied."""
    signed = stated.signed_headers
    if b"host" not in signed:
        raise AccessDenied("the host header must be signed")
    for name in names:
        if name.startswith(b"x-amz-") and name not in signed:
            raise AccessDenied(f"the header {name.decode('latin-1')} is in the request and not signed")
    stated.covered = names


def _malformed(claim: _Claim, why: str) -> AuthorizationHeaderMalformed | AuthorizationQueryMalformed:
    return AuthorizationQueryMalformed(why) if claim.presigned else AuthorizationHeaderMalformed(why)


def _read_authorization(header: bytes) -> tuple[_Stated, str]:
    """(what the client states, its signature)."""
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
    stated = _stated(credential, signed) if signed.isascii() else None
    if stated is None:
        raise AuthorizationHeaderMalformed(_STATED_WRONGLY)
    return stated, signature


def _stated(credential: str, signed: str) -> _Stated | None:
    parts = credential.rsplit("/", 4)
    if len(parts) != 5 or parts[4] != "aws4_request":
        return None
    access_key, date, region, service, _ = parts
    names = tuple(signed.lower().encode("ascii").split(b";"))
    # a name said a thousand times would make a request to be signed over that is a thousand times as long
    if len(names) > _SIGNED_HEADERS_MAX or len(set(names)) < len(names):
        return None
    return _Stated(access_key, date, region, service, names)


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
    stated = _stated(credential, signed)
    if stated is None:
        raise AuthorizationQueryMalformed(_STATED_WRONGLY)
    if not _TIMESTAMP.match(timestamp):
        raise AuthorizationQueryMalformed("X-Amz-Date must be YYYYMMDDTHHMMSSZ")
    if not expires.isdigit() or len(expires) > 10 or not 1 <= int(expires) <= PRESIGNED_SECONDS_MAX:
        raise AuthorizationQueryMalformed(f"X-Amz-Expires must be from 1 to {PRESIGNED_SECONDS_MAX} seconds")
    return _Claim(stated, timestamp, signature, True, int(expires))


def _payload_header(claim: _Claim, headers: Mapping[bytes, bytes]) -> bytes:
    value = headers.get(b"x-amz-content-sha256")
    if value is not None:
        return value
    if claim.presigned:
        return b"UNSIGNED-PAYLOAD"
    raise InvalidRequest("the header x-amz-content-sha256 is missing")


def _payload(header: bytes, claim: _Claim) -> tuple[Payload, str]:
    """An unknown mode is refused: taking it for a known one would leave the body unchecked."""
    payload = _MODES.get(header)
    if payload is None and _HEX_64.match(header):
        return Payload.HASHED, header.decode("ascii")
    if payload is not None:
        if claim.presigned and payload in (Payload.SIGNED_CHUNKS, Payload.SIGNED_CHUNKS_TRAILER):
            raise InvalidArgument("a presigned URL cannot carry signed chunks")
        return payload, ""
    text = header.decode("latin-1")
    if text.startswith("STREAMING-"):
        raise NotSupported(f"this server does not support x-amz-content-sha256: {text}")
    raise InvalidArgument("x-amz-content-sha256 must be a SHA-256 in hex, UNSIGNED-PAYLOAD or a known STREAMING value")
