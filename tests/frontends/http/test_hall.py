"""Connections that wait in the hall: quick answers, and everything that must leave it."""

import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
from tls_switch import TLS
from trio.testing import MockClock

from couchestord.frontends.http import Head, HttpServer, Later, Limits, Request, Response, serve_http
from couchestord.frontends.http.connection import Connection
from couchestord.frontends.http.hall import Hall
from couchestord.frontends.http.messages import Quick, never_begun, never_quick

PUT = b"PUT /%b HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"
GET = b"GET /%b HTTP/1.1\r\nHost: h\r\n\r\n"
LARGE = b"x" * (16 << 20)


class Desk:
    """A handler; for targets that begin with /q quick answers, with /l later ones, with /w requests that are begun."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.handled: list[bytes] = []
        self.begun: list[tuple[bytes, bytes, Callable[[Response], None]]] = []
        self.finished: list[int] = []
        self.waited_for: list[bytes] = []
        self.ready = trio.Event()
        """What /l waits for."""

    async def later(self, target: bytes) -> Response:
        self.waited_for.append(target)
        await self.ready.wait()
        if target == b"/lbroken":
            raise RuntimeError("a defect")
        return Response(200, (), b"later" + target, finished=self.finished.append)

    def quick(self, head: Head, date: bytes) -> bytes | Later | None:
        self.asked.append(head.target)
        if head.target.startswith(b"/l"):
            return partial(self.later, head.target)
        if head.target == b"/qbroken":
            raise RuntimeError("a defect")
        if not head.target.startswith(b"/q"):
            return None
        body = LARGE if head.target == b"/qlarge" else b"quick" + head.target
        return b"HTTP/1.1 200 OK\r\nDate: %b\r\nContent-Length: %d\r\n\r\n%b" % (date, len(body), body)

    def begin(self, head: Head, body: bytes, reply: Callable[[Response], None]) -> bool:
        if head.target == b"/wbroken":
            raise RuntimeError("a defect")
        if not head.target.startswith(b"/w"):
            return False
        self.begun.append((head.target, body, reply))
        if head.target.startswith(b"/wnow"):
            self.reply()
        return True

    def reply(self, status: int = 200) -> None:
        """To the request that was begun first."""
        target, body, reply = self.begun.pop(0)
        headers = [(b"Bad", b"new\r\nline")] if target == b"/wbad" else []
        answer = b"" if status == 204 else b"begun" + target + body
        reply(Response(status, headers, answer, finished=self.finished.append))

    async def handle(self, request: Request) -> Response:
        body = b"".join([piece async for piece in request.body])
        self.handled.append(request.target)
        return Response(200, (), b"slow" + request.target + body)


@asynccontextmanager
async def serving(desk: Desk, limits: Limits = Limits()) -> AsyncIterator[tuple[HttpServer, int]]:  # noqa: B008
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with (
        serve_http(
            listeners, desk.handle, limits, quick=desk.quick, begin=desk.begin, certificate=TLS.certificate()
        ) as server,
        TLS.port(port) as reached,
    ):
        yield server, reached


async def read_answer(stream: trio.SocketStream) -> bytes:
    """The body of one response."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = await stream.receive_some()
        assert piece, data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        piece = await stream.receive_some()
        assert piece
        body += piece
    assert len(body) == length
    return body


async def ask(stream: trio.SocketStream, target: bytes) -> bytes:
    await stream.send_all(GET % target)
    return await read_answer(stream)


async def test_quick_and_other_requests_in_turn_on_one_connection() -> None:
    desk = Desk()
    async with serving(desk) as (server, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        for target in (b"q1", b"q2", b"slow", b"q3", b"slow", b"q4", b"q5", b"q6", b"q7", b"q8", b"slow", b"q9"):
            expected = (b"quick/" if target.startswith(b"q") else b"slow/") + target
            assert await ask(stream, target) == expected
        assert server.connections == 1
    assert desk.handled == [b"/slow"] * 3
    # each was asked once, the handler's too: what the hall could not answer is not asked again
    assert len(desk.asked) == 12


async def test_a_body_a_late_end_and_pipelined_requests_leave_the_hall_whole() -> None:
    desk = Desk()
    async with serving(desk) as (_, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"PUT /q HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbo")
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(b"dy")
        assert await read_answer(stream) == b"slow/qbody"
        assert await ask(stream, b"q1") == b"quick/q1"
        whole = GET % b"q2"
        for byte in range(len(whole)):
            await stream.send_all(whole[byte : byte + 1])
            await trio.testing.wait_all_tasks_blocked()
        assert await read_answer(stream) == b"quick/q2"
    async with serving(desk) as (_, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(GET % b"q3" + GET % b"slow" + GET % b"q4" + b"GET /q")
        data = b""
        while data.count(b"HTTP/1.1 200 OK") < 3 or not data.endswith(b"q4"):
            data += await stream.receive_some()
        assert data.index(b"quick/q3") < data.index(b"slow/slow") < data.index(b"quick/q4")
        await stream.send_all(b"5 HTTP/1.1\r\nHost: h\r\n\r\n")
        assert await read_answer(stream) == b"quick/q5"


async def test_pipelined_quick_requests_are_all_answered_and_one_that_closes_is_obeyed() -> None:
    async with serving(Desk()) as (_, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"".join([GET % b"q%d" % turn for turn in range(7)]))
        data = b""
        while not data.endswith(b"quick/q6"):
            data += await stream.receive_some()
        await stream.send_all(GET[:-2] % b"q7" + b"Connection: close\r\n\r\n")
        assert await read_answer(stream) == b"slow/q7"
        assert await stream.receive_some() == b""


def test_a_client_that_takes_a_quick_answer_slowly_is_not_idle() -> None:
    async def main() -> None:
        async with (
            serving(Desk(), Limits(idle_timeout_s=10)) as (_, port),
            await trio.open_tcp_stream("127.0.0.1", port) as stream,
        ):
            await stream.send_all(GET % b"qlarge")
            await trio.sleep(20)
            assert await read_answer(stream) == LARGE

    trio.run(main, clock=MockClock(autojump_threshold=0.05))


async def test_what_a_client_does_not_take_at_once_is_sent_by_a_task_and_others_go_on() -> None:
    desk = Desk()
    async with serving(desk) as (_, port):
        slow, other = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        async with slow, other:
            await slow.send_all(GET % b"qlarge")
            for _ in range(5):
                assert await ask(other, b"q1") == b"quick/q1"
            assert await read_answer(slow) == LARGE
            assert await ask(slow, b"q2") == b"quick/q2"


async def test_a_half_closed_connection_gets_its_answer() -> None:
    async with serving(Desk()) as (server, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(GET % b"q1")
        await stream.send_eof()
        assert await read_answer(stream) == b"quick/q1"
        assert await stream.receive_some() == b""
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 0


async def test_a_client_that_resets_costs_nobody_else_anything() -> None:
    async with serving(Desk()) as (server, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        assert await ask(stream, b"q1") == b"quick/q1"
        for target in (b"q1", b"qlarge"):
            gone = await trio.open_tcp_stream("127.0.0.1", port)
            gone.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER of 0 s: a reset
            await gone.send_all(GET % target)
            await gone.aclose()
        assert await ask(stream, b"q2") == b"quick/q2"
        while server.connections > 1:
            await trio.sleep(0)


async def test_a_defect_of_a_quick_answer_is_logged_and_the_handler_asked(caplog: pytest.LogCaptureFixture) -> None:
    """In the hall, and in the task that the connection leaves it for."""
    desk = Desk()
    async with serving(desk) as (_, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        assert await ask(stream, b"qbroken") == b"slow/qbroken"
        assert await ask(stream, b"qbroken") == b"slow/qbroken"
        assert await ask(stream, b"q1") == b"quick/q1"
    logged = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert logged == ["a quick answer failed"] * 2
    caplog.clear()


@pytest.mark.parametrize("head", [GET % (b"q" * 500), GET[:-2] % b"q" + b"A: b\r\nC: d\r\n\r\n"])
async def test_a_head_over_a_limit_is_refused_as_by_a_task(head: bytes) -> None:
    desk = Desk()
    async with (
        serving(desk, Limits(head_bytes_max=500, headers_max=2)) as (_, port),
        await trio.open_tcp_stream("127.0.0.1", port) as stream,
    ):
        assert await ask(stream, b"q") == b"quick/q"
        await stream.send_all(head)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 431 ")
    assert desk.asked == [b"/q"]


async def test_who_asks_all_the_time_leaves_turns_to_others() -> None:
    here, there = socket.socketpair()
    turns = asked = 0

    def quick(_head: Head, _date: bytes) -> bytes:
        nonlocal asked
        asked += 1
        with suppress(BlockingIOError):
            there.recv(1 << 16)
        if turns < 3 and asked < 50_000:
            there.send(GET % b"q")  # the next request is here before this one is answered
        return b"HTTP/1.1 204 No Content\r\n\r\n"

    with here, there:
        here.setblocking(False)
        there.setblocking(False)
        async with trio.open_nursery() as nursery:
            hall = make_hall(quick, [], nursery)
            hall.enter(Connection(here, Desk().handle, Limits(), lambda: b"today", quick))
            nursery.start_soon(hall.run)
            there.send(GET % b"q")
            while turns < 3:
                await trio.lowlevel.checkpoint()
                turns += asked > 0
            nursery.cancel_scope.cancel()
        hall.close()
    assert asked < 50_000


def make_hall(quick: Quick, gone: list[Connection], nursery: trio.Nursery) -> Hall:
    """One that no connection leaves."""

    def leave(connection: Connection, received: bytes, unsent: bytes) -> None:
        raise AssertionError((received, unsent))

    return Hall(quick, never_begun, Limits(), lambda: b"today", leave, gone.append, nursery)


async def test_who_cannot_be_waited_for_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    gone: list[Connection] = []
    async with trio.open_nursery() as nursery:
        full = make_hall(never_quick, gone, nursery)
        closed = make_hall(never_quick, gone, nursery)
    full._epoll.close()
    full._epoll = Full()  # type: ignore[assignment]
    closed.close()
    for count, hall in enumerate((full, closed), 1):
        here, there = socket.socketpair()
        with there:
            hall.enter(Connection(here, Desk().handle, Limits(), lambda: b"today", never_quick))
            assert there.recv(1) == b""
        assert len(gone) == count
        assert gone[-1].socket.fileno() == -1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    caplog.clear()


class Full:
    """An epoll that takes nobody."""

    closed = False

    def register(self, _fd: int, _events: int) -> None:
        raise OSError(errno.ENOSPC, "no room")


def test_a_client_that_waits_too_long_is_closed_and_one_that_asks_is_not() -> None:
    async def main() -> None:
        async with serving(Desk(), Limits(idle_timeout_s=10)) as (server, port):
            idle, busy = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
            async with idle, busy:
                for _ in range(4):
                    assert await ask(busy, b"q1") == b"quick/q1"
                    await trio.sleep(6)
                assert await idle.receive_some() == b""
                assert server.connections == 1
                await trio.sleep(20)
                assert server.connections == 0

    trio.run(main, clock=MockClock(autojump_threshold=0.05))


async def test_drain_closes_who_waits_and_lets_others_finish() -> None:
    desk, begun, go_on = Desk(), trio.Event(), trio.Event()

    async def handle(request: Request) -> Response:
        begun.set()
        await go_on.wait()
        return Response(200, (), b"late")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    idle, busy, tasked = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(3)]
    async with trio.open_nursery() as nursery, idle, busy, tasked:
        stop = trio.Event()

        async def serve() -> None:
            async with serve_http(listeners, handle, quick=desk.quick):
                await stop.wait()

        nursery.start_soon(serve)
        assert await ask(idle, b"q1") == b"quick/q1"
        await busy.send_all(GET % b"slow")
        await begun.wait()
        stop.set()
        assert await idle.receive_some() == b""
        assert await tasked.receive_some() == b""
        go_on.set()
        assert await read_answer(busy) == b"late"
        assert await busy.receive_some() == b""


async def test_many_clients_at_once_each_get_their_own_answers() -> None:
    desk = Desk()

    async def client(port: int, number: int) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            for turn in range(20):
                kind = b"q" if (number + turn) % 5 else b"s"
                target = b"%b%d-%d" % (kind, number, turn)
                assert (await ask(stream, target)).endswith(b"/" + target)

    async with serving(desk) as (_, port), trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(client, port, number)
    assert len(desk.handled) == 400


async def test_cancelled_at_once_everything_is_closed() -> None:
    desk = Desk()
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1]) as stream:
        with trio.CancelScope() as scope:
            async with listeners[0], serve_http(listeners, desk.handle, quick=desk.quick):
                assert await ask(stream, b"q1") == b"quick/q1"
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        with suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""


async def put(desk: Desk, stream: trio.SocketStream, target: bytes) -> None:
    """Returns once the request was begun."""
    await stream.send_all(PUT % target)
    with trio.fail_after(60):
        while not desk.begun:
            await trio.sleep(0)


async def test_a_request_that_came_whole_is_begun_and_replied_to_later() -> None:
    desk = Desk()
    async with serving(desk) as (server, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        for turn in range(3):
            await put(desk, stream, b"w%d" % turn)
            async with await trio.open_tcp_stream("127.0.0.1", port) as other:
                assert await ask(other, b"q1") == b"quick/q1"
            desk.reply()
            assert await read_answer(stream) == b"begun/w%dbody" % turn
            assert await ask(stream, b"q1") == b"quick/q1"
        await stream.send_all(PUT % b"wnow")
        assert await read_answer(stream) == b"begun/wnowbody"
        await stream.send_all(b"DELETE /w HTTP/1.1\r\nHost: h\r\n\r\n")
        while not desk.begun:
            await trio.sleep(0)
        desk.reply(204)
        answer = await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 204 ")
        assert answer.endswith(b"\r\n\r\n")
        assert b"ontent-" not in answer
        assert server.connections == 1
    assert desk.finished == [12, 12, 12, 14, 0]
    assert not desk.handled


async def test_what_comes_while_a_request_is_under_way_waits_for_the_reply() -> None:
    desk = Desk()
    async with serving(desk) as (server, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await put(desk, stream, b"w1")
        await stream.send_all(GET % b"q1")
        await trio.testing.wait_all_tasks_blocked()
        assert not desk.asked
        desk.reply()
        data = b""
        while not data.endswith(b"q1"):
            data += await stream.receive_some()
        assert data.index(b"begun/w1body") < data.index(b"quick/q1")
    async with serving(desk) as (server, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await put(desk, stream, b"w2")
        await stream.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 1
        desk.reply()
        assert await read_answer(stream) == b"begun/w2body"
        assert await stream.receive_some() == b""
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 0


async def test_a_client_that_goes_before_the_reply_harms_nobody() -> None:
    desk = Desk()
    async with serving(desk) as (server, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        gone = await trio.open_tcp_stream("127.0.0.1", port)
        gone.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER of 0 s: a reset
        await put(desk, gone, b"w1")
        await gone.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert await ask(stream, b"q1") == b"quick/q1"
        desk.reply()
        while server.connections > 1:
            await trio.sleep(0)
        assert len(desk.finished) == 1
        assert await ask(stream, b"q2") == b"quick/q2"


async def test_defects_of_who_begins_and_replies(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    async with serving(desk) as (server, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(PUT % b"wbroken")
        assert await read_answer(stream) == b"slow/wbrokenbody"
        async with await trio.open_tcp_stream("127.0.0.1", port) as other:
            await put(desk, other, b"wbad")
            desk.reply()
            assert await other.receive_some() == b"", "cut"
        assert server.connections == 1
        assert desk.finished == [0]
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 2
    caplog.clear()


async def test_a_connection_that_left_comes_back_once_its_requests_come_whole() -> None:
    desk = Desk()
    async with serving(desk) as (_, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"PUT /w HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbo")
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(b"dy")
        assert await read_answer(stream) == b"slow/wbody"
        for _ in range(3):
            await stream.send_all(PUT % b"w")
            assert await read_answer(stream) == b"slow/wbody"
        await trio.testing.wait_all_tasks_blocked()
        await put(desk, stream, b"w")
        desk.reply()
        assert await read_answer(stream) == b"begun/wbody"


@pytest.mark.parametrize("more", [b"", GET % b"q1"])
async def test_drain_waits_for_what_was_begun(more: bytes) -> None:
    """And what the client sends meanwhile does not take the reply with it."""
    desk = Desk()
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery, await trio.open_tcp_stream("127.0.0.1", port) as stream:
        stop, stopped = trio.Event(), trio.Event()

        async def serve() -> None:
            async with serve_http(listeners, desk.handle, quick=desk.quick, begin=desk.begin):
                await stop.wait()
            stopped.set()

        nursery.start_soon(serve)
        await put(desk, stream, b"w1")
        await stream.send_all(more)
        await trio.testing.wait_all_tasks_blocked()
        stop.set()
        await trio.testing.wait_all_tasks_blocked()
        assert not stopped.is_set()
        desk.reply()
        answer = await stream.receive_some()
        assert b"Connection: close\r\n" in answer
        assert answer.endswith(b"begun/w1body")
        assert await stream.receive_some() == b""
        await stopped.wait()


def test_a_reply_may_take_long_and_the_client_is_not_late_meanwhile() -> None:
    async def main() -> None:
        desk = Desk()
        async with serving(desk, Limits(idle_timeout_s=10)) as (server, port):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            async with stream:
                await put(desk, stream, b"w1")
                await trio.sleep(100)
                desk.reply()
                assert await read_answer(stream) == b"begun/w1body"
                await trio.sleep(8)
                assert server.connections == 1
                await trio.sleep(20)
                assert server.connections == 0

    trio.run(main, clock=MockClock(autojump_threshold=0.05))


async def test_cancelled_while_a_request_is_under_way() -> None:
    desk = Desk()
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1]) as stream:
        with trio.CancelScope() as scope:
            async with listeners[0], serve_http(listeners, desk.handle, quick=desk.quick, begin=desk.begin):
                await put(desk, stream, b"w1")
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        desk.reply()
        assert desk.finished == [0]
        with suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""


async def test_a_connection_that_is_to_finish_sends_what_it_owes_and_serves_what_it_was_given() -> None:
    """It was told so between the hall and its task."""
    desk = Desk()

    async def finish(received: bytes, unsent: bytes) -> bytes:
        here, there = socket.socketpair()
        here.setblocking(False)
        connection = Connection(here, desk.handle, Limits(), lambda: b"today", quick=desk.quick)
        connection.finish_soon()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(there))
        found = b""

        async def run() -> None:
            assert not await connection.run(received, unsent)

        async with trio.open_nursery() as nursery, stream:
            nursery.start_soon(run)
            async for piece in stream:
                found += piece
        return found

    assert await finish(b"", LARGE) == LARGE
    for target in (b"slow", b"q1"):
        answer = await finish(GET % target, b"")
        assert b"Connection: close" in answer, "which no quick answer says"
        assert answer.endswith(b"slow/" + target)


@pytest.mark.parametrize("ticks", range(4))
async def test_a_request_that_is_here_when_the_server_stops_is_answered(ticks: int) -> None:
    """In whichever of its first steps the connection is told so."""
    here, there = socket.socketpair()
    here.setblocking(False)
    desk = Desk()
    connection = Connection(here, desk.handle, Limits(), lambda: b"today", desk.quick)
    async with trio.open_nursery() as nursery, trio.SocketStream(trio.socket.from_stdlib_socket(there)) as stream:
        nursery.start_soon(connection.run, GET % b"slow")
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        connection.finish_soon()
        answer = b"".join([piece async for piece in stream])
    assert answer.endswith(b"slow/slow")


async def get_later(desk: Desk, stream: trio.SocketStream, target: bytes) -> None:
    """Returns once the answer is waited for."""
    waited_for = len(desk.waited_for)
    await stream.send_all(GET % target)
    with trio.fail_after(60):
        while len(desk.waited_for) == waited_for:
            await trio.sleep(0)


async def test_an_answer_that_is_waited_for_keeps_its_connection_in_the_hall_and_nobody_else() -> None:
    desk = Desk()
    async with serving(desk) as (server, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        for turn in range(5):
            desk.ready = trio.Event()
            await get_later(desk, stream, b"l%d" % turn)
            async with await trio.open_tcp_stream("127.0.0.1", port) as other:
                assert await ask(other, b"q1") == b"quick/q1"
            await stream.send_all(GET % b"q2")
            desk.ready.set()
            data = b""
            while not data.endswith(b"q2"):
                data += await stream.receive_some()
            assert data.index(b"later/l%d" % turn) < data.index(b"quick/q2")
        assert server.connections == 1
    assert desk.finished == [len(b"later/l0")] * 5
    assert [desk.asked.count(b"/l%d" % turn) for turn in range(5)] == [1] * 5
    assert not desk.handled


async def test_a_connection_in_a_task_waits_for_its_answers_and_comes_back() -> None:
    desk = Desk()
    desk.ready.set()
    async with serving(desk) as (_, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"PUT /w HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbo")
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(b"dy")
        assert await read_answer(stream) == b"slow/wbody"
        for turn in range(3):
            assert await ask(stream, b"l%d" % turn) == b"later/l%d" % turn
        await trio.testing.wait_all_tasks_blocked()
        await put(desk, stream, b"w")
        desk.reply()
        assert await read_answer(stream) == b"begun/wbody"
    assert desk.handled == [b"/w"]


@pytest.mark.parametrize("in_hall", [True, False])
async def test_a_defect_of_an_answer_that_is_waited_for(caplog: pytest.LogCaptureFixture, in_hall: bool) -> None:
    desk = Desk()
    desk.ready.set()
    async with serving(desk) as (server, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        if not in_hall:
            assert await ask(stream, b"slow") == b"slow/slow"
        await stream.send_all(GET % b"lbroken")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 500 ")
        assert await ask(stream, b"q1") == b"quick/q1"
        assert server.connections == 1
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
    caplog.clear()


async def test_a_client_that_goes_while_its_answer_is_waited_for() -> None:
    desk = Desk()
    async with serving(desk) as (server, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        gone = await trio.open_tcp_stream("127.0.0.1", port)
        gone.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER of 0 s: a reset
        await get_later(desk, gone, b"l1")
        await gone.aclose()
        await trio.testing.wait_all_tasks_blocked()
        desk.ready.set()
        while server.connections > 1:
            await trio.sleep(0)
        assert len(desk.finished) == 1
        assert await ask(stream, b"q2") == b"quick/q2"


async def test_drain_waits_for_answers_that_are_waited_for_and_a_cancelled_server_does_not() -> None:
    for is_cancelled in (False, True):
        desk = Desk()
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with await trio.open_tcp_stream(*listeners[0].socket.getsockname()) as stream:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery, serve_http(listeners, desk.handle, quick=desk.quick):
                    await get_later(desk, stream, b"l1")
                    if is_cancelled:
                        scope.cancel()
                    else:
                        nursery.start_soon(release, desk)
            if is_cancelled:
                assert await stream.receive_some() == b""
            else:
                assert await read_answer(stream) == b"later/l1"
                assert await stream.receive_some() == b""


async def release(desk: Desk) -> None:
    await trio.testing.wait_all_tasks_blocked()
    desk.ready.set()
