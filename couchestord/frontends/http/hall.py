"""Where connections wait between requests, and where quick requests are answered.

Theory of operation. One task waits for all idle connections by an epoll descriptor of its own. What comes is read, and
when it is one whole plain head, asked for an answer that can be given at once, without waiting: that is sent, and the
connection goes on waiting here, at a fraction of what a task's turn costs. Everything else (bodies, unfinished heads,
pipelined requests, whatever `lane` does not read, answers that must be waited for or that the client does not take in
one piece) leaves the hall with what was read of it, for a task of its own, which comes back once it sees quick
requests.
"""

import logging
import select
import time
from collections.abc import Callable
from typing import Final

import trio

from couchestord.frontends.http.connection import HEAD_RECEIVE_BYTES, Connection
from couchestord.frontends.http.lane import read_head
from couchestord.frontends.http.messages import Limits, Quick, never_quick

_log = logging.getLogger(__name__)

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
        limits: Limits,
        date: Callable[[], bytes],
        leave: Leaving,
        gone: Callable[[Connection], None],
    ) -> None:
        """`gone` is told of each connection that was closed here."""
        self._gone = gone
        self._quick = quick
        self._limits = limits
        self._date = date
        self._leave = leave
        self._epoll = select.epoll()
        self._waiting: dict[int, Connection] = {}

    def enter(self, connection: Connection) -> None:
        """Wait for the next request of a connection that was sent all it is due. After `close` it is closed."""
        if self._epoll.closed:
            connection.closed()
            self._gone(connection)
            return
        fd = connection.socket.fileno()
        self._waiting[fd] = connection
        self._epoll.register(fd, select.EPOLLIN)
        connection.deadline_s = trio.current_time() + self._limits.idle_timeout_s

    def hand_out(self) -> None:
        """No answers any more: each connection leaves with its next request."""
        self._quick = never_quick

    def drop(self, connection: Connection) -> bool:
        """Close a connection if it waits here."""
        fd = connection.socket.fileno()
        if self._waiting.get(fd) is not connection:
            return False
        self._forget(fd)
        connection.closed()
        self._gone(connection)
        return True

    def close(self) -> None:
        """Close everybody who waits. Nobody enters any more."""
        for connection in list(self._waiting.values()):
            self.drop(connection)
        self._epoll.close()

    def _forget(self, fd: int) -> Connection:
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
        try:
            data = connection.socket.recv(HEAD_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop(connection)
            return
        head = read_head(data) if len(data) <= self._limits.head_bytes_max else None
        if head is None or head.content_length or len(head.headers) > self._limits.headers_max:
            self._leave(self._forget(fd), data, b"")
            return
        try:
            answer = self._quick(head, self._date())
        except Exception:
            _log.exception("a quick answer failed")
            answer = None
        if answer is None:
            connection.was_asked = True
            self._leave(self._forget(fd), data, b"")
            return
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
