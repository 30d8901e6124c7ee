"""The body of a request: unframed, and checked against all that came with it, while it arrives."""

import hashlib
import hmac
from collections import deque
from collections.abc import Mapping
from typing import Final

import trio

from couchestord.errors import (
    EntityTooLarge,
    IncompleteBody,
    InvalidArgument,
    InvalidRequest,
    MissingContentLength,
    PayloadHashMismatch,
)
from couchestord.frontends.http import Request, RequestBody
from couchestord.frontends.s3.checksums import BodyChecksums
from couchestord.frontends.s3.chunked import ChunkedDecoder, Framing
from couchestord.frontends.s3.sigv4 import Authorized, Payload

_CHUNKED: Final = frozenset({Payload.SIGNED_CHUNKS, Payload.SIGNED_CHUNKS_TRAILER, Payload.UNSIGNED_CHUNKS_TRAILER})
_SIGNED: Final = frozenset({Payload.SIGNED_CHUNKS, Payload.SIGNED_CHUNKS_TRAILER})
_DIGITS_MAX: Final = 15
_CHUNKS_A_TURN: Final = 100


class Received:
    """A body that came with its head."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __aiter__(self) -> "Received":
        return self

    async def __anext__(self) -> bytes:
        data, self._data = self._data, b""
        if not data:
            raise StopAsyncIteration
        return data

    async def read_into(self, buffer: memoryview) -> int | None:
        return None


class VerifiedBody:
    """An async iterator over the bytes of the object. Its end is reached only when every signature and checksum holds.

    Raises, from the iteration, IncompleteBody, RequestTimeout, BadDigest, PayloadHashMismatch, SignatureDoesNotMatch,
    InvalidRequest: whoever consumes it must drop what it got then.
    """

    def __init__(self, request: Request, headers: Mapping[bytes, bytes], authorized: Authorized) -> None:
        """Raises MissingContentLength, InvalidArgument, InvalidRequest, InvalidDigest for a head that does not fit."""
        self.checksums = BodyChecksums(headers)
        self.received_bytes = 0
        self._source: RequestBody = request.body
        self._ready: deque[bytes] = deque()
        self._ended = False
        payload = authorized.payload
        self._sha256 = hashlib.sha256() if payload is Payload.HASHED else None
        self._sha256_expected = authorized.payload_sha256
        self._decoder: ChunkedDecoder | None = None
        if payload in _CHUNKED:
            self.length_bytes = _decoded_length(headers)
            self._decoder = _decoder(self.length_bytes, authorized, self.checksums.trailers)
            if payload is Payload.UNSIGNED_CHUNKS_TRAILER and not self.checksums.algorithm:
                raise InvalidRequest("an unsigned STREAMING payload needs a checksum")
            return
        if self.checksums.trailers is not None:
            raise InvalidRequest("x-amz-trailer needs a STREAMING payload with a trailer")
        if request.content_length is None or (
            request.content_length == 0 and b"content-length" not in headers and request.method in (b"PUT", b"POST")
        ):
            raise MissingContentLength("the request needs a Content-Length")
        self.length_bytes = request.content_length

    def __aiter__(self) -> "VerifiedBody":
        return self

    async def __anext__(self) -> bytes:
        while not self._ready:
            if self._ended:
                raise StopAsyncIteration
            try:
                piece = await anext(self._source)
            except StopAsyncIteration:
                self._finish()
                raise
            self._count(piece)
            pieces = [piece] if self._decoder is None else await _decode(self._decoder, piece)
            for decoded in pieces:
                self.checksums.update(decoded)
            self._ready.extend(pieces)
        return self._ready.popleft()

    async def read_into(self, buffer: memoryview) -> int:
        """The next bytes, written over the start of `buffer`: how many, 0 at the end. Raises as iteration does."""
        if self._decoder is None and not self._ready:
            count = await self._source.read_into(buffer)
            if count is not None:
                self._count(buffer[:count])
                self.checksums.update(buffer[:count])
                return count
        piece = await anext(self, b"")
        count = min(len(piece), len(buffer))
        buffer[:count] = piece[:count]
        if count < len(piece):
            self._ready.appendleft(piece[count:])
        return count

    def _count(self, received: bytes | memoryview) -> None:
        self.received_bytes += len(received)
        if self._sha256 is not None:
            self._sha256.update(received)

    def _finish(self) -> None:
        self._ended = True
        trailers: Mapping[str, str] = {}
        if self._decoder is not None:
            self._decoder.finish()
            trailers = self._decoder.trailers
        if self._sha256 is not None and not hmac.compare_digest(self._sha256.hexdigest(), self._sha256_expected):
            raise PayloadHashMismatch("the body does not have the SHA-256 of x-amz-content-sha256")
        self.checksums.verify(trailers)

    def take_whole(self, received: bytes) -> bytes | None:
        """The whole body, verified, which came with its head; then nothing is to be read. None: ask by iteration.

        Raises as iteration does.
        """
        if self._decoder is not None or len(received) != self.length_bytes:
            return None
        self._count(received)
        self.checksums.update(received)
        self._finish()
        return received

    async def read(self, bytes_max: int) -> bytes:
        """The whole body, verified. Raises EntityTooLarge when it is longer than `bytes_max`."""
        if self.length_bytes > bytes_max:
            raise EntityTooLarge(f"the body is longer than {bytes_max} bytes")
        pieces = [piece async for piece in self]
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if len(body) != self.length_bytes:
            raise IncompleteBody("the body is not as long as announced")
        return body


async def _decode(decoder: ChunkedDecoder, piece: bytes) -> list[bytes]:
    """What a piece decodes to. Tiny chunks are joined; they take long, so others have turns."""
    pieces = []
    for decoded in decoder.feed(piece):
        pieces.append(decoded)
        if not len(pieces) % _CHUNKS_A_TURN:
            await trio.lowlevel.checkpoint()
    return pieces if len(pieces) < _CHUNKS_A_TURN else [b"".join(pieces)]


def _decoded_length(headers: Mapping[bytes, bytes]) -> int:
    value = headers.get(b"x-amz-decoded-content-length")
    if value is None:
        raise MissingContentLength("a STREAMING payload needs x-amz-decoded-content-length")
    if not value.isdigit() or len(value) > _DIGITS_MAX:
        raise InvalidArgument("x-amz-decoded-content-length must be a length in bytes")
    return int(value)


def _decoder(length_bytes: int, authorized: Authorized, trailers: frozenset[str] | None) -> ChunkedDecoder:
    with_trailer = authorized.payload is not Payload.SIGNED_CHUNKS
    if trailers is not None and not with_trailer:
        raise InvalidRequest("x-amz-trailer needs a STREAMING payload with a trailer")
    signing = authorized.signing if authorized.payload in _SIGNED else None
    return ChunkedDecoder(Framing(length_bytes, signing, (trailers or frozenset()) if with_trailer else None))
