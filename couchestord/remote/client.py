"""HTTP requests to one server, over a few connections that are used again."""

import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio

from couchestord.errors import RemoteDenied
from couchestord.remote.backend import parts_length
from couchestord.remote.exchange import BrokenExchange, Connection
from couchestord.remote.messages import Ask, Reply

_CLOSE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server may cost."""

    connections_max: int = 16
    connect_s: float = 10.0
    """To find the address, connect and agree on TLS."""
    stall_s: float = 30.0
    """Without a byte taken or given."""
    bytes_per_s_min: int = 256 << 10
    """Over a whole request and its reply, `stall_s` aside: one that drips is given up."""
    idle_s: float = 15.0
    """A connection that rested for so long is not used again: servers and what stands before them forget."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where requests go. `tls`: None for plain HTTP."""

    host: str
    port: int
    tls: ssl.SSLContext | None


class HttpClient:
    """Any number of tasks may ask; more than `connections_max` wait for each other."""

    def __init__(self, origin: Origin, limits: Limits) -> None:
        self._origin = origin
        self._limits = limits
        self._places = trio.CapacityLimiter(limits.connections_max)
        self._idle: list[Connection] = []

    async def request(self, ask: Ask, body_bytes_max: int) -> Reply:
        """The reply, whatever its status. A connection that was used before and brings no reply is replaced once by a
        new one.

        Raises BrokenExchange when no whole reply came in time; RemoteDenied when the server's certificate is no good.
        """
        async with self._places:
            if (connection := self._take_idle()) is not None:
                with suppress(BrokenExchange):
                    return await self._over(connection, ask, body_bytes_max)
            return await self._over(await self._connect(), ask, body_bytes_max)

    async def aclose(self) -> None:
        """Closes what rests. No request may be under way."""
        while self._idle:
            await _close(self._idle.pop())

    async def _over(self, connection: Connection, ask: Ask, body_bytes_max: int) -> Reply:
        limits = self._limits
        bytes_max = parts_length(ask.body) + body_bytes_max
        try:
            with trio.fail_after(limits.stall_s + bytes_max / limits.bytes_per_s_min):
                reply = await connection.exchange(ask, body_bytes_max)
        except trio.TooSlowError:
            await _close(connection)
            raise BrokenExchange(f"slower than {limits.bytes_per_s_min} bytes per second") from None
        except BaseException:
            await _close(connection)
            raise
        if connection.reusable:
            connection.idle_since = trio.current_time()
            self._idle.append(connection)
        else:
            await _close(connection)
        return reply

    def _take_idle(self) -> Connection | None:
        """The one used last, unless it rested for too long: then all did."""
        if not self._idle or self._idle[-1].idle_since < trio.current_time() - self._limits.idle_s:
            return None
        return self._idle.pop()

    async def _connect(self) -> Connection:
        """A new connection, when none rests, or those that do have been of no use: they go."""
        await self.aclose()
        origin = self._origin
        try:
            with trio.fail_after(self._limits.connect_s):
                stream: trio.abc.Stream = await trio.open_tcp_stream(origin.host, origin.port)
                if origin.tls is not None:
                    stream = await _secured(stream, origin)
        except trio.TooSlowError:
            raise BrokenExchange(f"no connection within {self._limits.connect_s:g} s") from None
        except OSError as error:
            raise BrokenExchange(f"no connection: {error}") from None
        return Connection(stream, self._limits.stall_s)


async def _close(connection: Connection) -> None:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_S):
        await connection.aclose()


async def _secured(stream: trio.abc.Stream, origin: Origin) -> trio.abc.Stream:
    assert origin.tls is not None
    secured = trio.SSLStream(stream, origin.tls, server_hostname=origin.host, https_compatible=True)
    try:
        await secured.do_handshake()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(secured)
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            raise RemoteDenied(f"the certificate of {origin.host}: {error.__cause__.verify_message}") from None
        raise BrokenExchange(f"no TLS: {error.__cause__ or error}") from None
    except BaseException:
        await trio.aclose_forcefully(secured)
        raise
    return secured
