"""The head of a response as bytes."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from couchestord.frontends.http.messages import Header, Response

_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode("ascii"))
    for status in HTTPStatus
    if status >= 200
}
_TOKEN: Final = b"-!#$%&'*+.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LEGAL: Final = bytes(set(range(256)) - set(b"\x00\x0b\x0c\r\n"))
"""What a value may hold."""
_FRAMING: Final = frozenset({b"connection", b"content-length", b"transfer-encoding"})
_USUAL: Final = frozenset(
    {
        b"ETag",
        b"Last-Modified",
        b"Accept-Ranges",
        b"Content-Range",
        b"content-type",
        b"Content-Type",
        b"x-amz-request-id",
    }
)
"""Names that need no look: tokens, and none of them frames anything."""
BODILESS: Final = frozenset({204, 304})
"""Answers that never have a body."""
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


def response_head(status: int, headers: Sequence[Header], date: bytes, length: int | None, *, close: bool) -> bytes:
    """The head with Date, Server, and the framing of a body of `length` bytes; None: without a Content-Length.

    Raises ValueError as `response_block` does.
    """
    block = response_block(status, headers)
    framing = b"" if length is None else b"Content-Length: %d\r\n" % length
    end = b"Connection: close\r\n\r\n" if close else b"\r\n"
    return b"%bDate: %b\r\nServer: couchestord\r\n%b%b" % (block, date, framing, end)


def response_block(status: int, headers: Sequence[Header]) -> bytes:
    """The first part of a head: the status line and these headers, each with the end of its line.

    Raises ValueError for what may not be sent: an unknown status, a name that is no token, a value with CR, LF, NUL or
    white space around it, a header that is the connection's to send.
    """
    line = _STATUS_LINES.get(status)
    if line is None:
        raise ValueError(f"no final status: {status}")
    names = [name for name, _ in headers]
    if not _USUAL.issuperset(names):
        if b"" in names or b"".join(names).translate(None, _TOKEN):
            raise ValueError(f"illegal header name among {names}")
        if not _FRAMING.isdisjoint([name.lower() for name in names]):
            raise ValueError(f"the connection frames its messages itself: {names}")
    for _, value in headers:
        if value.strip() != value:
            raise ValueError("white space around the value of a header")
    block = b"".join([b"%b: %b\r\n" % header for header in headers])
    if block.translate(None, _LEGAL) != b"\r\n" * len(names):
        raise ValueError("a control character in the value of a header")
    return line + block


def bare_response(status: int, reason: str) -> bytes:
    """A whole response that closes the connection, for where there is no request to answer. `reason`: for a person."""
    body = reason.encode("ascii", "backslashreplace") + b"\n"
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    return b"%bContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (line, len(body), body)


def body_length(response: Response) -> int:
    """Raises ValueError when nobody said it."""
    if response.length_bytes is not None:
        return response.length_bytes
    if not isinstance(response.body, bytes):
        raise ValueError("a streamed body has no length")
    return len(response.body)
