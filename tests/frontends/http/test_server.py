"""The HTTP shell over real loopback sockets: framing, limits, deadlines, drain."""

import errno
import itertools
import math
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import cast

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from tls_switch import TLS
from trio.testing import MockClock

from couchestord.frontends.http import HttpServer, Limits, Request, Response, serve_http
from couchestord.frontends.http.connection import Connection
from couchestord.frontends.http.messages import Head, never_quick
from couchestord.frontends.http.protocol import END, NEED_DATA, HttpProtocol, MalformedMessage

Handler = Callable[[Request], Awaitable[Response]]
GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"


async def echo(request: Request) -> Response:
    body = b"".join([piece async for piece in request.body])
    return Response(200, [(b"X-Target", request.target)], body)


async def read_directly(request: Request, buffer_bytes: int = 1000) -> bytes:
    """The body by `read_into`, and by iteration where that is needed."""
    body, buffer = b"", bytearray(buffer_bytes)
    while True:
        count = await request.body.read_into(memoryview(buffer))
        piece = bytes(buffer[:count]) if count is not None else await anext(request.body, b"")
        if not piece:
            return body
        body += piece


async def echo_directly(request: Request) -> Response:
    return Response(200, (), await read_directly(request))


@asynccontextmanager
async def serving(handler: Handler = echo, limits: Limits = Limits()) -> AsyncIterator[tuple[HttpServer, int]]:  # noqa: B008
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with (
        serve_http(listeners, handler, limits, certificate=TLS.certificate()) as server,
        TLS.port(port) as reached,
    ):
        yield server, reached


async def connect(port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port)


async def read_all(stream: trio.SocketStream) -> bytes:
    data = b""
    async for piece in stream:
        data += piece
    return data


async def read_until(stream: trio.SocketStream, ending: bytes) -> bytes:
    data = b""
    while not data.endswith(ending):
        piece = await stream.receive_some()
        assert piece, data
        data += piece
    return data


async def exchange(port: int, raw: bytes) -> bytes:
    """Sends `raw`, half-closes, and reads until the server closes."""
    async with await connect(port) as stream:
        await stream.send_all(raw)
        await stream.send_eof()
        return await read_all(stream)


async def test_keep_alive_pipelining_and_bodies() -> None:
    post = b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
    chunked = b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    async with serving() as (_, port):
        answer = await exchange(port, post + chunked + GET + post)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 4
    order = [answer.index(part) for part in (b"hello", b"abcde", b"/x")]
    assert order == sorted(order)
    assert answer.endswith(b"hello")


async def test_a_body_read_into_memory_ends_where_it_ends() -> None:
    """What lies behind it is the next request, however much room there is, and whatever came with the head."""
    chunked = b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    for size in (1, 999, 1000, 1001, 300_000):
        body = random.Random(size).randbytes(size)
        post = b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size + body
        apart = b"POST /q HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n" % size
        async with serving(echo_directly) as (_, port), await connect(port) as stream:
            await stream.send_all(apart)
            assert (await read_until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            answers = list[bytes]()

            async def receive(stream: trio.SocketStream = stream, answers: list[bytes] = answers) -> None:
                answers.extend((await read_all(stream)).split(b"HTTP/1.1 200 OK\r\n"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await stream.send_all(body + post + chunked + post)
                await stream.send_eof()
        assert [answer.partition(b"\r\n\r\n")[2] for answer in answers] == [b"", body, body, b"abcde", body]


async def test_head_and_body_leave_in_one_segment() -> None:
    async with serving() as (_, port), await connect(port) as stream:
        await stream.send_all(b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello")
        assert (await stream.receive_some(65536)).endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\nHost: h\n\n",
        b"GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\nhello",
        b"GET / HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 201 + b"\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not http \r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: h\r\n\r\n",
    ],
)
async def test_malformed_heads_are_refused_and_reach_no_handler(head: bytes) -> None:
    async def never(_: Request) -> Response:
        raise AssertionError

    async with serving(never) as (_, port):
        answer = await exchange(port, head)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431", b"HTTP/1.1 501", b"HTTP/1.1 505")), answer
    assert b"Connection: close" in answer
    told, _, reason = answer.partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(reason) in told
    assert len(reason) > 1


async def test_a_head_without_end_is_cut_at_the_limit_and_others_are_served() -> None:
    async with serving() as (_, port), await connect(port) as hostile:

        async def send_for_ever() -> None:
            await hostile.send_all(b"GET / HTTP/1.1\r\n")
            while True:
                await hostile.send_all(b"a: " + b"b" * 1000 + b"\r\n")

        with pytest.raises(trio.BrokenResourceError):
            await send_for_ever()
        assert (await exchange(port, GET)).startswith(b"HTTP/1.1 200")


async def test_refuses_more_connections_than_the_limit_and_recovers() -> None:
    async with serving(limits=Limits(connections_max=2)) as (server, port):
        first, second = await connect(port), await connect(port)
        for stream in (first, second):
            await stream.send_all(GET)
            await read_until(stream, b"\r\n\r\n")
        assert (await exchange(port, GET)).startswith(b"HTTP/1.1 503")
        await first.aclose()
        while server.connections > 1:
            await trio.lowlevel.checkpoint()
        assert (await exchange(port, GET)).startswith(b"HTTP/1.1 200")
        await second.aclose()


class _NetworkDown:
    """A listener whose connections fail before they are accepted; then it is closed."""

    def __init__(self) -> None:
        self.socket = self
        self.left = [errno.ECONNABORTED, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EBADF]

    async def accept(self) -> None:
        await trio.lowlevel.checkpoint()
        raise OSError(self.left.pop(0), "not accepted")


async def test_the_network_fails_and_the_server_lives() -> None:
    down = _NetworkDown()
    async with serving() as (server, _):
        with pytest.raises(OSError, match="not accepted") as ended:
            await server.accept(cast(trio.SocketListener, down))
    assert ended.value.errno == errno.EBADF


async def test_100_continue_is_sent_only_when_the_body_is_read() -> None:
    head = b"PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"

    async def deny(_: Request) -> Response:
        return Response(403, (), b"no")

    async with serving(deny) as (_, port), await connect(port) as stream:
        await stream.send_all(head)
        answer = await read_all(stream)
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"Connection: close" in answer
    async with serving() as (_, port), await connect(port) as stream:
        await stream.send_all(head)
        assert (await read_until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"hello")
        assert (await read_until(stream, b"hello")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: h\r\nConnection: x, Close\r\n\r\n"]
)
async def test_a_client_that_wants_no_more_is_told_so_and_closed(head: bytes) -> None:
    async with serving() as (_, port), await connect(port) as stream:
        await stream.send_all(head + GET)
        answer = await read_all(stream)
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"Connection: close" in answer


async def test_an_unread_body_is_skipped_or_the_connection_closed() -> None:
    methods = list[bytes]()

    async def ignore(request: Request) -> Response:
        methods.append(request.method)
        return Response(200, (), b"ok")

    def post(length: int) -> bytes:
        return b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % length + b"x" * length

    chunked = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % (1 << 20) + b"x" * (1 << 20)
    async with serving(ignore) as (_, port):
        assert (await exchange(port, post(1000) + GET)).count(b"HTTP/1.1 200") == 2
        for big in (post(300_000), chunked + b"\r\n0\r\n\r\n"):
            assert (await exchange(port, big + GET)).count(b"HTTP/1.1 200") == 1
    assert methods == [b"POST", b"GET", b"POST", b"POST"]


async def test_no_header_is_split() -> None:
    async def splitting(_: Request) -> Response:
        return Response(200, [(b"X", b"a\r\nSet-Cookie: b")], b"")

    async with serving(splitting) as (_, port):
        assert b"Set-Cookie" not in await exchange(port, GET)


async def test_a_failing_handler_is_answered_500_and_the_server_lives(caplog: pytest.LogCaptureFixture) -> None:
    async def failing(request: Request) -> Response:
        if request.target == b"/x":
            raise RuntimeError("secret")
        return Response(200)

    async with serving(failing) as (_, port):
        answer = await exchange(port, GET)
        assert answer.startswith(b"HTTP/1.1 500")
        assert b"secret" not in answer
        assert (await exchange(port, GET.replace(b"/x", b"/y"))).startswith(b"HTTP/1.1 200")
    assert "a handler failed" in caplog.text


class Pieces:
    """A body of given pieces; an exception among them is raised."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self._pieces = iter(pieces)
        self.closed = False

    def __aiter__(self) -> "Pieces":
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            return piece
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize("rest", [(OSError("disk"),), (RuntimeError("rot"),), (), (b"too", b"much")])
async def test_a_body_that_breaks_off_cuts_the_connection(rest: tuple[bytes | Exception, ...]) -> None:
    body, counts = Pieces(b"abc", *rest), list[int]()

    async def partial(_: Request) -> Response:
        return Response(200, (), body, 6, counts.append)

    async with serving(partial) as (_, port):
        answer = await exchange(port, GET + GET)
    assert answer.count(b"HTTP/1.1 200") == 1
    assert len(answer.partition(b"\r\n\r\n")[2]) == (6 if rest == (b"too", b"much") else 3)
    assert body.closed
    assert len(counts) == 1


async def test_streamed_bodies_keep_the_connection_and_head_sends_none() -> None:
    async def stream(request: Request) -> Response:
        return Response(200, (), Pieces(b"abc", b"", b"def"), 6)

    async with serving(stream) as (_, port):
        answer = await exchange(port, GET + GET.replace(b"GET", b"HEAD") + GET)
    assert answer.count(b"Content-Length: 6") == 3
    assert answer.count(b"abcdef") == 2


async def test_a_piece_is_good_until_the_next_is_asked_for_however_slow_the_client() -> None:
    rng = random.Random(3)
    pieces = [rng.randbytes(1 << 20) for _ in range(24)]

    class Lent(Pieces):
        """Pieces that all lie in the same memory."""

        async def __anext__(self) -> bytes:
            memory[:] = await super().__anext__()
            return memory  # type: ignore[return-value]

    memory = bytearray(1 << 20)

    async def lent(_: Request) -> Response:
        return Response(200, (), Lent(*pieces), sum(map(len, pieces)))

    async with serving(lent) as (_, port), await connect(port) as stream:
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
        await stream.send_all(GET)
        answer = bytearray()
        while len(answer) < sum(map(len, pieces)) or b"\r\n\r\n" not in answer:
            answer += await stream.receive_some(50_000)
        head, _, body = answer.partition(b"\r\n\r\n")
        while len(body) < sum(map(len, pieces)):
            body += await stream.receive_some(50_000)
        assert head.startswith(b"HTTP/1.1 200")
        assert body == b"".join(pieces)


async def test_small_pieces_leave_turns_to_others() -> None:
    turns, seen = 0, list[int]()

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    class Counted(Pieces):
        async def __anext__(self) -> bytes:
            seen.append(turns)
            return await super().__anext__()

    async def stream(_: Request) -> Response:
        return Response(200, (), Counted(*[b"x"] * 1000), 1000)

    async with serving(stream) as (_, port), trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await exchange(port, GET)
        nursery.cancel_scope.cancel()
    assert seen[-1] - seen[0] >= 50


async def test_drain_finishes_the_request_under_way() -> None:
    entered, go = trio.Event(), trio.Event()

    async def slow(_: Request) -> Response:
        entered.set()
        await go.wait()
        return Response(200, (), b"done")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    stop, ended = trio.Event(), trio.Event()

    async def serve() -> None:
        async with serve_http(listeners, slow):
            await stop.wait()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with await connect(port) as idle, await connect(port) as busy:
            await busy.send_all(GET)
            await entered.wait()
            stop.set()
            assert await read_all(idle) == b""
            assert not ended.is_set()
            go.set()
            answer = await read_all(busy)
            assert answer.endswith(b"done")
            assert b"Connection: close" in answer
            await ended.wait()
    with pytest.raises(OSError, match="connect"):
        await connect(port)


def run_with_mock_clock(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0.05))


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: h\r\n", GET])
def test_idle_and_slow_heads_are_closed(sent: bytes) -> None:
    async def main() -> None:
        begun = trio.current_time()
        async with serving() as (_, port), await connect(port) as stream:
            if sent:
                await stream.send_all(sent)
            answer = await read_all(stream)
            waited_s = trio.current_time() - begun
            assert waited_s == pytest.approx(60 if sent in (b"", GET) else 10, abs=0.5)
            assert answer.startswith(b"HTTP/1.1 408 ") == (sent not in (b"", GET))
            assert (answer == b"") == (sent == b"")

    run_with_mock_clock(main)


@pytest.mark.parametrize("before", [b"", GET])
def test_a_head_that_drips_is_cut_when_its_time_is_up(before: bytes) -> None:
    late = list[str]()

    async def drip(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"X-A: b\r\n")
                await trio.sleep(4)

    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with (
            serve_http(listeners, echo, observe_late=late.append),
            await connect(listeners[0].socket.getsockname()[1]) as stream,
            trio.open_nursery() as nursery,
        ):
            begun = trio.current_time()
            await stream.send_all(before + b"GET / HTTP/1.1\r\n")
            nursery.start_soon(drip, stream)
            answer = await read_all(stream)
            nursery.cancel_scope.cancel()
            assert trio.current_time() - begun == pytest.approx(10, abs=0.5)
        assert b"HTTP/1.1 408 " in answer
        assert late == ["head"]

    run_with_mock_clock(main)


def test_a_slow_handler_is_not_taken_for_a_slow_client() -> None:
    async def main() -> None:
        async def slow(_: Request) -> Response:
            await trio.sleep(1000)
            return Response(200, (), b"done")

        async with serving(slow) as (_, port), await connect(port) as stream:
            await stream.send_all(GET)
            assert (await read_until(stream, b"done")).startswith(b"HTTP/1.1 200")

    run_with_mock_clock(main)


@pytest.mark.parametrize("read", [echo, echo_directly])
def test_a_stalled_body_is_a_timeout_for_the_handler_and_closes(read: Handler) -> None:
    async def main() -> None:
        raised = list[str]()

        async def reading(request: Request) -> Response:
            try:
                await read(request)
            except Exception as error:
                raised.append(type(error).__name__)
                return Response(400)
            return Response(200)

        async with serving(reading) as (_, port), await connect(port) as stream:
            await stream.send_all(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc")
            assert (await read_all(stream)).startswith(b"HTTP/1.1 400")
        async with serving(reading) as (_, port):
            gone = b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc"
            assert (await exchange(port, gone)).startswith(b"HTTP/1.1 400")
        assert raised == ["RequestTimeout", "IncompleteBody"]

    run_with_mock_clock(main)


def test_a_client_that_takes_nothing_is_cut() -> None:
    async def main() -> None:
        closed = trio.Event()

        class Endless(Pieces):
            async def __anext__(self) -> bytes:
                return b"x" * 65536

            async def aclose(self) -> None:
                closed.set()

        async def endless(_: Request) -> Response:
            return Response(200, (), Endless(), 1 << 40)

        async with serving(endless) as (_, port), await connect(port) as stream:
            await stream.send_all(GET)
            await closed.wait()

    run_with_mock_clock(main)


class Flood(socket.socket):
    """A client that has always sent more: a PUT without end."""

    def recv(self, bytes_max: int, *_: object) -> bytes:
        head = b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (1 << 40)
        return head if bytes_max < Limits().receive_bytes else bytes(bytes_max)

    def recv_into(self, buffer: memoryview, *_: object) -> int:  # type: ignore[override]
        return len(buffer)


@pytest.mark.parametrize("is_direct", [False, True])
async def test_a_client_that_is_always_ahead_leaves_turns_to_others(is_direct: bool) -> None:
    turns, taken = 0, list[int]()

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async def reading(request: Request) -> Response:
        before, read, buffer = turns, 0, memoryview(bytearray(1 << 20))
        while read < 64 << 20:
            count = await request.body.read_into(buffer) if is_direct else None
            read += count or len(await anext(request.body))
        taken.append(turns - before)
        nursery.cancel_scope.cancel()
        return Response(200)

    ours, theirs = socket.socketpair()
    with theirs:
        theirs.send(b"x")
        ours.setblocking(False)
        flood = Flood(fileno=ours.detach())
        flood.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            await Connection(flood, reading, Limits(), lambda: b"", never_quick).run()
    assert taken[0] >= 32


class Crumbs(socket.socket):
    """A client that has always sent more: chunks of a byte each. It goes once nobody asks for a body any more."""

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self.heads = [b"", b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"]

    def recv(self, bytes_max: int, *_: object) -> bytes:
        return self.heads.pop() if bytes_max < Limits().receive_bytes else b"1\r\na\r\n" * (bytes_max // 6)


@pytest.mark.parametrize("is_read", [True, False])
async def test_tiny_chunks_leave_turns_to_others_whether_they_are_read_or_thrown_away(is_read: bool) -> None:
    turns, before, pieces = 0, 0, 20_000

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async def answer(request: Request) -> Response:
        nonlocal before
        before, read = turns, 0
        while is_read and read < pieces:
            read += len(await anext(request.body))
        return Response(403)

    ours, theirs = socket.socketpair()
    with theirs:
        theirs.send(b"x")
        ours.setblocking(False)
        crumbs = Crumbs(ours.detach())
        crumbs.setblocking(False)
        limits = Limits(unread_body_bytes_max=0 if is_read else pieces)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            await Connection(crumbs, answer, limits, lambda: b"", never_quick).run()
            nursery.cancel_scope.cancel()
    assert turns - before >= pieces // 20


async def test_many_slow_clients_do_not_keep_an_honest_one_out() -> None:
    async with serving() as (server, port):
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        for client in slow:
            client.sendall(b"GET / HTTP/1.1\r\n")
        assert (await exchange(port, GET)).startswith(b"HTTP/1.1 200")
        assert server.connections > 100
        for client in slow:
            client.close()


MESSAGES = (
    b"PUT /a%20b?c HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\nhello world"
    b"\r\nGET / HTTP/1.1\r\nHost: h\r\nX-A: b\r\n\r\n"
    b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    b"GET /last HTTP/1.1\r\nHost: h\r\n\r\n"
)


def parse(pieces: list[bytes]) -> list[tuple[bytes, bytes]]:
    protocol, waiting, found = HttpProtocol(1 << 15, 200), list(pieces), list[tuple[bytes, bytes]]()
    while True:
        while (head := protocol.next_head()) is NEED_DATA:
            protocol.receive(waiting.pop(0) if waiting else b"")
        if head is END:
            return found
        assert isinstance(head, Head)
        body = b""
        while (piece := protocol.next_body()) is not END:
            if isinstance(piece, bytes):
                body += piece
            else:
                protocol.receive(waiting.pop(0))
        found.append((head.target, body))


@settings(deadline=None)
@given(st.lists(st.integers(0, len(MESSAGES)), max_size=8))
def test_messages_do_not_depend_on_how_they_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(set(cuts) - {0, len(MESSAGES)}), len(MESSAGES)]
    pieces = [MESSAGES[a:b] for a, b in itertools.pairwise(edges)]
    assert parse(pieces) == [(b"/a%20b?c", b"hello world"), (b"/", b""), (b"/c", b"abcde"), (b"/last", b"")]


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_garbage_never_raises_anything_else(garbage: bytes) -> None:
    protocol = HttpProtocol(1 << 15, 200)
    protocol.receive(garbage + b"\r\n\r\n")
    with suppress(MalformedMessage):
        head = protocol.next_head()
        assert head in (NEED_DATA, END) or isinstance(head, Head)


class CountedSocket(socket.socket):
    """Counts looks that found nothing."""

    in_vain = 0

    def recv(self, *arguments: int) -> bytes:
        try:
            return super().recv(*arguments)
        except BlockingIOError:
            self.in_vain += 1
            raise


@pytest.mark.parametrize("is_busy", [True, False])
async def test_a_busy_client_is_not_waited_for_and_a_quiet_one_is_not_looked_at(
    is_busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy one has sent its next request by the time that everybody has had a turn."""
    requests, waits = 100, 0
    real = trio.lowlevel.wait_readable

    async def counted(sock: socket.socket) -> None:
        nonlocal waits
        waits += 1
        await real(sock)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", counted)
    near, far = socket.socketpair()
    server = CountedSocket(near.family, near.type, near.proto, fileno=near.detach())
    served = trio.Event()

    async def handler(request: Request) -> Response:
        if is_busy:
            far.sendall(GET)
        return Response(200, (), b"", None, lambda _: served.set())

    with server, far:
        server.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Connection(server, handler, Limits(), lambda: b"", never_quick).run)
            far.sendall(GET)
            for _ in range(requests):
                await served.wait()
                served = trio.Event()
                if not is_busy:
                    await trio.testing.wait_all_tasks_blocked()
                    far.sendall(GET)
                assert far.recv(1000).startswith(b"HTTP/1.1 200")
            nursery.cancel_scope.cancel()
    if is_busy:
        assert waits == server.in_vain == 0
    else:
        assert waits >= requests
        assert 1 <= server.in_vain <= 10


@pytest.mark.parametrize("quick", [False, True])
async def test_a_server_that_leaves_answers_the_next_request_of_each_client_and_says_so(quick: bool) -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    answer = (lambda _head, _date: whole) if quick else (lambda _head, _date: None)
    async with (
        serve_http(listeners, echo, quick=answer) as server,
        AsyncExitStack() as stack,
        trio.open_nursery() as nursery,
    ):
        nursery.cancel_scope.deadline = trio.current_time() + 30
        clients = [await stack.enter_async_context(await connect(port)) for _ in range(3)]
        for client in clients:
            await client.send_all(GET)
            assert (await client.receive_some()).startswith(b"HTTP/1.1 200")
        nursery.start_soon(server.leave, 60, 60)
        await trio.testing.wait_all_tasks_blocked()
        late = await stack.enter_async_context(await connect(port))
        await late.send_all(GET)
        for client in clients:
            await client.send_all(GET)
            response = await read_all(client)
            assert response.startswith(b"HTTP/1.1 200"), "no request is lost"
            assert b"Connection: close" in response
        with trio.move_on_after(0.01) as waited:
            await late.receive_some()
        assert waited.cancelled_caught, "whoever comes later waits for the next server"
        with trio.fail_after(10):
            while server.connections:
                await trio.sleep(0)
        nursery.cancel_scope.deadline = math.inf
    assert not nursery.cancel_scope.cancelled_caught


async def test_a_server_that_leaves_waits_for_idle_clients_no_longer_than_it_was_told() -> None:
    async with AsyncExitStack() as stack, serving() as (server, port):
        client = await stack.enter_async_context(await connect(port))
        await client.send_all(GET)
        await client.receive_some()
        with trio.fail_after(10):
            await server.leave(0.01, 60)
        assert server.connections == 0
        assert await read_all(client) == b""


async def test_a_server_that_leaves_waits_longer_for_a_request_under_way() -> None:
    asked, go_on = trio.Event(), trio.Event()

    async def handler(request: Request) -> Response:
        asked.set()
        await go_on.wait()
        return await echo(request)

    async with serving(handler) as (server, port), await connect(port) as client, trio.open_nursery() as nursery:
        await client.send_all(GET)
        await asked.wait()
        nursery.start_soon(server.leave, 0, 60)
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 1
        go_on.set()
        assert (await read_all(client)).startswith(b"HTTP/1.1 200")
