"""A way to a server under TLS for clients that know nothing of it: bytes in both directions, and where they end."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)


@asynccontextmanager
async def bridge(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """The port of a bridge to one on loopback, while the body runs."""

    async def serve(near: trio.SocketStream) -> None:
        far = trio.SSLStream(
            await trio.open_tcp_stream("127.0.0.1", port), context, server_hostname="127.0.0.1", https_compatible=True
        )
        async with near, far:
            with suppress(*_BROKEN):
                await far.do_handshake()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_there, near, far)
                    await _back(far, near)
                    nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def _there(near: trio.SocketStream, far: "trio.SSLStream[trio.SocketStream]") -> None:
    with suppress(*_BROKEN):
        async for piece in near:
            await far.send_all(piece)
        # half of a connection cannot be closed under TLS: a client that goes is one that sends no more
        await far.transport_stream.send_eof()


async def _back(far: "trio.SSLStream[trio.SocketStream]", near: trio.SocketStream) -> None:
    with suppress(*_BROKEN):
        async for piece in far:
            await near.send_all(piece)
        await near.send_eof()
