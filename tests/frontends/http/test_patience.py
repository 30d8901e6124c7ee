"""Clients that are slow but never silent, over socket pairs. The clock jumps when nobody has anything to do."""

import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from couchestord.errors import RequestTimeout
from couchestord.frontends.http import Limits, Request, Response
from couchestord.frontends.http.connection import Connection
from couchestord.frontends.http.messages import never_quick
from couchestord.frontends.http.patience import Patience, untaken_bytes

HEAD = b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n"
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
LIMITS = Limits()
Client = Callable[[trio.SocketStream], Awaitable[None]]


class Served:
    """What came of one connection."""

    def __init__(self) -> None:
        self.late = list[str]()
        self.timeouts = 0
        self.bodies_bytes = list[int]()
        self.ended_s = math.inf
        self.answers = b""

    async def iterate(self, request: Request) -> Response:
        return await self._answer([len(piece) async for piece in request.body])

    async def read_into(self, request: Request) -> Response:
        counts, buffer = list[int](), bytearray(1000)
        while True:
            count = await request.body.read_into(memoryview(buffer))
            counts.append(len(await anext(request.body, b"")) if count is None else count)
            if not counts[-1]:
                return await self._answer(counts)

    async def _answer(self, counts: list[int]) -> Response:
        self.bodies_bytes.append(sum(counts))
        return Response(200)

    async def refuse_slow(self, read: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
        try:
            return await read(request)
        except RequestTimeout:
            self.timeouts += 1
            return Response(400)


def serve(
    client: Client,
    read: str = "iterate",
    limits: Limits = LIMITS,
    body: "Endless | bytes | None" = None,
    sndbuf: int = 4096,
) -> Served:
    """Serves `client` until the connection ends, or the client has ended."""
    served = Served()

    async def handler(request: Request) -> Response:
        if body is not None:
            return Response(200, (), body, len(body) if isinstance(body, bytes) else 1 << 40)
        return await served.refuse_slow(getattr(served, read), request)

    async def run_client(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        await client(stream)
        scope.cancel()

    async def main() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(run_client, stream, nursery.cancel_scope)
            await Connection(ours, handler, limits, lambda: b"", never_quick, served.late.append).run()
            served.ended_s = trio.current_time()
            nursery.cancel_scope.cancel()
            if body is None:
                with trio.CancelScope(shield=True):
                    served.answers = await stream.receive_some()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return served


class Endless:
    """A response without end."""

    closed = False

    def __init__(self, piece_bytes: int = 1 << 20) -> None:
        self._piece = b"x" * piece_bytes

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return self._piece

    async def aclose(self) -> None:
        self.closed = True


def sending(head: bytes, piece: bytes, times: int, every_s: float = 29) -> Client:
    async def client(stream: trio.SocketStream) -> None:
        await stream.send_all(head)
        for _ in range(times):
            await trio.sleep(every_s)
            await stream.send_all(piece)
        await stream.send_eof()
        await trio.sleep(10)

    return client


def taking(bytes_max: int, times: int, every_s: float) -> Client:
    async def client(stream: trio.SocketStream) -> None:
        await stream.send_all(GET)
        for _ in range(times):
            await trio.sleep(every_s)
            taken = 0
            while taken < bytes_max:
                taken += len(await stream.receive_some(bytes_max - taken))

    return client


@pytest.mark.parametrize("every_s", [0.9, 29])
@pytest.mark.parametrize(
    ("head", "read"), [(HEAD % (1 << 20), "iterate"), (HEAD % 999, "read_into"), (CHUNKED, "iterate")]
)
def test_a_body_that_drips_is_a_timeout(head: bytes, read: str, every_s: float) -> None:
    served = serve(sending(head, b"x", 300, every_s), read)
    assert (served.timeouts, served.late) == (1, ["body"])
    assert served.answers.startswith(b"HTTP/1.1 400")
    assert 60 <= served.ended_s <= 64, "the grace, a look, and time to read the answer"


@pytest.mark.parametrize("read", ["iterate", "read_into"])
def test_a_slow_body_of_the_least_rate_arrives(read: str) -> None:
    size = 29 * LIMITS.bytes_per_s_min
    served = serve(sending(HEAD % (20 * size), b"x" * size, 20), read)
    assert (served.bodies_bytes, served.timeouts, served.late) == ([20 * size], 0, [])


def test_what_came_quickly_is_no_credit_for_dripping_later() -> None:
    served = serve(sending(HEAD % (2 << 20) + b"x" * (1 << 20), b"x", 300))
    assert served.late == ["body"]
    assert 60 <= served.ended_s <= 64


def test_without_a_least_rate_only_silence_counts() -> None:
    served = serve(sending(HEAD % 300, b"x", 300), limits=replace(LIMITS, bytes_per_s_min=0))
    assert (served.bodies_bytes, served.late) == ([300], [])
    body = Endless()
    assert serve(taking(4096, 50, 25), body=body, limits=replace(LIMITS, bytes_per_s_min=0)).late == []


def test_each_body_has_a_grace_of_its_own() -> None:
    async def client(stream: trio.SocketStream) -> None:
        for _ in range(20):
            await stream.send_all(HEAD % 2)
            for _ in range(2):
                await trio.sleep(25)
                await stream.send_all(b"x")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")

    served = serve(client)
    assert (served.late, served.bodies_bytes) == ([], [2] * 20)


def test_a_response_that_is_taken_drop_by_drop_is_cut() -> None:
    body = Endless()
    served = serve(taking(4096, 300, 25), body=body)
    assert served.late == ["response"]
    assert 60 <= served.ended_s <= 130
    assert body.closed


@pytest.mark.parametrize("piece_bytes", [1000, 1 << 20])
def test_a_response_that_is_taken_at_the_least_rate_is_not_cut(piece_bytes: int) -> None:
    assert serve(taking(25 * LIMITS.bytes_per_s_min, 40, 25), body=Endless(piece_bytes)).late == []


def test_each_response_has_a_grace_of_its_own() -> None:
    async def client(stream: trio.SocketStream) -> None:
        for _ in range(10):
            await stream.send_all(GET)
            taken = b""
            for _ in range(2):
                await trio.sleep(25)
                taken += await stream.receive_some(4096)
            while not taken.endswith(b"."):
                taken += await stream.receive_some()

    assert serve(client, body=b"x" * 12_000 + b".").late == []


def test_a_client_that_takes_little_at_a_time_is_not_cut_while_a_large_send_buffer_empties() -> None:
    """The socket becomes writable only once most of it is empty: at this pace that takes minutes."""
    body = Endless()
    assert serve(taking(100_000, 40, 25), body=body, sndbuf=400_000).late == []


def test_a_client_that_takes_nothing_is_cut_in_time() -> None:
    async def client(stream: trio.SocketStream) -> None:
        await stream.send_all(GET)
        await trio.sleep_forever()

    served = serve(client, body=Endless())
    assert served.late == ["response"]
    assert LIMITS.write_timeout_s <= served.ended_s <= LIMITS.write_timeout_s + 1


def test_time_that_is_not_waited_for_the_client_does_not_count() -> None:
    async def main() -> None:
        patience = Patience(LIMITS, 30, lambda: 0)
        near, far = socket.socketpair()
        with near, far:
            for _ in range(10):
                await trio.sleep(100)
                assert await patience.wait(lambda _: trio.sleep(5), near)
            await trio.sleep(100)
            assert await patience.wait(lambda _: trio.sleep(9), near)
            assert not await patience.wait(lambda _: trio.sleep(9), near)

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_what_a_client_has_not_taken_is_counted_over_tcp() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    far = socket.create_connection(listener.getsockname())
    near, _ = listener.accept()
    with listener, near, far:
        assert untaken_bytes(near) == 0
        near.setblocking(False)
        sent = 0
        while True:
            try:
                sent += near.send(b"x" * 65536)
            except BlockingIOError:
                break
        assert 0 < untaken_bytes(near) <= sent
