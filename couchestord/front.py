"""Where clients ask for objects: the S3 server of a process, or what a process has in its place."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Protocol

import trio

from couchestord.clock import SystemClock
from couchestord.config import Config
from couchestord.errors import ConfigError
from couchestord.frontends.http import Certificate, HttpServer, Limits, serve_http
from couchestord.frontends.s3.server import S3Options, S3Server
from couchestord.listening import address_of, bind, copies
from couchestord.metrics import Metrics
from couchestord.parsing import Address
from couchestord.replica.host import Host
from couchestord.store import Objects, ObjectStore


class Front(Protocol):
    """What clients ask for objects."""

    @property
    def address(self) -> Address: ...

    def serving(self, store: ObjectStore) -> AbstractAsyncContextManager[object]:
        """Serves the store while the body runs; at its end, requests under way are finished."""
        ...

    async def aclose(self) -> None:
        """No more clients are accepted, for good."""
        ...


MakeFront = Callable[[Config, Host, Metrics, int, AsyncExitStack], Awaitable[Front]]
"""Makes a front of the configuration, what serves other processes, the metrics to count in, the most clients at a time,
and a stack that closes it. Raises ConfigError.
"""


async def make_server(config: Config, _host: Host, metrics: Metrics, clients_max: int, stack: AsyncExitStack) -> Front:
    """A front that serves S3 in this process."""
    listeners = await bind("s3", config.s3.address, stack)
    return S3Front(config, metrics, clients_max, listeners)


class S3Front:
    """Serves S3 in this process, on listeners that others close."""

    def __init__(
        self, config: Config, metrics: Metrics, clients_max: int, listeners: Sequence[trio.SocketListener]
    ) -> None:
        """Raises ConfigError when there is to be TLS, and its files are no good."""
        self._options = S3Options(region=config.s3.region)
        self._limits = Limits(connections_max=clients_max, bytes_per_s_min=config.s3.bytes_per_s_min)
        self._metrics = metrics
        self._listeners = listeners
        self._clock = SystemClock()
        self._certificate = certificate_of(config)

    @property
    def address(self) -> Address:
        return address_of(self._listeners)

    def serving(self, store: Objects) -> AbstractAsyncContextManager[HttpServer]:
        """Serves a store while the body runs; at its end, requests under way are finished."""
        server = S3Server(store, self._clock, self._options, self._metrics.count_request)
        return serve_http(
            copies(self._listeners),
            server.handler,
            self._limits,
            observe_late=self._metrics.count_late,
            quick=server.quick,
            begin=server.begin,
            certificate=self._certificate,
        )

    async def aclose(self) -> None:
        """No more clients are accepted, for good."""
        for listener in self._listeners:
            await listener.aclose()


def certificate_of(config: Config) -> Certificate | None:
    """What the S3 server shows, None without TLS. Raises ConfigError."""
    if config.s3.tls_certificate is None or config.s3.tls_key is None:
        return None
    try:
        return Certificate(config.s3.tls_certificate, config.s3.tls_key)
    except ValueError as error:
        raise ConfigError(f"[s3] tls_certificate, tls_key: {error}") from None
