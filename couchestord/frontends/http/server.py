"""Accepts connections, counts them, and lets them finish at the end."""

import errno
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate
from typing import Final

import trio

from couchestord.frontends.http.connection import Connection
from couchestord.frontends.http.hall import Hall
from couchestord.frontends.http.messages import Begin, Handler, Limits, Quick, never_begun, never_quick
from couchestord.frontends.http.patience import ignore_late
from couchestord.frontends.http.responses import bare_response
from couchestord.frontends.http.tls import Certificate

_log = logging.getLogger(__name__)

_REFUSALS_MAX: Final = 64
"""Connections over the limit that are told so at the same time; further ones are closed without a word."""
_REFUSAL_TIMEOUT_S: Final = 1.0
_OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_ACCEPT_PAUSE_S: Final = 0.1
_GONE_BEFORE_ACCEPT: Final = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM}) | frozenset(
    # of the network, before anybody accepted: see accept(2)
    {errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.ENETUNREACH}
)


class HttpServer:
    """What `serve_http` yields."""

    def __init__(
        self,
        handler: Handler,
        limits: Limits,
        wall_time_s: Callable[[], float],
        observe_late: Callable[[str], None],
        quick: Quick,
        begin: Begin,
        certificate: Certificate | None,
        nursery: trio.Nursery,
    ) -> None:
        """Connections run in `nursery`."""
        self._handler = handler
        self._quick = quick
        self._certificate = certificate
        self._nursery = nursery
        self._limits = limits
        self._observe_late = observe_late
        self._date = DateHeader(wall_time_s)
        self._connections: set[Connection] = set()
        self._hall = Hall(quick, begin, limits, self._date, self._start, self._forget, nursery)
        self._refusals = 0
        self._accepting: list[trio.CancelScope] = []
        self._empty = trio.Event()

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._connections)

    async def accept(self, listener: trio.SocketListener) -> None:
        """Accepts on one listener until cancelled, or told not to."""
        with trio.CancelScope() as scope:
            self._accepting.append(scope)
            await self._accept(listener)

    def accept_no_more(self) -> None:
        """Whoever comes waits in the listening socket."""
        for scope in self._accepting:
            scope.cancel()

    async def leave(self, idle_s: float, busy_s: float) -> None:
        """Accepts no more; each connection closes behind its next response, which says so, or after `idle_s` without a
        request. Returns when all are closed, or when what is under way then takes longer than `busy_s`. For a server
        whose place another one takes: no request gets lost on the way.
        """
        self.accept_no_more()
        self._hall.hand_out()
        for connection in tuple(self._connections):
            connection.finish_with_next()
        with trio.move_on_after(idle_s):
            await self._wait_until_empty()
        await self.drain(busy_s)

    async def _accept(self, listener: trio.SocketListener) -> None:
        while True:
            try:
                accepted, _ = await listener.socket.accept()
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    _log.warning("cannot accept: %s", error)
                    await trio.sleep(_ACCEPT_PAUSE_S)
                elif error.errno not in _GONE_BEFORE_ACCEPT:
                    raise
                continue
            sock = socket.socket(fileno=accepted.detach())
            sock.setblocking(False)
            if len(self._connections) < self._limits.connections_max:
                with suppress(OSError):  # not TCP, in tests and behind a Unix socket
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._welcome(sock)
            elif self._refusals < _REFUSALS_MAX:
                self._refusals += 1
                self._nursery.start_soon(self._refuse, sock)
            else:
                sock.close()

    def _welcome(self, sock: socket.socket) -> None:
        if self._certificate is not None:
            try:
                sock = self._certificate.wrap(sock)
            except OSError as error:
                _log.debug("a connection ended before it began: %s", error)
                sock.close()
                return
        connection = Connection(sock, self._handler, self._limits, self._date, self._quick, self._observe_late)
        self._connections.add(connection)
        if self._certificate is None:
            self._hall.enter(connection)
        else:
            connection.deadline_s = trio.current_time() + self._limits.head_timeout_s
            self._start(connection, b"", b"")

    async def watch(self) -> None:
        """Cuts connections whose clients are late, until cancelled. One sleep for all costs a request nothing."""
        limits = self._limits
        # No connection sets a nearer deadline than this, so whoever looks so often misses none.
        period_s = min(limits.idle_timeout_s, limits.head_timeout_s, limits.write_timeout_s)
        while True:
            now_s = trio.current_time()
            next_s = now_s + period_s
            for connection in tuple(self._connections):
                if connection.deadline_s <= now_s:
                    if not self._hall.drop(connection):
                        connection.cut()
                else:
                    next_s = min(next_s, connection.deadline_s)
            await trio.sleep_until(next_s)

    async def wait_for_quick(self) -> None:
        """Answers quick requests until cancelled; then all idle connections are closed."""
        try:
            await self._hall.run()
        finally:
            self._hall.close()

    def _start(self, connection: Connection, received: bytes, unsent: bytes) -> None:
        self._nursery.start_soon(self._run, connection, received, unsent)

    async def _run(self, connection: Connection, received: bytes, unsent: bytes) -> None:
        stays = False
        try:
            stays = await connection.run(received, unsent)
        except Exception:
            _log.exception("a connection failed")
        finally:
            if stays:
                self._hall.enter(connection)
            else:
                self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    async def _refuse(self, sock: socket.socket) -> None:
        """503, read what comes for a moment so that the answer is not lost to a reset, close."""
        try:
            with sock, suppress(OSError), trio.move_on_after(_REFUSAL_TIMEOUT_S):
                sock.send(bare_response(503, "too many connections are open; try again later"))
                sock.shutdown(socket.SHUT_WR)
                while True:
                    await trio.lowlevel.wait_readable(sock)
                    if not sock.recv(4096):
                        break
        finally:
            self._refusals -= 1

    async def drain(self, within_s: float) -> None:
        """Lets requests under way finish, for at most so long; idle connections close at once."""
        for connection in tuple(self._connections):
            if not self._hall.drop(connection):
                connection.finish_soon()
        with trio.move_on_after(within_s):
            await self._wait_until_empty()

    async def _wait_until_empty(self) -> None:
        while self._connections:
            self._empty = trio.Event()
            await self._empty.wait()


class DateHeader:
    """The value of the Date header, formatted once a second."""

    __slots__ = ("_second", "_value", "_wall_time_s")

    def __init__(self, wall_time_s: Callable[[], float]) -> None:
        self._wall_time_s = wall_time_s
        self._second = -1
        self._value = b""

    def __call__(self) -> bytes:
        second = int(self._wall_time_s())
        if second != self._second:
            self._second, self._value = second, formatdate(second, usegmt=True).encode("ascii")
        return self._value


@asynccontextmanager
async def serve_http(
    listeners: Sequence[trio.SocketListener],
    handler: Handler,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    *,
    wall_time_s: Callable[[], float] = time.time,
    observe_late: Callable[[str], None] = ignore_late,
    quick: Quick = never_quick,
    begin: Begin = never_begun,
    certificate: Certificate | None = None,
) -> AsyncIterator[HttpServer]:
    """Serves `handler` on `listeners` while the body of the `async with` runs.

    When the body ends, no more is accepted, the listeners are closed, idle connections too, and requests under way have
    `limits.drain_timeout_s` to finish. When the body is cancelled or raises, everything is cut at once.

    A handler runs in a task of its connection. What it raises is logged and answered 500; requests on other connections
    never notice. `quick` and `begin` are asked first, for all idle connections in one task. `observe_late` is told
    "head", "body" or "response" for each client that was given up, for it stopped in the midst of that, or was too
    slow; not for idle ones. With a `certificate` all of it is under TLS.
    """
    async with trio.open_nursery() as connections:
        server = HttpServer(handler, limits, wall_time_s, observe_late, quick, begin, certificate, connections)
        connections.start_soon(server.wait_for_quick)
        connections.start_soon(server.watch)
        if certificate is not None:
            connections.start_soon(certificate.follow)
        for listener in listeners:
            connections.start_soon(server.accept, listener)
        yield server
        server.accept_no_more()
        for listener in listeners:
            await listener.aclose()
        await server.drain(limits.drain_timeout_s)
        connections.cancel_scope.cancel()
