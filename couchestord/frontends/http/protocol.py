"""HTTP/1.1 requests without I/O: the only module that knows h11.

h11 judges every head that the fast lane does not take, and unframes chunked bodies. It is lenient where RFC 9112 lets
it be (a bare LF ends a line, folded headers are joined, Transfer-Encoding beats Content-Length). Two parsers that
disagree on such a head are how requests are smuggled, so a head is checked here as raw bytes first, and only what every
parser reads alike reaches h11.

States, as `HttpProtocol` sees them: HEAD until `next_head` gives one, then BODY until `next_body` gives END, then HEAD
again with the bytes that came too early (pipelining).
"""

import re
from enum import Enum
from typing import Final

import h11

from couchestord.frontends.http.lane import read_head
from couchestord.frontends.http.messages import Head, Header

_END_OF_HEAD = b"\r\n\r\n"
_BARE_OR_FOLDED = re.compile(rb"\n(?<!\r\n)|\r(?!\n)|\n[ \t]|\x00")
"""Each way begins with its own character, so that a search passes over all others at once."""
_DIGITS = re.compile(rb"[0-9]{1,18}\Z")


class Signal(Enum):
    NEED_DATA = "need data"
    END = "end"


NEED_DATA: Final = Signal.NEED_DATA
"""Feed bytes with `receive`, then ask again."""
END: Final = Signal.END
"""The body is complete, or, for a head, the client closed between requests."""


class MalformedMessage(Exception):
    """The client does not speak HTTP/1.1 as required: answer `status`, then close."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class HttpProtocol:
    """One connection's parser. Feed it what the socket says."""

    def __init__(self, head_bytes_max: int, headers_max: int) -> None:
        self._head_bytes_max = head_bytes_max
        self._headers_max = headers_max
        self._buffer = b""
        self._scanned = 0
        self._left_bytes = 0
        self._chunked: h11.Connection | None = None
        self._closed_by_peer = False
        self.wants_continue = False
        """The client waits for `100 Continue` before it sends the body. Whoever sends that sets it to False."""
        self.keeps_alive = True
        """The client of the last head takes another response on this connection."""

    def receive(self, data: bytes) -> None:
        """Takes bytes from the client; empty means that it closed its side."""
        if not data:
            self._closed_by_peer = True
        if self._chunked is None:
            self._buffer = self._buffer + data if self._buffer else data
            return
        try:
            self._chunked.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise MalformedMessage(400, str(error)) from error

    @property
    def has_early_bytes(self) -> bool:
        """Bytes of the next head are here already."""
        return bool(self._buffer)

    @property
    def came_whole(self) -> bool:
        """The whole body of the last head is here, and nothing behind it."""
        return self._chunked is None and len(self._buffer) == self._left_bytes

    # -- heads -------------------------------------------------------------------------------------------------------

    def next_head(self) -> Head | Signal:
        """The head of the next request, NEED_DATA, or END. Raises MalformedMessage."""
        if self._buffer.startswith(b"\r\n"):
            self._drop_empty_lines()
        buffer = self._buffer
        end = buffer.find(_END_OF_HEAD, max(0, self._scanned - 3))
        if end < 0:
            return self._unfinished(buffer)
        end += len(_END_OF_HEAD)
        raw = buffer if end == len(buffer) else buffer[:end]
        head = read_head(raw) if end <= self._head_bytes_max else None
        self._buffer = buffer[end:]
        self._scanned = 0
        if head is None or len(head.headers) > self._headers_max:
            return self._judge(raw)
        self._left_bytes = head.content_length or 0
        self.wants_continue, self.keeps_alive = False, True
        return head

    def _drop_empty_lines(self) -> None:
        """RFC 9112 2.2: empty lines may come before a request line."""
        start = 0
        while self._buffer.startswith(b"\r\n", start):
            start += 2
        self._buffer = self._buffer[start:]

    def _unfinished(self, buffer: bytes) -> Signal:
        seen_bytes, self._scanned = self._scanned, len(buffer)
        if buffer:
            # The last byte may be the CR of a CRLF. A head that comes byte by byte is not searched again for each.
            self._refuse(buffer[:-1] if buffer.endswith(b"\r") else buffer, max(0, seen_bytes - 3))
        if not self._closed_by_peer:
            return NEED_DATA
        if buffer:
            raise MalformedMessage(400, "the head ends early")
        return END

    def _refuse(self, raw: bytes, start: int = 0) -> None:
        """Raises MalformedMessage. What comes before `start` was found to be well."""
        if len(raw) > self._head_bytes_max:
            raise MalformedMessage(431, f"the request line and headers take more than {self._head_bytes_max} bytes")
        if raw.count(b"\n") > self._headers_max + 2:
            raise MalformedMessage(431, f"there are more than {self._headers_max} headers")
        if _BARE_OR_FOLDED.search(raw, start):
            raise MalformedMessage(400, "a line does not end in CRLF, or is folded")

    def _judge(self, raw: bytes) -> Head:
        """The head as h11 reads it."""
        self._refuse(raw)
        engine = h11.Connection(h11.SERVER, max_incomplete_event_size=self._head_bytes_max)
        try:
            engine.receive_data(raw)
            event = engine.next_event()
        except h11.RemoteProtocolError as error:
            raise MalformedMessage(error.error_status_hint, str(error)) from error
        if not isinstance(event, h11.Request):
            raise MalformedMessage(400, "no request")
        if not event.http_version.startswith(b"1."):
            raise MalformedMessage(505, "this server speaks HTTP/1.1 only")
        headers = list(event.headers)
        length = _framing(headers, event.http_version)
        if length is None:
            if self._buffer:  # h11 takes no bytes for the end of the connection
                engine.receive_data(self._buffer)
            self._buffer, self._chunked = b"", engine
        self._left_bytes = length or 0
        self.wants_continue = engine.they_are_waiting_for_100_continue
        self.keeps_alive = _keeps_alive(headers, event.http_version)
        fields = dict(headers)
        return Head(event.method, event.target, headers, length, fields if len(fields) == len(headers) else None)

    # -- bodies ------------------------------------------------------------------------------------------------------

    @property
    def direct_bytes(self) -> int:
        """So many bytes of the body may go from the socket to their reader unseen: 0 at its end, while some that came
        with the head wait here, and when chunks must be undone.
        """
        return 0 if self._buffer or self._chunked is not None else self._left_bytes

    def receive_direct(self, count: int) -> None:
        """Accounts for bytes of the body that went to their reader unseen; 0: the client closed its side."""
        assert 0 <= count <= self.direct_bytes
        self._left_bytes -= count
        if not count:
            raise MalformedMessage(400, "the body ends early")

    def next_body(self) -> bytes | Signal:
        """The next piece of the body, NEED_DATA, or END. Raises MalformedMessage."""
        if self._chunked is not None:
            return self._next_chunk(self._chunked)
        left, buffer = self._left_bytes, self._buffer
        if not left:
            return END
        if not buffer:
            if self._closed_by_peer:
                raise MalformedMessage(400, "the body ends early")
            return NEED_DATA
        self.wants_continue = False
        if len(buffer) <= left:
            self._buffer, self._left_bytes = b"", left - len(buffer)
            return buffer
        self._buffer, self._left_bytes = buffer[left:], 0
        return buffer[:left]

    def _next_chunk(self, engine: h11.Connection) -> bytes | Signal:
        try:
            event = engine.next_event()
        except h11.RemoteProtocolError as error:
            raise MalformedMessage(400, str(error)) from error
        if event is h11.NEED_DATA:
            return NEED_DATA
        self.wants_continue = False
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            self._buffer, self._chunked = engine.trailing_data[0], None
            return END
        raise MalformedMessage(400, "the body ends early")


def _framing(headers: list[Header], http_version: bytes) -> int | None:
    """Length of the body, None when it is chunked. Refuses what two parsers could read in two ways."""
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if codings:
        if lengths:
            raise MalformedMessage(400, "both Content-Length and Transfer-Encoding")
        if len(codings) > 1 or http_version != b"1.1":
            raise MalformedMessage(400, "Transfer-Encoding does not fit")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not _DIGITS.match(lengths[0]):
        raise MalformedMessage(400, "bad Content-Length")
    return int(lengths[0])


def _keeps_alive(headers: list[Header], http_version: bytes) -> bool:
    options = b",".join([value for name, value in headers if name == b"connection"]).lower().split(b",")
    return http_version >= b"1.1" and b"close" not in [option.strip() for option in options]
