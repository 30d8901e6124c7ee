"""Where connections wait between requests, and where quick requests are answered.

Theory of operation. One task waits for all idle connections by an epoll descriptor of its own. What comes is read, and
when it is one whole plain head, asked for an answer that can be given at once, without waiting: that is sent, and the
connection goes on waiting here, at a fraction of what a task's turn costs. An answer that must be waited for is waited
for in a task, while the connection stays here. A request that came whole, body and all, may be begun instead: its
connection waits here for the reply. When its client sends more meanwhile, or goes, epoll looks at it no longer, and a
task sends the reply.

Everything else (bodies that come later, unfinished heads, pipelined requests, whatever `lane` does not read, long
answers, and what the client does not take in one piece) leaves the hall with what was read of it, for a
task of its own, which comes back once it sees requests that the hall would take.
"""

import logging
import math
import select
import time
from collections.abc import Callable
from typing import Final

import trio

from couchestord.frontends.http.connection import HEAD_RECEIVE_BYTES, Connection
from couchestord.frontends.http.lane import read_head
from couchestord.frontends.http.messages import Begin, Head, Later, Limits, Quick, Response, never_begun, never_quick
from couchestord.frontends.http.responses import BODILESS, response_head

_log = logging.getLogger(__name__)

_END_OF_HEAD: Final = b"\r\n\r\n"
_EVENTS_MAX: Final = 32
_TURN_NS: Final = 1_000_000
"""So long, about, the hall answers before other tasks have a turn."""

Leaving = Callable[[Connection, bytes, bytes], None]
"""Serve this connection in a task: it sent those bytes, and is still to be sent these."""


class Hall:
    """Idle connections. `run` serves them; all methods belong to one task context."""

    def __init__(
        self,
        quick: Quick,
        begin: Begin,
        limits: Limits,
        date: Callable[[], bytes],
        leave: Leaving,
        gone: Callable[[Connection], None],
        nursery: trio.Nursery,
    ) -> None:
        """`gone` is told of each connection that was closed here. `nursery` runs what answers wait for."""
        self._gone = gone
        self._nursery = nursery
        self._quick = quick
        self._begin = begin
        self._limits = limits
        self._date = date
        self._leave = leave
        self._epoll = select.epoll()
        self._waiting: dict[int, Connection] = {}
        self._begun: dict[int, bool] = {}
        """Those whose request was begun, and whether epoll still looks at them."""

    def enter(self, connection: Connection) -> None:
        """Wait for the next request of a connection that was sent all it is due. After `close` it is closed."""
        fd = connection.socket.fileno()
        try:
            self._epoll.register(fd, select.EPOLLIN)
        except (OSError, ValueError) as error:
            if not self._epoll.closed:
                _log.warning("a connection cannot be waited for and is closed: %s", error)
            self._end(connection)
            return
        self._waiting[fd] = connection
        connection.deadline_s = trio.current_time() + self._limits.idle_timeout_s

    def hand_out(self) -> None:
        """No answers any more: each connection leaves with its next request."""
        self._quick, self._begin = never_quick, never_begun

    def drop(self, connection: Connection) -> bool:
        """Close a connection if it waits here for a request."""
        fd = connection.socket.fileno()
        if self._waiting.get(fd) is not connection or fd in self._begun:
            return False
        self._close(fd)
        return True

    def _close(self, fd: int) -> None:
        self._end(self._forget(fd))

    def _end(self, connection: Connection) -> None:
        connection.socket.close()
        self._gone(connection)

    def close(self) -> None:
        """Close everybody who waits. Nobody enters any more."""
        for fd in tuple(self._waiting):
            self._close(fd)
        self._epoll.close()

    def _forget(self, fd: int) -> Connection:
        if self._begun.pop(fd, True):
            self._epoll.unregister(fd)
        return self._waiting.pop(fd)

    async def run(self) -> None:
        """Serve until cancelled."""
        poll, descriptor, clock = self._epoll.poll, self._epoll.fileno(), time.perf_counter_ns
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            deadline_ns = clock() + _TURN_NS
            now_s = trio.current_time()
            while events := poll(0, _EVENTS_MAX):
                for fd, _ in events:
                    self._serve(fd, now_s)
                if clock() > deadline_ns:
                    break

    def _serve(self, fd: int, now_s: float) -> None:
        connection = self._waiting[fd]
        if fd in self._begun:
            self._epoll.unregister(fd)
            self._begun[fd] = False
            return
        try:
            data = connection.socket.recv(HEAD_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop(connection)
            return
        end = data.find(_END_OF_HEAD) + len(_END_OF_HEAD)
        head = read_head(data[:end]) if len(_END_OF_HEAD) <= end <= self._limits.head_bytes_max else None
        if head is None or len(data) - end != head.content_length or len(head.headers) > self._limits.headers_max:
            self._leave(self._forget(fd), data, b"")
            return
        try:
            answer = None if head.content_length else self._quick(head, self._date())
            if answer is None and self._begins(fd, connection, head, data[end:]):
                return
        except Exception:
            _log.exception("a quick answer failed")
            answer = None
        if answer is not None and not isinstance(answer, bytes):
            self._begun[fd] = True
            connection.deadline_s = math.inf
            self._nursery.start_soon(self._reply_later, fd, connection, answer)
        elif answer is None:
            connection.was_asked = True
            self._leave(self._forget(fd), data, b"")
        else:
            self._send(fd, connection, answer, now_s)

    async def _reply_later(self, fd: int, connection: Connection, later: Later) -> None:
        try:
            response = await later()
        except Exception:
            _log.exception("a quick answer failed")
            response = Response(500)
        if self._waiting.get(fd) is connection:
            self._reply(fd, connection, response)
        else:
            response.finished(0)

    def _begins(self, fd: int, connection: Connection, head: Head, body: bytes) -> bool:
        """Whether the request was begun. Then the connection waits, without a deadline, for the reply."""
        replies: list[Response] = []

        def reply(response: Response) -> None:
            if not begun:  # before `begin` itself came back, or after it said no, which a defect would do
                replies.append(response)
            elif self._waiting.get(fd) is connection:
                self._reply(fd, connection, response)
            else:
                response.finished(0)

        begun = False
        if not self._begin(head, body, reply):
            return False
        begun = True
        self._begun[fd] = True
        connection.deadline_s = math.inf
        for response in replies:
            self._reply(fd, connection, response)
        return True

    def _reply(self, fd: int, connection: Connection, response: Response) -> None:
        body, is_closing = response.body, connection.is_closing
        assert isinstance(body, bytes)
        length = None if response.status in BODILESS else len(body)
        try:
            answer = response_head(response.status, response.headers, self._date(), length, close=is_closing) + body
        except ValueError:
            _log.exception("a response cannot be sent as it is; the connection is cut")
            self._close(fd)
            response.finished(0)
            return
        if is_closing or not self._begun[fd]:
            # to a task: it reads what came meanwhile, and closes so that this does not take the reply with it
            self._leave(self._forget(fd), b"", answer)
        else:
            del self._begun[fd]
            self._send(fd, connection, answer, trio.current_time())
        response.finished(len(body))

    def _send(self, fd: int, connection: Connection, answer: bytes, now_s: float) -> None:
        try:
            sent = connection.socket.send(answer)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.drop(connection)
            return
        if sent == len(answer):
            connection.deadline_s = now_s + self._limits.idle_timeout_s
        else:
            self._leave(self._forget(fd), b"", answer[sent:])
