"""HTTP/1.1 without I/O: the only module that knows h11.

h11 is lenient where RFC 9112 lets it be (a bare LF ends a line, folded headers are joined, Transfer-Encoding beats
Content-Length). Two parsers that disagree on such a head are how requests are smuggled, so a head is checked here as
raw bytes first, and only what every parser reads alike reaches h11.

States, as `HttpProtocol` sees them: HEAD until `next_head` gives one, then BODY until `next_body` gives END, then,
after the response, `next_request` starts over with the bytes that came too early (pipelining).
"""

import re
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Final

import h11

from couchestord.frontends.http.messages import Header

_END_OF_HEAD = b"\r\n\r\n"
_BARE_OR_FOLDED = re.compile(rb"(?<!\r)\n|\r(?!\n)|\r\n[ \t]|\x00")
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


@dataclass(frozen=True, slots=True)
class Head:
    method: bytes
    target: bytes
    headers: list[Header]
    content_length: int | None


class HttpProtocol:
    """One connection's parser and writer. Feed it what the socket says, send what it returns."""

    def __init__(self, head_bytes_max: int, headers_max: int) -> None:
        self._head_bytes_max = head_bytes_max
        self._headers_max = headers_max
        self._early = bytearray()
        self._scanned = 0
        self._in_body = False
        self._closed_by_peer = False
        self._h11 = self._new_engine()

    def _new_engine(self) -> h11.Connection:
        return h11.Connection(h11.SERVER, max_incomplete_event_size=self._head_bytes_max)

    # -- in ----------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Takes bytes from the client; empty means that it closed its side."""
        if not data:
            self._closed_by_peer = True
        if not self._in_body:
            self._early += data
            return
        try:
            self._h11.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise MalformedMessage(400, str(error)) from error

    @property
    def has_early_bytes(self) -> bool:
        """Bytes of the next head are here already."""
        return bool(self._early)

    @property
    def wants_continue(self) -> bool:
        """The client waits for `100 Continue` before it sends the body."""
        return self._h11.they_are_waiting_for_100_continue

    def next_head(self) -> Head | Signal:
        """The head of the next request, NEED_DATA, or END. Raises MalformedMessage."""
        while self._early.startswith(b"\r\n"):  # RFC 9112 2.2: empty lines before a request line
            del self._early[:2]
        end = self._early.find(_END_OF_HEAD, max(0, self._scanned - 3))
        if end < 0:
            self._scanned = len(self._early)
            self._refuse(self._early, complete=False)
            if self._closed_by_peer:
                if self._early:
                    raise MalformedMessage(400, "the head ends early")
                return END
            return NEED_DATA
        end += len(_END_OF_HEAD)
        raw = bytes(self._early[:end])
        self._refuse(raw, complete=True)
        del self._early[:end]
        self._scanned = 0
        return self._parse(raw)

    def _refuse(self, raw: bytes | bytearray, *, complete: bool) -> None:
        if len(raw) > self._head_bytes_max:
            raise MalformedMessage(431, "the head is too large")
        if raw.count(b"\n") > self._headers_max + 2:
            raise MalformedMessage(431, "too many headers")
        # The last byte of an incomplete head may be the CR of a CRLF.
        checked = raw if complete or not raw.endswith(b"\r") else raw[:-1]
        if _BARE_OR_FOLDED.search(checked):
            raise MalformedMessage(400, "a line does not end in CRLF, or is folded")

    def _parse(self, raw: bytes) -> Head:
        try:
            self._h11.receive_data(raw)
            event = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise MalformedMessage(error.error_status_hint, str(error)) from error
        if not isinstance(event, h11.Request):
            raise MalformedMessage(400, "no request")
        headers = list(event.headers)
        length = _framing(headers, event.http_version)
        self._in_body = length != 0
        if self._in_body and self._early:
            self._h11.receive_data(bytes(self._early))
            self._early.clear()
        return Head(event.method, event.target, headers, length)

    def next_body(self) -> bytes | Signal:
        """The next piece of the body, NEED_DATA, or END. Raises MalformedMessage."""
        try:
            event = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise MalformedMessage(400, str(error)) from error
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if event is h11.NEED_DATA:
            return NEED_DATA
        if isinstance(event, h11.EndOfMessage) or event is h11.PAUSED:
            self._in_body = False
            return END
        raise MalformedMessage(400, "the body ends early")

    # -- out ---------------------------------------------------------------------------------------------------------

    def continue_head(self) -> bytes:
        """`100 Continue`."""
        return self._h11.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")) or b""

    def response_head(self, status: int, headers: list[Header]) -> bytes:
        """Head of the response. Raises ValueError for a header that may not be sent (CR, LF, NUL, illegal name)."""
        try:
            return self._h11.send(h11.Response(status_code=status, headers=headers, reason=_reason(status))) or b""
        except h11.LocalProtocolError as error:
            raise ValueError(str(error)) from error

    def response_data(self, length_bytes: int) -> None:
        """Accounts for a piece of the body. The piece is sent as it is, since every body has a Content-Length.

        Raises ValueError when it is more than was announced.
        """
        try:
            self._h11.send_with_data_passthrough(h11.Data(data=_Length(length_bytes)))  # type: ignore[arg-type]
        except h11.LocalProtocolError as error:
            raise ValueError(str(error)) from error

    def response_end(self) -> bool:
        """Ends the response. False: fewer bytes than announced were sent, the connection must be cut."""
        try:
            self._h11.send(h11.EndOfMessage())
        except h11.LocalProtocolError:
            return False
        return True

    @property
    def may_continue(self) -> bool:
        """Request and response are over and neither side wants to close."""
        return self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE

    def next_request(self) -> None:
        """Makes ready for the next head; only when `may_continue`."""
        early, closed = self._h11.trailing_data
        if early or closed:
            self._early += early
            self._closed_by_peer = self._closed_by_peer or closed
            self._h11 = self._new_engine()
        else:
            self._h11.start_next_cycle()
        self._in_body = False


class _Length:
    """Stands for a piece of a body in h11, which only wants to know its length."""

    __slots__ = ("_length_bytes",)

    def __init__(self, length_bytes: int) -> None:
        self._length_bytes = length_bytes

    def __len__(self) -> int:
        return self._length_bytes


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


def _reason(status: int) -> bytes:
    return HTTPStatus(status).phrase.encode("ascii")
