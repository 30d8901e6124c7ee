"""TLS itself: records and reads that do not fit each other, hands that are not shaken, certificates that change."""

import os
import shutil
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from certificates import Authority, make_certificate

from couchestord.frontends.http import Certificate, HttpServer, Limits, Request, Response, serve_http
from couchestord.frontends.http.connection import HEAD_RECEIVE_BYTES
from couchestord.frontends.http.tls import RECORD_BYTES, TlsSocket

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
Stream = trio.SSLStream[trio.SocketStream]


async def echo(request: Request) -> Response:
    """The body, read into memory as far as it can be."""
    body, buffer = b"", bytearray(300_000)
    while True:
        count = await request.body.read_into(memoryview(buffer))
        piece = bytes(buffer[:count]) if count is not None else await anext(request.body, b"")
        if not piece:
            return Response(200, (), body or b"none")
        body += piece


@asynccontextmanager
async def serve(authority: Authority, limits: Limits = Limits()) -> AsyncIterator[tuple[HttpServer, int]]:  # noqa: B008
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    certificate = Certificate(authority.certificate, authority.key)
    async with serve_http(listeners, echo, limits, certificate=certificate) as server:
        yield server, port


async def connect(port: int, authority: Authority) -> Stream:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    return trio.SSLStream(stream, authority.client(), server_hostname="127.0.0.1", https_compatible=True)


async def read_until(stream: Stream, count: int, text: bytes) -> bytes:
    """Until `text` has come so often."""
    data = b""
    while data.count(text) < count:
        piece = await stream.receive_some()
        assert piece, data
        data += piece
    return data


@pytest.mark.parametrize("size", [1, RECORD_BYTES - len(GET), RECORD_BYTES, 300_001])
async def test_a_request_in_one_record_with_the_end_of_a_body_is_served_at_once(
    authority: Authority, size: int
) -> None:
    """It lies in the socket, where epoll does not see it; the client sends nothing more, and waits."""
    announced = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n" % size
    with trio.fail_after(20):
        async with serve(authority) as (_, port), await connect(port, authority) as stream:
            for _ in range(8):  # it is not always that the server waits before it looks
                await stream.send_all(announced)
                await read_until(stream, 1, b"100 Continue\r\n\r\n")
                await stream.send_all(bytes(size) + 5 * GET)
                answers = await read_until(stream, 5, b"\r\n\r\nnone")
                assert answers.count(b"HTTP/1.1 200 OK") == 6


async def test_many_requests_at_once_are_all_served(authority: Authority) -> None:
    count = 3 * HEAD_RECEIVE_BYTES // len(GET)
    with trio.fail_after(20):
        async with (
            serve(authority) as (_, port),
            await connect(port, authority) as stream,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(stream.send_all, count * GET)
            await read_until(stream, count, b"\r\n\r\nnone")


async def test_what_does_not_fit_into_the_socket_is_told_record_by_record(authority: Authority) -> None:
    """So that a slow client is seen to move."""
    here, there = socket.socketpair()
    here.setblocking(False)
    with Certificate(authority.certificate, authority.key).wrap(here) as sock, there:
        client = authority.client().wrap_bio(
            incoming := ssl.MemoryBIO(), outgoing := ssl.MemoryBIO(), False, "127.0.0.1"
        )

        def pump() -> None:
            if outgoing.pending:
                there.sendall(outgoing.read())
            with suppress(BlockingIOError):
                while data := there.recv(1 << 20, socket.MSG_DONTWAIT):
                    incoming.write(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sock.shake_hands)
            for _ in range(3):
                with suppress(ssl.SSLWantReadError):
                    client.do_handshake()
                await trio.sleep(0)
                pump()
                await trio.testing.wait_all_tasks_blocked()
        body = os.urandom(4 << 20)
        sent, got = sock.send(body), b""
        assert 0 < sent < len(body)
        assert sent % RECORD_BYTES == 0
        with pytest.raises(BlockingIOError):
            sock.send(body[sent:])
        while len(got) < len(body):
            pump()
            with suppress(ssl.SSLWantReadError):
                while piece := client.read(1 << 20):
                    got += piece
            if sent < len(body):
                sent += sock.send(memoryview(body)[sent:])
        assert got == body


async def test_who_speaks_plainly_is_told_so(authority: Authority) -> None:
    async with serve(authority) as (_, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(GET + bytes(8 << 20))  # more than is read before the answer
        answer = b"".join([piece async for piece in stream])
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"https://" in answer


async def test_who_shakes_no_hands_is_cut(authority: Authority) -> None:
    limits = Limits(head_timeout_s=0.1)
    async with serve(authority, limits) as (server, port), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        assert await stream.receive_some() == b""
        assert server.connections == 0


async def test_who_does_not_trust_the_certificate_harms_nobody_else(authority: Authority) -> None:
    async with serve(authority) as (_, port):
        raw = await trio.open_tcp_stream("127.0.0.1", port)
        stranger = trio.SSLStream(raw, ssl.create_default_context(), server_hostname="127.0.0.1")
        with pytest.raises(trio.BrokenResourceError):
            await stranger.do_handshake()
        await trio.aclose_forcefully(stranger)
        async with await connect(port, authority) as stream:
            await stream.send_all(GET)
            await read_until(stream, 1, b"none")


async def test_the_end_is_said_to_clients_that_wait(authority: Authority) -> None:
    """Without it a client cannot tell an end from a cut."""
    async with serve(authority, Limits(drain_timeout_s=1)) as (server, port):
        context = authority.client()
        raw = await trio.open_tcp_stream("127.0.0.1", port)
        async with trio.SSLStream(raw, context, server_hostname="127.0.0.1") as stream:
            for _ in range(5):
                await stream.send_all(GET)
                await read_until(stream, 1, b"none")
            await server.drain(1)
            assert await stream.receive_some() == b""


async def test_a_certificate_that_changed_is_shown_and_one_that_is_broken_is_not(tmp_path: Path) -> None:
    folders = [tmp_path / "used", tmp_path / "next"]
    for folder in folders:
        folder.mkdir()
    used, following = (make_certificate(folder, "IP:127.0.0.1") for folder in folders)
    first = Authority(Path(shutil.copy(used.certificate, tmp_path / "first.pem")), used.key)
    async with serve(used) as (server, port):
        certificate = server._certificate
        assert certificate is not None

        async def is_shown(authority: Authority) -> bool:
            stream = await connect(port, authority)
            try:
                await stream.do_handshake()
            except trio.BrokenResourceError:
                return False
            else:
                return True
            finally:
                await trio.aclose_forcefully(stream)

        assert await is_shown(first)
        shutil.copy(following.certificate, used.certificate)
        certificate.look()  # its key has not come yet
        assert await is_shown(first)
        shutil.copy(following.key, used.key)
        certificate.look()
        assert await is_shown(following)
        assert not await is_shown(first)
        used.key.unlink()
        certificate.look()
        assert await is_shown(following)


def test_what_is_wrong_with_the_files_is_said(authority: Authority, tmp_path: Path) -> None:
    other = make_certificate(tmp_path, "IP:127.0.0.1")
    locked = tmp_path / "locked.pem"
    os.system(f"openssl rsa -aes128 -passout pass:secret -in {other.key} -out {locked} 2>/dev/null")
    (tmp_path / "text").write_text("nothing")
    for certificate, key, why in (
        (authority.certificate, other.key, "are no pair"),
        (authority.certificate, tmp_path / "none", "none: No such file"),
        (authority.certificate, tmp_path / "text", "are not both PEM files"),
        (tmp_path / "text", authority.key, "are not both PEM files"),
        (other.certificate, locked, "encrypted"),
    ):
        with pytest.raises(ValueError, match=why):
            Certificate(certificate, key)


def test_reads_of_a_socket_that_is_closed_raise_as_plain_ones_do(authority: Authority) -> None:
    here, there = socket.socketpair()
    sock = Certificate(authority.certificate, authority.key).wrap(here)
    assert isinstance(sock, TlsSocket)
    there.close()
    sock.close()
    sock.close()
    assert here.fileno() == sock.fileno() == -1


async def test_who_is_gone_before_it_is_accepted_harms_nobody_else(authority: Authority) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as gone:
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a close is a reset
    certificate = Certificate(authority.certificate, authority.key)
    async with serve_http(listeners, echo, certificate=certificate), await connect(port, authority) as stream:
        await stream.send_all(GET)
        await read_until(stream, 1, b"none")
