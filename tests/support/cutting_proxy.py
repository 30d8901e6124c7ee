"""A network that fails: a proxy in front of a server that cuts connections after some bytes."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio


@dataclass(slots=True)
class Proxy:
    port: int
    random: random.Random
    cut_after_bytes: int
    """A connection is cut after some number of bytes below twice this, counted both ways together."""
    cuts: int = 0
    listeners: list[trio.SocketListener] = field(default_factory=list)


@asynccontextmanager
async def cutting(port: int, seed: int, cut_after_bytes: int) -> AsyncIterator[Proxy]:
    """In front of `port` on loopback."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy = Proxy(listeners[0].socket.getsockname()[1], random.Random(seed), cut_after_bytes)

        async def serve(client: trio.SocketStream) -> None:
            await _pass_on(proxy, client, port)

        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield proxy
        nursery.cancel_scope.cancel()


async def _pass_on(proxy: Proxy, client: trio.SocketStream, port: int) -> None:
    left = [proxy.random.randrange(2 * proxy.cut_after_bytes)]
    server = await trio.open_tcp_stream("127.0.0.1", port)
    async with client, server, trio.open_nursery() as nursery:

        async def carry(source: trio.SocketStream, target: trio.SocketStream) -> None:
            try:
                while data := await source.receive_some(16 << 10):
                    await target.send_all(data[: left[0]])
                    left[0] -= len(data)
                    if left[0] < 0:
                        proxy.cuts += 1
                        break
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(carry, client, server)
        nursery.start_soon(carry, server, client)
