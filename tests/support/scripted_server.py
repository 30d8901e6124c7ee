"""An HTTP server that does to each request what a test wrote down, good or bad."""

import itertools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio


@dataclass(slots=True)
class Asked:
    """A request as it came. The body is read by the actions that answer it."""

    method: str
    target: str
    headers: dict[str, str]
    stream: trio.abc.Stream
    rest: bytes
    body: bytes = b""

    async def read_body(self) -> None:
        wanted = int(self.headers.get("content-length", "0"))
        body = bytearray(self.rest)
        while len(body) < wanted:
            data = await self.stream.receive_some(1 << 20)
            if not data:
                raise trio.BrokenResourceError("the client went away")
            body += data
        self.body = bytes(body)


Action = Callable[[Asked], Awaitable[bool]]
"""Does something to a request. True: the connection may be used for another one."""


@dataclass(slots=True)
class Server:
    """What runs, and what it saw."""

    port: int
    script: list[Action]
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    open_now: int = 0
    open_most: int = 0

    @property
    def methods(self) -> list[str]:
        return [one.method for one in self.asked]


def answer(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None, *, close: bool = False) -> Action:
    """Reads the request, answers, and keeps the connection unless told to close it."""

    async def act(asked: Asked) -> bool:
        await asked.read_body()
        await asked.stream.send_all(response(status, b"" if asked.method == "HEAD" else body, body, headers, close))
        return not close

    return act


def response(
    status: int, body: bytes, measured: bytes, headers: Mapping[str, str] | None = None, close: bool = False
) -> bytes:
    lines = {"Content-Length": str(len(measured)), **(headers or {}), **({"Connection": "close"} if close else {})}
    head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
    return head.encode() + body


def error(status: int, code: str, headers: Mapping[str, str] | None = None) -> Action:
    """An S3 error."""
    return answer(status, f"<Error><Code>{code}</Code><Message>planted</Message></Error>".encode(), headers)


def say(data: bytes) -> Action:
    """Reads the request, sends these bytes and closes the connection."""

    async def act(asked: Asked) -> bool:
        await asked.read_body()
        await asked.stream.send_all(data)
        return False

    return act


def close_after(action: Action) -> Action:
    """As `action`, then closes the connection without having said so."""

    async def act(asked: Asked) -> bool:
        await action(asked)
        return False

    return act


def refuse_unread(status: int, code: str) -> Action:
    """Answers right after the head of the request, takes nothing of its body, and closes once the client did. For
    bodies that do not fit into the buffers between the two.
    """

    async def act(asked: Asked) -> bool:
        body = f"<Error><Code>{code}</Code></Error>".encode()
        await asked.stream.send_all(response(status, body, body))
        await trio.sleep_forever()  # the client closes with bytes unread, which ends nothing here: the test does
        return False

    return act


async def stall(asked: Asked) -> bool:
    """Reads nothing and says nothing."""
    await trio.sleep_forever()
    return False


async def stall_after_body(asked: Asked) -> bool:
    """Reads the request and says nothing until the client goes."""
    await asked.read_body()
    while await asked.stream.receive_some(1 << 20):
        pass
    return False


async def drip(asked: Asked) -> bool:
    """An answer without an end, a byte now and then."""
    await asked.read_body()
    await asked.stream.send_all(b"HTTP/1.1 200 X\r\nContent-Length: 1000000\r\n\r\n")
    for _ in itertools.count():
        await asked.stream.send_all(b"x")
        await trio.sleep(0.01)
    return False


@asynccontextmanager
async def serving(script: Sequence[Action], tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """The n-th request meets the n-th action; one too many finds its connection closed."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server = Server(listeners[0].socket.getsockname()[1], list(script))
        handler = partial(_serve, server, tls)
        nursery.start_soon(trio.serve_listeners, handler, listeners)
        yield server
        nursery.cancel_scope.cancel()


async def _serve(server: Server, tls: ssl.SSLContext | None, plain: trio.SocketStream) -> None:
    stream: trio.abc.Stream = plain
    if tls is not None:
        stream = trio.SSLStream(plain, tls, server_side=True, https_compatible=True)
    server.connections += 1
    server.open_now += 1
    server.open_most = max(server.open_most, server.open_now)
    try:
        while (asked := await _read_head(stream)) is not None:
            server.asked.append(asked)
            if not server.script or not await server.script.pop(0)(asked):
                return
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return
    finally:
        server.open_now -= 1
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)


async def _read_head(stream: trio.abc.Stream) -> Asked | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some(65536)
        if not more:
            return None
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Asked(method, target, headers, stream, rest)
