"""A bucket of any S3-compatible store as a backend.

Objects are put with `If-None-Match: *`, so nothing that is stored is ever replaced, whatever is repeated, and with the
SHA-256 of their bytes three times: signed, for the server to refuse what the network changed; as a checksum for it to
keep (`x-amz-checksum-sha256`); and among the metadata, which every server keeps. When the answer to a put is lost and
its repeat hears that the key is taken, that says whether by the same bytes.

What may pass is repeated, a few times, after pauses that grow and vary by chance, so that many clients of a server that
was away do not come back all at once.
"""

import base64
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn

import trio

from couchestord import logs
from couchestord.clock import Clock
from couchestord.errors import (
    BlobExists,
    MalformedXML,
    NoSuchBlob,
    RemoteDenied,
    RemoteRefused,
    RemoteUnavailable,
)
from couchestord.remote.backend import (
    KEYS_PER_PAGE,
    Buffer,
    Page,
    check_key,
    check_prefix,
    check_range,
    parts_length,
)
from couchestord.remote.client import HttpClient, Limits, Origin
from couchestord.remote.exchange import BrokenExchange
from couchestord.remote.location import Credentials, Location
from couchestord.remote.messages import Reply
from couchestord.remote.requests import Refusal, Request, Signer, is_whole_range, read_page, read_refusal, sha256_of

log = logs.get(__name__)

_SHA256: Final = b"x-amz-meta-couchestord-sha256"
_ANSWER_BYTES_MAX: Final = 4 << 20
"""Of a listing or an error."""
_HASHED_AT_ONCE_BYTES: Final = 64 << 10
_CREDENTIALS_S: Final = 10.0
"""So long credentials are waited for."""
_PASSING: Final = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
_PASSING_CODES: Final = frozenset(
    ("RequestTimeout", "BadDigest", "InvalidDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "SlowDown")
)
"""Codes that say that the request was hurt on its way, or came at a bad time, whatever the status."""
_DENIED: Final = frozenset((401, 403))
_DENIED_CODES: Final = frozenset(("ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "TokenRefreshRequired"))


@dataclass(frozen=True, slots=True)
class Patience:
    """How often what fails is repeated, and after what pauses."""

    attempts_max: int = 6
    pause_s: float = 0.25
    pause_s_max: float = 10.0

    def pause_after_s(self, attempt: int, share: float, asked_s: float) -> float:
        """The pause after an attempt, from 1: a `share`, from 0 to 1, of one that doubles each time, but not less than
        the server asked for, as far as that goes.
        """
        return min(max(asked_s, share * self.pause_s * 2.0**attempt), self.pause_s_max)


@dataclass(frozen=True, slots=True)
class S3Options:
    """How to ask."""

    region: str = "us-east-1"
    limits: Limits = field(default_factory=Limits)
    patience: Patience = field(default_factory=Patience)
    keys_per_page: int = KEYS_PER_PAGE


class S3Backend:
    """Objects in a bucket, path style. `credentials` is asked at once, and again, in a thread, when the server refuses
    what it gave.
    """

    def __init__(
        self,
        location: Location,
        credentials: Callable[[], Credentials],
        clock: Clock,
        options: S3Options,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tls`: what to trust, for https; by default what the machine trusts."""
        self._location = location
        self._ask_credentials = credentials
        self._credentials = credentials()
        self._turn = trio.Lock()
        self._asking = trio.CapacityLimiter(1)
        self._clock = clock
        self._options = options
        if location.secure and tls is None:
            tls = ssl.create_default_context()
        origin = Origin(location.host, location.port, tls if location.secure else None)
        self._client = HttpClient(origin, options.limits)
        self._signer = Signer(location, options.region)

    @property
    def name(self) -> str:
        return str(self._location)

    async def put_new(self, key: str, parts: Sequence[Buffer]) -> None:
        check_key(key)
        if parts_length(parts) > _HASHED_AT_ONCE_BYTES:
            digest = await trio.to_thread.run_sync(sha256_of, parts)
        else:
            digest = sha256_of(parts)
        sha256 = digest.hex()
        headers = {
            b"if-none-match": b"*",
            b"content-type": b"application/octet-stream",
            b"x-amz-checksum-sha256": base64.b64encode(digest),
            _SHA256: sha256.encode("ascii"),
        }
        request = Request(b"PUT", key, headers=headers, body=parts, body_sha256=sha256)
        reply = await self._repeat(request, (200, 201, 204, 412))
        if reply.status == 412 and not await self._holds(key, parts_length(parts), sha256):
            raise BlobExists(f"{self.name}: {key} holds other bytes")

    async def _holds(self, key: str, size_bytes: int, sha256: str) -> bool:
        head = await self._head(key)
        found = head.headers.get(_SHA256, b"").decode("latin-1")
        return _content_length(head) == size_bytes and found == sha256

    async def get(self, key: str, offset: int, length: int) -> bytes:
        check_key(key)
        check_range(offset, length)
        if not length:
            await self._head(key)
            return b""
        request = Request(b"GET", key, headers={b"range": b"bytes=%d-%d" % (offset, offset + length - 1)})

        def is_good(reply: Reply) -> bool:
            return reply.status == 416 or is_whole_range(reply, offset, length)

        reply = await self._repeat(request, (200, 206, 416), is_good, max(length, _ANSWER_BYTES_MAX))
        return b"" if reply.status == 416 else reply.body

    async def size(self, key: str) -> int:
        check_key(key)
        return _content_length(await self._head(key))

    async def _head(self, key: str) -> Reply:
        """HEAD tells no codes: what it says is not there is asked for again by GET, which tells a bucket that is gone
        from an object that is.
        """
        reply = await self._repeat(Request(b"HEAD", key), (200, 404))
        if reply.status == 404:
            await self.get(key, 0, 1)
            raise RemoteUnavailable(f"{self.name}: {key} was not there, and then it was")
        return reply

    async def list(self, prefix: str, after: str = "") -> Page:
        check_prefix(prefix)
        above = self._location.prefix
        query = [
            (b"list-type", b"2"),
            (b"encoding-type", b"url"),
            (b"max-keys", b"%d" % self._options.keys_per_page),
            (b"prefix", (above + prefix).encode("ascii")),
        ]
        if after:
            query.append((b"start-after", (above + after).encode("utf-8")))
        pages: list[Page] = []

        def is_good(reply: Reply) -> bool:
            try:
                pages.append(read_page(reply.body, above))
            except MalformedXML:
                return False
            return True

        await self._repeat(Request(b"GET", query=query), (200,), is_good)
        return pages[-1]

    async def delete(self, key: str) -> None:
        check_key(key)
        try:
            await self._repeat(Request(b"DELETE", key), (200, 202, 204))
        except NoSuchBlob:
            return

    async def aclose(self) -> None:
        await self._client.aclose()

    # -- asking, and asking again ----------------------------------------------------------------------------------

    async def _repeat(
        self,
        request: Request,
        wanted: Sequence[int],
        is_good: Callable[[Reply], bool] = lambda _: True,
        body_bytes_max: int = _ANSWER_BYTES_MAX,
    ) -> Reply:
        """The reply of one of the `wanted` statuses; each attempt is signed anew. Raises RemoteError."""
        patience = self._options.patience
        asked_anew = False
        attempt = 0
        while True:
            asked_s = 0.0
            credentials = self._credentials
            try:
                signed = self._signer.sign(request, credentials, self._clock.now_ns())
                reply = await self._client.request(signed, body_bytes_max)
            except BrokenExchange as error:
                why = str(error)
            else:
                if reply.status in wanted:
                    if is_good(reply):
                        return reply
                    why = f"{reply.status} with a body that does not fit"
                else:
                    refusal = read_refusal(reply)
                    why = str(refusal)
                    if _is_denied(refusal) and not asked_anew and await self._renew(credentials):
                        asked_anew = True
                        continue
                    if not _may_pass(refusal):
                        self._refuse(refusal)
                    asked_s = _retry_after_s(reply)
            attempt += 1
            if attempt >= patience.attempts_max:
                raise RemoteUnavailable(f"{self.name}: {why} ({attempt} times)")
            log.debug("a remote request is repeated", backend=self.name, attempt=attempt, error=why)
            share = int.from_bytes(self._clock.random_bytes(4), "little") / (1 << 32)
            await trio.sleep(patience.pause_after_s(attempt, share, asked_s))

    async def _renew(self, refused: Credentials) -> bool:
        """Whether the key is another one by now: keys are exchanged while the daemon runs, and tokens expire. Who hears
        of it first asks; in a thread, which a file system that hangs may keep for ever, though no more than one.
        """
        with trio.move_on_after(_CREDENTIALS_S):
            async with self._turn:
                if self._credentials == refused:
                    self._credentials = await trio.to_thread.run_sync(
                        self._ask_credentials, abandon_on_cancel=True, limiter=self._asking
                    )
        return self._credentials != refused

    def _refuse(self, refusal: Refusal) -> NoReturn:
        text = f"{self.name}: {refusal}"
        if _is_denied(refusal):
            raise RemoteDenied(text)
        if refusal.status == 404 and refusal.code != "NoSuchBucket":
            raise NoSuchBlob(text)
        raise RemoteRefused(text)


def _is_denied(refusal: Refusal) -> bool:
    return refusal.status in _DENIED or refusal.code in _DENIED_CODES


def _may_pass(refusal: Refusal) -> bool:
    # what stands before the server says 404, too, while it does not find that: then nothing is said of the object
    is_anybodys = refusal.status == 404 and not refusal.code
    return is_anybodys or refusal.status in _PASSING or refusal.code in _PASSING_CODES


def _retry_after_s(reply: Reply) -> float:
    value = reply.headers.get(b"retry-after", b"")
    return float(value) if value.isdigit() and len(value) < 6 else 0.0


def _content_length(head: Reply) -> int:
    value = head.headers.get(b"content-length", b"")
    if not value.isdigit():
        raise RemoteUnavailable("a reply to HEAD has no length")
    return int(value)
