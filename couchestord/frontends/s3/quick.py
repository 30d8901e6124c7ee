"""Plain GETs and HEADs of objects that are in memory, answered at once; of short ones that are not, once they are read.

Nothing is decided here that is not decided elsewhere: the signature is verified by the same verifier, the object found
through the same catalog, its headers made by the same functions, and whoever is to be refused, or asks for anything but
the whole or a range of a live object, is left to the handler. What is kept between requests of one object is its look,
which says whether it still holds, and the headers made from it.
"""

from collections.abc import Callable
from typing import Final

import trio

from couchestord.clock import Clock
from couchestord.errors import Error
from couchestord.frontends.http import Head, Later, Request, Response, response_block
from couchestord.frontends.s3.body import Received
from couchestord.frontends.s3.call import Call, S3Options
from couchestord.frontends.s3.fields import byte_range, object_headers
from couchestord.frontends.s3.objects import read_head
from couchestord.frontends.s3.routes import NO_QUERY, Operation, Target, parse_target
from couchestord.frontends.s3.sigv4 import Authorized, Verifier
from couchestord.model import KEY_LENGTH_BYTES_MAX, ByteRange, User
from couchestord.store import Look, Objects

Observer = Callable[[str, int, float, int, int], None]
"""observe(operation, status, seconds, bytes in, bytes out), once for each request, after its response."""
Refusal = Callable[[Call, Operation, bytes, Exception], Response]
"""refusal(call, operation, request id, error): the answer that says so."""

_DECIDING: Final = frozenset(
    {
        b"if-match",
        b"if-none-match",
        b"if-modified-since",
        b"if-unmodified-since",
        b"if-range",
        b"x-amz-expected-bucket-owner",
        b"x-amz-copy-source",
    }
)
"""Headers that change what a GET or HEAD of an object answers, but for Range and x-amz-checksum-mode."""
_KEPT_MAX: Final = 16_384
"""Objects whose headers are kept, a kilobyte or two each."""


class _Kept:
    """What is kept of one object."""

    __slots__ = ("blocks", "look", "range_block", "tail", "target")

    def __init__(self, target: Target, look: Look) -> None:
        self.target = target
        self.look = look
        self.blocks: dict[bool, bytes] = {}
        """The first part of the head, without and with checksums."""
        self.range_block: bytes | None = None
        """The same for a part of the body."""
        self.tail = b"\r\nServer: couchestord\r\nContent-Length: %d\r\n\r\n" % look.info.size_bytes


class QuickAnswers:
    """`Quick` for one store."""

    def __init__(
        self,
        store: Objects,
        verifier: Verifier,
        clock: Clock,
        options: S3Options,
        observe: Observer,
        next_request_id: Callable[[], bytes],
        refusal: Refusal,
    ) -> None:
        self._store = store
        self._options = options
        self._refusal = refusal
        self._look = store.looks.look
        self._find_user = store.find_user
        self._verify = verifier.verify
        self._now_ns = clock.now_ns
        self._observe = observe
        self._next_request_id = next_request_id
        self._young: dict[bytes, _Kept] = {}
        self._old: dict[bytes, _Kept] = {}

    def answer(self, head: Head, date: bytes) -> bytes | Later | None:
        """The whole response, or what must be waited for to have it, or None: let the handler see it."""
        method, raw, fields = head.method, head.target, head.fields
        is_head = method == b"HEAD"
        if not (is_head or method == b"GET") or fields is None or not _DECIDING.isdisjoint(fields):
            return None
        begun_s = trio.current_time()
        kept = self._young.get(raw)
        try:
            target = kept.target if kept is not None else parse_target(raw)
            if target.query.fields or not target.key or len(target.key) > KEY_LENGTH_BYTES_MAX:
                return None
            authorized = self._verify(method, target, fields, self._now_ns())
            # nothing is looked at between the look and the read: what a worker says it has seen gone is freed
            user = self._find_user(authorized.access_key.user)
            if kept is None or not kept.look.holds():
                kept = self._look_up(raw, target)
            if kept is None or user is None or not (user.admin or user.name == kept.look.owner):
                return None
            if b"range" in fields:
                if is_head or (asked := byte_range(fields[b"range"])) is None:
                    return None
                found = kept.look.read_range(asked)
                if found is not None:
                    return self._answer_range(kept, *found, date, begun_s)
                return self._later(head, target, authorized, user, kept.look, asked, begun_s)
            body = b"" if is_head else kept.look.read()
            if body is None:
                return self._later(head, target, authorized, user, kept.look, None, begun_s)
        except Error:
            return None  # the handler will find the same, and has an answer to it
        sums = fields.get(b"x-amz-checksum-mode", b"").upper() == b"ENABLED"
        block = kept.blocks.get(sums)
        if block is None:
            block = kept.blocks[sums] = response_block(200, object_headers(kept.look.info, NO_QUERY, checksums=sums))
        parts = (block, b"x-amz-request-id: ", self._next_request_id(), b"\r\nDate: ", date, kept.tail, body)
        operation = Operation.HEAD_OBJECT if is_head else Operation.GET_OBJECT
        self._observe(operation, 200, trio.current_time() - begun_s, 0, len(body))
        return b"".join(parts)

    def _later(
        self,
        head: Head,
        target: Target,
        authorized: Authorized,
        user: User,
        look: Look,
        asked: ByteRange | None,
        begun_s: float,
    ) -> Later | None:
        fields, reader = head.fields, look.open(asked)
        if fields is None or reader is None:
            return None
        request_id = self._next_request_id()

        async def later() -> Response:
            try:
                async with reader:
                    body = await reader.read()
                response = Response(*read_head(reader, fields, NO_QUERY, ranged=asked is not None), body)
            except Exception as error:
                request = Request(head.method, head.target, head.headers, Received(b""), 0, fields)
                call = Call(self._store, self._options, request, fields, target, authorized, user)
                response = self._refusal(call, Operation.GET_OBJECT, request_id, error)
            status = response.status

            def finished(sent_bytes: int) -> None:
                self._observe(Operation.GET_OBJECT, status, trio.current_time() - begun_s, 0, sent_bytes)

            headers = [*response.headers, (b"x-amz-request-id", request_id)]
            return Response(status, headers, response.body, None, finished)

        return later

    def _answer_range(self, kept: _Kept, first: int, body: bytes | memoryview, date: bytes, begun_s: float) -> bytes:
        if kept.range_block is None:
            kept.range_block = response_block(206, object_headers(kept.look.info, NO_QUERY, checksums=False))
        parts = (
            b"%bContent-Range: bytes %d-%d/%d\r\nx-amz-request-id: %b\r\nDate: %b\r\nServer: couchestord\r\n"
            b"Content-Length: %d\r\n\r\n" % (
                kept.range_block, first, first + len(body) - 1, kept.look.info.size_bytes,
                self._next_request_id(), date, len(body),
            ),
            body,
        )  # fmt: skip
        self._observe(Operation.GET_OBJECT, 206, trio.current_time() - begun_s, 0, len(body))
        return b"".join(parts)

    def _look_up(self, raw: bytes, target: Target) -> _Kept | None:
        kept = self._old.pop(raw, None)
        if kept is None or not kept.look.holds():
            look = self._look(target.bucket, target.key)
            if look is None:
                self._young.pop(raw, None)
                return None
            kept = _Kept(target, look)
            if not look.holds():  # its row is too large to be kept, and so are headers
                self._young.pop(raw, None)
                return kept
        if len(self._young) >= _KEPT_MAX // 2:
            self._young, self._old = {}, self._young
        self._young[raw] = kept
        return kept
