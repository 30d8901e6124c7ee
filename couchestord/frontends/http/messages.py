"""Requests, responses and limits. Pure values: no socket, no h11."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may cost. Over a limit the answer is a clear error or a closed connection."""

    head_bytes_max: int = 32 << 10
    """Request line and headers together."""
    headers_max: int = 200
    connections_max: int = 1000
    """Open connections; one more is answered 503 and closed."""
    idle_timeout_s: float = 60.0
    """Between requests."""
    head_timeout_s: float = 10.0
    """From the first byte of a head to its last."""
    body_timeout_s: float = 30.0
    """Without one byte of the body while somebody waits for it."""
    write_timeout_s: float = 30.0
    """Without the client taking one byte."""
    bytes_per_s_min: int = 1024
    """What a client must send of a body, or take of a response, on average while it is waited for. 0: anything."""
    slow_grace_s: float = 60.0
    """So long a client may be behind that rate, within one body."""
    unread_body_bytes_max: int = 256 << 10
    """So much of a body that the handler left unread is read and thrown away to keep the connection."""
    drain_timeout_s: float = 30.0
    """At shutdown, for the requests under way."""
    receive_bytes: int = 256 << 10
    """Read from a socket at once, of a body."""


class Head(NamedTuple):
    """The head of a request, as `Request` shows it."""

    method: bytes
    target: bytes
    headers: Collection[Header]
    content_length: int | None
    fields: Mapping[bytes, bytes] | None


class RequestBody(Protocol):
    """The body of a request: read once, piece by piece, nothing is read ahead.

    The first read answers `Expect: 100-continue`. Reading raises IncompleteBody when the client goes away or breaks the
    framing, and RequestTimeout when it stalls or drips; the connection is closed after the response then.
    """

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    async def read_into(self, buffer: memoryview) -> int | None:
        """The next bytes, written over the start of `buffer`: how many. None: what is next comes by iteration only."""
        ...


class ResponseBody(Protocol):
    """A body that is sent piece by piece. `aclose` is called once, whether the body was read or not."""

    def __aiter__(self) -> AsyncIterator[bytes | memoryview]: ...

    async def aclose(self) -> None: ...


class Request(NamedTuple):
    """A request whose head is complete.

    `target` is what the request line says, undecoded. Header names are lower case, values stripped of white space, both
    in the order of arrival.
    """

    method: bytes
    target: bytes
    headers: Collection[Header]
    body: RequestBody
    content_length: int | None
    """None for a chunked body; 0 without a body."""
    fields: Mapping[bytes, bytes] | None = None
    """`headers` by name, when no name is there twice; None otherwise. Not to be changed."""


def _nothing(_sent_bytes: int) -> None:
    return None


class Response(NamedTuple):
    """What a handler answers. The connection adds Content-Length, Date and Connection.

    `length_bytes` is the length of a `body` that is no bytes. For HEAD it is announced, and `body` stays empty.
    """

    status: int
    headers: Sequence[Header] = ()
    body: bytes | ResponseBody = b""
    length_bytes: int | None = None
    finished: Callable[[int], None] = _nothing
    """Called once when the response is over, cut or whole, with the count of body bytes sent."""


Handler = Callable[[Request], Awaitable[Response]]

Later = Callable[[], Awaitable[Response]]
"""What answers a request after a wait. Called once, soon; the response's body is bytes. Raises nothing but defects."""

Quick = Callable[[Head, bytes], bytes | Later | None]
"""quick(head, date): the whole response, with that value of its Date header, to a request without a body; or what must
be waited for, to have it; None when it is to be handled like others. Never waits itself, raises nothing but defects,
and decides nothing that the handler would decide otherwise. The connection stays open behind it.
"""


def never_quick(_head: Head, _date: bytes) -> None:
    """For who answers nothing at once."""
    return None


Begin = Callable[[Head, bytes, Callable[[Response], None]], bool]
"""begin(head, body, reply): take a request whose body came with its head, and reply later, once, on the loop; the
response's body is bytes. False: it is handled like others. Never waits, raises nothing but defects, and decides nothing
that the handler would decide otherwise.
"""


def never_begun(_head: Head, _body: bytes, _reply: Callable[[Response], None]) -> bool:
    """For who replies to nothing later."""
    return False
