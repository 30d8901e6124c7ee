"""One client's connection: a socket, its deadlines, and one request after the other.

Between requests a connection waits in the `hall`, or in a task of its own while its requests are no quick ones. Nothing
is read ahead of a handler but what came with the head, so a slow handler holds its client back, and a slow client holds
nobody else: every wait for it has a deadline. The deadline of a head, which every request has, is a number that the
server watches; for bodies and sends there is `Patience`, made only when there is something to wait for.
"""

import logging
import math
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from couchestord.errors import DataLost, IncompleteBody, RequestTimeout
from couchestord.frontends.http.bodies import ConnectionBody, Turns
from couchestord.frontends.http.messages import Handler, Head, Later, Limits, Quick, Request, Response, ResponseBody
from couchestord.frontends.http.patience import Patience, ignore_late, untaken_bytes
from couchestord.frontends.http.protocol import END, NEED_DATA, HttpProtocol, MalformedMessage
from couchestord.frontends.http.responses import BODILESS, CONTINUE, bare_response, body_length, response_head
from couchestord.frontends.http.tls import TlsSocket

_log = logging.getLogger(__name__)

_JOINED_BYTES_MAX: Final = 256 << 10
"""A body up to this length is sent together with its head: one send, one copy."""
HEAD_RECEIVE_BYTES: Final = 64 << 10
"""Read at once while a head is awaited: the head, and a small body with it. Whole records of TLS."""
_LOOKS_TO_PASS_MAX: Final = 31
_BEGUN: Final = (b"PUT", b"DELETE")  # what the hall may begin
_QUICK_IN_A_ROW: Final = 3
"""After so many requests that the hall would take a task lets its connection wait in the hall."""
_LINGER_BYTES_MAX: Final = 4 << 20
_LINGER_TIMEOUT_S: Final = 2.0


class _Gone(Exception):
    """The client is gone or does not take what it asked for. The connection is cut."""


class Connection:
    """Serves one socket until either side wants no more."""

    def __init__(
        self,
        sock: socket.socket,
        handler: Handler,
        limits: Limits,
        date: Callable[[], bytes],
        quick: Quick,
        observe_late: Callable[[str], None] = ignore_late,
    ) -> None:
        """`sock` is connected and non-blocking; `run` closes it. `date` gives the Date header's value."""
        self.socket = sock
        self._tls = sock if isinstance(sock, TlsSocket) else None
        self._handler = handler
        self._limits = limits
        self._date = date
        self._observe_late = observe_late
        self._quick = quick
        self._quick_in_a_row = 0
        self.was_asked = False
        """The request that comes next has no quick answer: set by who asked."""
        self.protocol = HttpProtocol(limits.head_bytes_max, limits.headers_max)
        self._scope = trio.CancelScope()
        self.is_closing = self._is_last = False
        self._busy = False
        self._sent_bytes = 0  # of the body under way
        self._partly_sent_bytes = 0  # of the piece under way
        self._received_bytes = 0  # of all bodies
        self._reading: Patience | None = None
        self._writing: Patience | None = None
        self._looks_to_pass = self._looks_passed = 0
        self.deadline_s = math.inf
        """When, in trio's time, the client has been waited for too long: whoever watches calls `cut` then."""

    def cut(self) -> None:
        """Ends the connection where it stands, for its client is late. In the midst of a head, it is told so."""
        if not self._busy and self.protocol.has_early_bytes:
            self._note_late("head")
            with suppress(OSError):
                self.socket.send(bare_response(408, "the head of the request came too slowly"))
        self._scope.cancel()

    def _note_late(self, awaited: str) -> None:
        with suppress(OSError):
            _log.info("a client is too slow, its connection ends: %s of %s", awaited, self.socket.getpeername())
        self._observe_late(awaited)

    def finish_soon(self) -> None:
        """No request after the one that came or begins to come; without one, the connection closes now."""
        self.is_closing = True
        if not (self._busy or self.protocol.has_early_bytes):
            self._scope.cancel()

    def finish_with_next(self) -> None:
        """No request after the one under way, or else after the next, whose response says so."""
        self._is_last = True
        self.is_closing = self._busy

    async def run(self, received: bytes = b"", unsent: bytes = b"") -> bool:
        """Sends what was not sent yet, then serves, from bytes on that were received already; these alone when the
        connection is to finish. True: it waits for its next request, probably a quick one, so let it wait in the hall.
        False: it is closed. Raises nothing that the client caused.
        """
        wait = False
        self._scope = trio.CancelScope()
        self._quick_in_a_row = 0
        try:
            with self._scope:
                if self._tls is not None:
                    await self._tls.shake_hands()
                if unsent:
                    self._busy, self.deadline_s, self._writing = True, math.inf, None
                    await self._send(unsent)
                    self._busy = False
                if received:
                    self.protocol.receive(received)
                elif self.is_closing:
                    await self._linger()
                    return False
                while not wait and await self._serve_one():
                    wait = self._quick_in_a_row >= _QUICK_IN_A_ROW and not self._has_more()
        except (_Gone, OSError):
            wait = False
        finally:
            if not wait:
                self.socket.close()
        return wait

    def _has_more(self) -> bool:
        """Whether some of the next request is here. Without it, epoll tells when it comes."""
        if self._tls is not None and self._tls.pending():
            self.protocol.receive(self._tls.recv(HEAD_RECEIVE_BYTES))
        return self.protocol.has_early_bytes

    async def _serve_one(self) -> bool:
        """One request and its response. False: close."""
        if (head := await self._read_head()) is None:
            return False
        self._busy, self._reading = True, None
        self.is_closing |= self._is_last
        answer = self._quick_answer(head)
        if isinstance(answer, bytes):
            self._quick_in_a_row += 1
            self._sent_bytes, self._writing = 0, None
            await self._send(answer)
            self._busy = False
            return not self.is_closing
        would_stay = answer is not None or (self.protocol.came_whole and head.method in _BEGUN)
        self._quick_in_a_row = self._quick_in_a_row + 1 if would_stay else 0
        body = ConnectionBody(self, head.content_length)
        request = Request(head.method, head.target, head.headers, body, head.content_length, head.fields)
        try:
            response = await (self._handler(request) if answer is None else answer())
        except Exception:
            _log.exception("a handler failed")
            response, body.broken = Response(500), True
        keep = await self._respond(head, response, body)
        self._busy = False
        return keep and not self.is_closing

    def _quick_answer(self, head: Head) -> bytes | Later | None:
        is_usual = self.protocol.keeps_alive and not (self.was_asked or self.is_closing)
        self.was_asked = False
        if head.content_length != 0 or not is_usual:
            return None
        try:
            return self._quick(head, self._date())
        except Exception:
            _log.exception("a quick answer failed")
            return None

    # -- reading -----------------------------------------------------------------------------------------------------

    async def _read_head(self) -> Head | None:
        """The next head; None when the connection is to be closed. Idle and slow clients meet the deadline."""
        protocol, limits = self.protocol, self._limits
        self.deadline_s = trio.current_time() + limits.idle_timeout_s
        begun = False
        try:
            if self._has_more():
                await trio.lowlevel.checkpoint()  # pipelined requests never wait for the socket: let others run
            else:
                protocol.receive(await self._receive_next())
            while True:
                head = protocol.next_head()
                if isinstance(head, Head):
                    self.deadline_s = math.inf
                    return head
                if head is END:
                    return None
                if protocol.has_early_bytes and not begun:
                    begun = True
                    self.deadline_s = trio.current_time() + limits.head_timeout_s
                protocol.receive(await self._receive(HEAD_RECEIVE_BYTES))
        except MalformedMessage as error:
            await self._refuse(error)
            return None

    async def _receive_next(self) -> bytes:
        """The first bytes of a head. When many clients are busy, they are there once all others have had their turn,
        and a look then is cheaper than to ask epoll; after one in vain some requests pass without.
        """
        if self._looks_passed < self._looks_to_pass:
            self._looks_passed += 1
            return await self._receive(HEAD_RECEIVE_BYTES)
        self._looks_passed = 0
        await trio.lowlevel.checkpoint()
        try:
            data = self.socket.recv(HEAD_RECEIVE_BYTES)
        except BlockingIOError:
            self._looks_to_pass = min(2 * self._looks_to_pass + 1, _LOOKS_TO_PASS_MAX)
            return await self._receive(HEAD_RECEIVE_BYTES)
        self._looks_to_pass = 0
        return data

    async def _receive(self, bytes_max: int) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self.socket)
            try:
                return self.socket.recv(bytes_max)
            except BlockingIOError:
                pass

    async def _receive_body(self, left: int | None) -> bytes:
        """Bytes of a body that lacks `left` bytes, None: unknown. A handler is mostly slower than the client."""
        bytes_max = self._limits.receive_bytes if left is None else min(left, self._limits.receive_bytes)
        while True:
            try:
                data = self.socket.recv(bytes_max)
            except BlockingIOError:
                await self._wait_for_body()
            else:
                self._received_bytes += len(data)
                return data

    async def _wait_for_body(self) -> None:
        if self._reading is None:
            self._reading = Patience(self._limits, self._limits.body_timeout_s, lambda: self._received_bytes)
        if not await self._reading.wait(trio.lowlevel.wait_readable, self.socket):
            self._note_late("body")
            raise RequestTimeout("the body stopped arriving, or comes too slowly")

    async def read_body(self, left: int | None) -> bytes | None:
        """The next piece of a body that lacks `left` bytes, None at its end. For `ConnectionBody`."""
        protocol = self.protocol
        try:
            while True:
                piece = protocol.next_body()
                if piece is END:
                    return None
                if piece is not NEED_DATA:
                    return piece
                if protocol.wants_continue:
                    protocol.wants_continue = False
                    await self._send(CONTINUE)
                protocol.receive(await self._receive_body(left))
        except MalformedMessage as error:
            raise IncompleteBody(str(error)) from error
        except (OSError, _Gone) as error:
            raise IncompleteBody("the client went away") from error

    async def read_body_into(self, buffer: memoryview) -> int:
        """Reads from the socket into `buffer`; only while the protocol has `direct_bytes`. For `ConnectionBody`."""
        try:
            if (protocol := self.protocol).wants_continue:
                protocol.wants_continue = False
                await self._send(CONTINUE)
            while True:  # what is there already comes without a turn of the loop
                try:
                    count = self.socket.recv_into(buffer[: protocol.direct_bytes])
                except BlockingIOError:
                    await self._wait_for_body()
                else:
                    self._received_bytes += count
                    protocol.receive_direct(count)
                    return count
        except MalformedMessage as error:
            raise IncompleteBody(str(error)) from error
        except (OSError, _Gone) as error:
            raise IncompleteBody("the client went away") from error

    # -- writing -----------------------------------------------------------------------------------------------------

    async def _respond(self, head: Head, response: Response, body: ConnectionBody) -> bool:
        """Sends the response and reads what is left of the body. False: close."""
        self._sent_bytes, self._writing = 0, None
        source, limits = response.body, self._limits
        close = (
            self.is_closing or not self.protocol.keeps_alive or not body.can_be_skipped(limits.unread_body_bytes_max)
        )
        try:
            length = None if response.status in BODILESS else body_length(response)
            raw = response_head(response.status, response.headers, self._date(), length, close=close)
            if head.method == b"HEAD" or length is None:
                await self._send(raw)
            elif isinstance(source, bytes):
                await self._send_whole(raw, source, length)
            else:
                await self._send(raw)
                await self._send_pieces(source, length)
        except ValueError:
            _log.exception("a response cannot be sent as it is; the connection is cut")
            return False
        finally:
            response.finished(self._sent_bytes)
            if not isinstance(source, bytes):
                with trio.CancelScope(shield=True, deadline=trio.current_time() + limits.write_timeout_s):
                    await source.aclose()
        if close or not (body.ended or await body.skip(limits.unread_body_bytes_max)):
            await self._linger()
            return False
        return True

    async def _send_whole(self, head: bytes, body: bytes, length: int) -> None:
        if len(body) != length:
            raise ValueError(f"a body of {len(body)} bytes is announced as {length}")
        if length <= _JOINED_BYTES_MAX:
            await self._send(head + body)
        else:
            await self._send(head)
            await self._send(body)
        self._sent_bytes = length

    async def _send_pieces(self, source: ResponseBody, length: int) -> None:
        """Sends a body piece by piece. Raises ValueError when it is not `length` bytes long: the connection is cut."""
        turns = Turns()
        try:
            async for piece in source:
                if len(piece) > length - self._sent_bytes:
                    raise ValueError("a body is longer than announced")
                if len(piece):
                    await self._send(piece)
                    self._sent_bytes += len(piece)
                    await turns.after(len(piece))
        except (_Gone, OSError, ValueError):
            raise
        except Exception as error:
            # The head is out and says 200: only a cut tells the client that the body is not whole.
            if isinstance(error, DataLost):
                _log.error("a body broke off, data is lost; the connection is cut: %s", error)  # no defect to trace
            else:
                _log.exception("a body broke off; the connection is cut")
            raise _Gone from error
        if self._sent_bytes != length:
            raise ValueError("a body is shorter than announced")

    async def _send(self, data: bytes | memoryview) -> None:
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent != len(data):
            await self._send_rest(memoryview(data), sent)

    async def _send_rest(self, data: memoryview, sent: int) -> None:
        self._partly_sent_bytes = sent
        if self._writing is None:
            self._writing = Patience(self._limits, self._limits.write_timeout_s, self._taken_bytes)
        while self._partly_sent_bytes < len(data):
            if not await self._writing.wait(trio.lowlevel.wait_writable, self.socket):
                self._note_late("response")
                raise _Gone
            with suppress(BlockingIOError):
                self._partly_sent_bytes += self.socket.send(data[self._partly_sent_bytes :])

    def _taken_bytes(self) -> int:
        return self._sent_bytes + self._partly_sent_bytes - untaken_bytes(self.socket)

    async def _refuse(self, error: MalformedMessage) -> None:
        """Answers a head that is not HTTP as it should be, and gives the client time to read that."""
        self.deadline_s, self._busy = trio.current_time() + self._limits.write_timeout_s, True
        await self._send(bare_response(error.status, str(error)))
        await self._linger()

    async def _linger(self) -> None:
        """Closes so that the client can read the response: a close with unread input would reset the connection."""
        with trio.move_on_after(_LINGER_TIMEOUT_S):
            self.socket.shutdown(socket.SHUT_WR)
            left = _LINGER_BYTES_MAX
            while left > 0:
                data = await self._receive(HEAD_RECEIVE_BYTES)
                if not data:
                    return
                left -= len(data)
