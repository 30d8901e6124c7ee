"""aws-chunked: the framing of a body with signed chunks or trailing checksums. Pure: bytes in, bytes out.

    chunk    = size in hex [;chunk-signature=64 hex] CRLF bytes CRLF
    body     = chunk* last-chunk [trailer-line CRLF]* CRLF

Bytes are handed on before their chunk's signature is known to be right, so that a chunk of any size takes bounded
memory: the consumer must drop everything when `feed` or `finish` raises.
"""

import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from couchestord.errors import IncompleteBody, InvalidRequest, SignatureDoesNotMatch
from couchestord.frontends.s3.sigv4 import SigningScope
from couchestord.signing import EMPTY_SHA256

_LINE_BYTES_MAX: Final = 1024
_TRAILERS_MAX: Final = 16
_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,16})(?:;chunk-signature=([0-9a-f]{64}))?\Z")
_TRAILER_SIGNATURE: Final = "x-amz-trailer-signature"


class _State(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILER = auto()
    DONE = auto()


@dataclass(frozen=True, slots=True)
class Framing:
    """What the head of the request announced."""

    decoded_bytes: int
    """x-amz-decoded-content-length."""
    signing: SigningScope | None
    """Set when chunks (and the trailer) are signed."""
    trailers: frozenset[str] | None
    """The lower-case names of x-amz-trailer; None when there is no trailer at all."""


class ChunkedDecoder:
    """Takes the framing off a body and checks it."""

    def __init__(self, framing: Framing) -> None:
        self._framing = framing
        self._state = _State.SIZE
        self._buffer = bytearray()
        self._chunk_left = 0
        self._decoded_left = framing.decoded_bytes
        self._last_chunk = False
        self._signature = b""
        self._previous = framing.signing.seed_signature if framing.signing else ""
        self._hash = hashlib.sha256()
        self._trailers: dict[str, str] = {}
        self._canonical_trailers = bytearray()

    @property
    def trailers(self) -> Mapping[str, str]:
        """By lower-case name. Right only after `finish`."""
        return self._trailers

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` decodes to, to be taken to its end. Raises InvalidRequest, IncompleteBody, SignatureDoesNotMatch.

        One by one, because tiny chunks take long: who takes them may pause between them.
        """
        position, end = 0, len(data)
        while position < end:
            if self._state is _State.DATA:
                piece = data[position : position + self._chunk_left]
                position += len(piece)
                self._chunk_left -= len(piece)
                if self._framing.signing:
                    self._hash.update(piece)
                yield piece
                if not self._chunk_left:
                    self._end_chunk()
                continue
            if self._state is _State.DONE:
                raise InvalidRequest("bytes after the end of the chunked body")
            # A line: looked for in the new bytes only, completed from the buffer.
            newline = data.find(b"\n", position)
            stop = end if newline < 0 else newline + 1
            self._buffer += data[position:stop]
            position = stop
            if len(self._buffer) > _LINE_BYTES_MAX:
                raise InvalidRequest("a line of the chunked body is too long")
            if newline >= 0:
                self._line()

    def finish(self) -> None:
        """The body is over. Raises IncompleteBody when it should not be."""
        if self._state is not _State.DONE:
            raise IncompleteBody("the chunked body ends early")

    def _line(self) -> None:
        if not self._buffer.endswith(b"\r\n"):
            if self._state is _State.TRAILER and self._buffer.count(b"\n") == 1 and len(self._buffer) > 1:
                return  # AWS's own documentation ends a trailer in LF CRLF, and some clients do
            raise InvalidRequest("a line of the chunked body does not end in CRLF")
        line = bytes(self._buffer[:-2])
        self._buffer.clear()
        if self._state is _State.SIZE:
            self._size_line(line)
        elif self._state is _State.DATA_END:
            if line:
                raise InvalidRequest("a chunk is longer than it says")
            self._state = _State.SIZE
        else:
            self._trailer_line(line)

    def _size_line(self, line: bytes) -> None:
        match = _CHUNK_LINE.match(line)
        if match is None:
            raise InvalidRequest("a chunk does not begin with its size")
        size = int(match[1], 16)
        signed = self._framing.signing is not None
        if signed != (match[2] is not None):
            raise SignatureDoesNotMatch("a chunk's signature is missing" if signed else "a chunk has a signature")
        if size > self._decoded_left:
            raise IncompleteBody("the chunks hold more than x-amz-decoded-content-length")
        self._decoded_left -= size
        self._signature = match[2] or b""
        self._chunk_left = size
        self._last_chunk = size == 0
        self._state = _State.DATA
        if self._last_chunk:
            self._end_chunk()

    def _end_chunk(self) -> None:
        signing = self._framing.signing
        if signing is not None:
            text = (
                f"AWS4-HMAC-SHA256-PAYLOAD\n{signing.timestamp}\n{signing.scope}\n{self._previous}\n{EMPTY_SHA256}\n"
                f"{self._hash.hexdigest()}"
            )
            self._check(signing.key.sign(text), self._signature, "a chunk's signature does not match")
            self._hash = hashlib.sha256()
        if not self._last_chunk:
            self._state = _State.DATA_END
            return
        if self._decoded_left:
            raise IncompleteBody("the chunks hold less than x-amz-decoded-content-length")
        self._state = _State.TRAILER

    def _trailer_line(self, line: bytes) -> None:
        if not line:
            self._end_trailer()
            return
        name, colon, value = line.decode("latin-1").partition(":")
        name, value = name.strip().lower(), value.strip()
        expected = self._framing.trailers
        if not colon or "\n" in value or expected is None:
            raise InvalidRequest("the trailer is malformed")
        if name in self._trailers or len(self._trailers) >= _TRAILERS_MAX:
            raise InvalidRequest("the trailer has a line twice, or too many")
        if name == _TRAILER_SIGNATURE:
            if self._framing.signing is None:
                raise InvalidRequest("the trailer has a signature")
        else:
            if name not in expected or _TRAILER_SIGNATURE in self._trailers:
                raise InvalidRequest(f"the trailer {name} was not announced")
            self._canonical_trailers += f"{name}:{value}\n".encode("latin-1")
        self._trailers[name] = value

    def _end_trailer(self) -> None:
        expected, signing = self._framing.trailers, self._framing.signing
        if expected is not None:
            signature = self._trailers.pop(_TRAILER_SIGNATURE, "")
            if self._trailers.keys() != expected:
                raise InvalidRequest("an announced trailer is missing")
            if signing is not None:
                text = (
                    f"AWS4-HMAC-SHA256-TRAILER\n{signing.timestamp}\n{signing.scope}\n{self._previous}\n"
                    f"{hashlib.sha256(self._canonical_trailers).hexdigest()}"
                )
                self._check(signing.key.sign(text), signature.encode(), "the trailer's signature does not match")
        self._state = _State.DONE

    def _check(self, expected: str, given: bytes, message: str) -> None:
        if not hmac.compare_digest(expected.encode("ascii"), given):
            raise SignatureDoesNotMatch(message)
        self._previous = expected
