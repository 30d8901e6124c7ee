"""One client's connection: a socket, its deadlines, and one request after the other.

A connection is served by one task. Nothing is read ahead of a handler but what came with the head, so a slow handler
holds its client back, and a slow client holds nobody else: every wait for it has a deadline.
"""

import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from couchestord.errors import IncompleteBody, RequestTimeout
from couchestord.frontends.http.messages import Handler, Header, Limits, Request, Response, ResponseBody
from couchestord.frontends.http.protocol import END, Head, HttpProtocol, MalformedMessage

_log = logging.getLogger(__name__)

_JOINED_BYTES_MAX: Final = 256 << 10
"""A body up to this length is sent together with its head: one send, one copy."""
_LINGER_BYTES_MAX: Final = 4 << 20
_LINGER_TIMEOUT_S: Final = 2.0
_BODILESS: Final = frozenset({204, 304})


class _Gone(Exception):
    """The client is gone or does not take what it asked for. The connection is cut."""


class Connection:
    """Serves one socket until either side wants no more."""

    def __init__(self, sock: socket.socket, handler: Handler, limits: Limits, date: Callable[[], bytes]) -> None:
        """`sock` is connected and non-blocking; `run` closes it. `date` gives the Date header's value."""
        self._socket = sock
        self._handler = handler
        self._limits = limits
        self._date = date
        self._protocol = HttpProtocol(limits.head_bytes_max, limits.headers_max)
        self._scope = trio.CancelScope()
        self._closing = False
        self._busy = False

    def finish_soon(self) -> None:
        """No request after the one under way; without one, the connection closes now."""
        self._closing = True
        if not self._busy:
            self._scope.cancel()

    async def run(self) -> None:
        """Serves until the connection is closed. Raises nothing that the client caused."""
        try:
            with self._scope, suppress(_Gone, OSError):
                while await self._serve_one():
                    pass
        finally:
            self._socket.close()

    async def _serve_one(self) -> bool:
        """One request and its response. False: close."""
        head = await self._read_head()
        if head is None:
            return False
        self._busy = True
        body = _Body(self, head.content_length)
        if head.content_length == 0:
            body.take_end()
        request = Request(head.method, head.target, head.headers, body, head.content_length)
        try:
            response = await self._handler(request)
        except Exception:
            _log.exception("a handler failed")
            response, body.broken = Response(500), True
        keep = await self._respond(request, response, body)
        self._busy = False
        return keep and not self._closing

    # -- reading -----------------------------------------------------------------------------------------------------

    async def _read_head(self) -> Head | None:
        """The next head; None when the connection is to be closed. Idle and slow clients meet the scope's deadline."""
        protocol, limits = self._protocol, self._limits
        self._scope.deadline = trio.current_time() + limits.idle_timeout_s
        begun = False
        if protocol.has_early_bytes:
            await trio.lowlevel.checkpoint()  # pipelined requests never wait for the socket: let others run
        try:
            while True:
                head = protocol.next_head()
                if isinstance(head, Head):
                    self._scope.deadline = float("inf")
                    return head
                if head is END:
                    return None
                if protocol.has_early_bytes and not begun:
                    begun = True
                    self._scope.deadline = trio.current_time() + limits.head_timeout_s
                protocol.receive(await self._receive())
        except MalformedMessage as error:
            await self._refuse(error.status)
            return None

    async def _receive(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            with suppress(BlockingIOError):
                return self._socket.recv(self._limits.receive_bytes)

    async def _receive_body(self) -> bytes:
        with trio.move_on_after(self._limits.body_timeout_s):
            return await self._receive()
        raise RequestTimeout("the body stopped arriving")

    async def read_body(self) -> bytes | None:
        """The next piece of the body, None at its end. For `_Body`."""
        protocol = self._protocol
        try:
            while True:
                piece = protocol.next_body()
                if piece is END:
                    return None
                if isinstance(piece, bytes):
                    return piece
                if protocol.wants_continue:
                    await self._send(protocol.continue_head())
                protocol.receive(await self._receive_body())
        except MalformedMessage as error:
            raise IncompleteBody(str(error)) from error
        except (OSError, _Gone) as error:
            raise IncompleteBody("the client went away") from error

    # -- writing -----------------------------------------------------------------------------------------------------

    async def _respond(self, request: Request, response: Response, body: "_Body") -> bool:
        sent = _Sent()
        source = response.body
        try:
            close = self._closing or not body.can_be_skipped(self._limits.unread_body_bytes_max)
            head = self._protocol.response_head(response.status, self._headers(response, close))
            if isinstance(source, bytes):
                await self._send_small(head, b"" if _has_no_body(request, response) else source, sent)
            else:
                await self._send(head)
                if not _has_no_body(request, response):
                    await self._send_pieces(source, sent)
            if not self._protocol.response_end():
                _log.warning("a body is shorter than announced; the connection is cut")
                return False
        except ValueError:
            _log.exception("a response cannot be sent as it is; the connection is cut")
            return False
        finally:
            response.finished(sent.bytes)
            if not isinstance(source, bytes):
                with trio.CancelScope(shield=True, deadline=trio.current_time() + self._limits.write_timeout_s):
                    await source.aclose()
        if close or not await body.skip(self._limits.unread_body_bytes_max) or not self._protocol.may_continue:
            await self._linger()
            return False
        self._protocol.next_request()
        return True

    def _headers(self, response: Response, close: bool) -> list[Header]:
        headers = [*response.headers, (b"Date", self._date()), (b"Server", b"couchestord")]
        if response.status not in _BODILESS:
            length = response.length_bytes
            if length is None:
                if not isinstance(response.body, bytes):
                    raise ValueError("a streamed body has no length")
                length = len(response.body)
            headers.append((b"Content-Length", b"%d" % length))
        if close:
            headers.append((b"Connection", b"close"))
        return headers

    async def _send_small(self, head: bytes, body: bytes, sent: "_Sent") -> None:
        if body:
            self._protocol.response_data(len(body))
        if len(body) <= _JOINED_BYTES_MAX:
            await self._send(head + body)
        else:
            await self._send(head)
            await self._send(body)
        sent.bytes = len(body)

    async def _send_pieces(self, source: ResponseBody, sent: "_Sent") -> None:
        try:
            async for piece in source:
                if len(piece):
                    self._protocol.response_data(len(piece))
                    await self._send(piece)
                    sent.bytes += len(piece)
                    await trio.lowlevel.checkpoint()
        except (_Gone, OSError, ValueError):
            raise
        except Exception as error:
            # The head is out and says 200: only a cut tells the client that the body is not whole.
            _log.exception("a body broke off; the connection is cut")
            raise _Gone from error

    async def _send(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while True:
            with suppress(BlockingIOError):
                view = view[self._socket.send(view) :]
            if not view:
                return
            with trio.move_on_after(self._limits.write_timeout_s) as scope:
                await trio.lowlevel.wait_writable(self._socket)
            if scope.cancelled_caught:
                raise _Gone

    async def _refuse(self, status: int) -> None:
        """Answers a head that is not HTTP as it should be, and gives the client time to read that."""
        self._scope.deadline = trio.current_time() + self._limits.write_timeout_s
        await self._send(bare_response(status))
        await self._linger()

    async def _linger(self) -> None:
        """Closes so that the client can read the response: a close with unread input would reset the connection."""
        with trio.move_on_after(_LINGER_TIMEOUT_S):
            self._socket.shutdown(socket.SHUT_WR)
            left = _LINGER_BYTES_MAX
            while left > 0:
                data = await self._receive()
                if not data:
                    return
                left -= len(data)


class _Sent:
    """Counts the bytes of a body that went out."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class _Body:
    """`RequestBody` over a connection."""

    def __init__(self, connection: Connection, length: int | None) -> None:
        self._connection = connection
        self._left = length
        self._ended = False
        self._begun = False
        self.broken = False

    def take_end(self) -> None:
        """Reads the end of a body that has no bytes."""
        self._ended = self._connection._protocol.next_body() is END

    def __aiter__(self) -> "_Body":
        return self

    async def __anext__(self) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        if self.broken:
            raise IncompleteBody("the body broke off before")
        self._begun = True
        try:
            piece = await self._connection.read_body()
        except BaseException:
            self.broken = True
            raise
        if piece is None:
            self._ended = True
            raise StopAsyncIteration
        if self._left is not None:
            self._left -= len(piece)
        return piece

    def can_be_skipped(self, bytes_max: int) -> bool:
        """What is unread may be thrown away to keep the connection."""
        if self._ended:
            return True
        if self.broken or (self._connection._protocol.wants_continue and not self._begun):
            return False
        return self._left is None or self._left <= bytes_max

    async def skip(self, bytes_max: int) -> bool:
        """Reads the rest and throws it away. False: more than `bytes_max` came, or the client broke off."""
        skipped = 0
        try:
            async for piece in self:
                skipped += len(piece)
                if skipped > bytes_max:
                    return False
        except (IncompleteBody, RequestTimeout):
            return False
        return True


def _has_no_body(request: Request, response: Response) -> bool:
    return request.method == b"HEAD" or response.status in _BODILESS


def bare_response(status: int) -> bytes:
    """A whole response without a body that closes the connection."""
    return b"HTTP/1.1 %d \r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status
