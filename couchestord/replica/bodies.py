"""Long bodies on their way to the store's process: each over a socket pair of its own.

The reader's process makes the pair and sends one end, with the head of what is to be taken in. Then pieces follow, each
a length and so many bytes, and a length of 0; what was made of the body comes back, and the space that it takes is held
until the socket is closed: so who sent it commits first. An end before that is a body that broke off: nothing is
stored. The kernel's buffers hold the faster side back.
"""

import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import trio

from couchestord import logs
from couchestord.errors import IncompleteBody, Unavailable
from couchestord.model import Body, FillingBody
from couchestord.replica import messages as ms
from couchestord.store.intake import Intake, Taken

log = logs.get(__name__)
_LENGTH: Final = struct.Struct("<I")
_PIECE_BYTES: Final = 256 << 10
_BUFFER_BYTES: Final = 1 << 20
_HEAD_BYTES_MAX: Final = 1 << 10
_ANSWER_BYTES_MAX: Final = 16 << 20
_GONE: Final = "the store's process is gone; try again soon"


class BodySender:
    """The reader's end: of one socket, over which the ends of others go."""

    def __init__(self, sock: socket.socket) -> None:
        """`sock` is a SOCK_SEQPACKET socket."""
        sock.setblocking(False)
        self._socket = sock
        self._turn = trio.Lock()

    @asynccontextmanager
    async def take(
        self, body: Body, size: int | None, policy: int, *, hashed: bool, inlined: bool
    ) -> AsyncIterator[Taken]:
        """See `Intake.take`. Raises Unavailable, too."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise Unavailable(f"no more bodies can be taken in now: {error.strerror}") from error
        with ours:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            with theirs:
                await self._pass_on(theirs, ms.pack(ms.LongBody(size, policy, hashed, inlined)))
            ours.setblocking(False)
            try:
                await _send_body(ours, body)
                await _send(ours, _LENGTH.pack(0))
            except OSError:
                pass  # it was refused before it was read: the answer says why
            yield await _taken(ours)

    async def _pass_on(self, end: socket.socket, head: bytes) -> None:
        async with self._turn:
            while True:
                try:
                    socket.send_fds(self._socket, [head], [end.fileno()])
                    return
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._socket)
                except OSError as error:
                    raise Unavailable(_GONE) from error

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()


async def _send_body(sock: socket.socket, body: Body) -> None:
    if isinstance(body, FillingBody):
        buffer = memoryview(bytearray(_PIECE_BYTES))
        while count := await body.read_into(buffer):
            await _send_piece(sock, buffer[:count])
    elif isinstance(body, bytes):
        await _send_piece(sock, memoryview(body))
    else:
        async for piece in body:
            await _send_piece(sock, memoryview(piece).cast("B"))


async def _send_piece(sock: socket.socket, piece: memoryview) -> None:
    if piece:  # an empty one would be the end
        await _send(sock, _LENGTH.pack(len(piece)))
        await _send(sock, piece)


async def _send(sock: socket.socket, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[sock.send(left) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)


async def _receive(sock: socket.socket, buffer: memoryview) -> int:
    """How many bytes came; 0: the other side is gone."""
    while True:
        try:
            return sock.recv_into(buffer)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
        except OSError:
            return 0


async def _exactly(sock: socket.socket, length: int) -> bytearray | None:
    """So many bytes; None when the other side is gone before."""
    found = bytearray(length)
    at = 0
    while at < length:
        count = await _receive(sock, memoryview(found)[at:])
        if not count:
            return None
        at += count
    return found


async def _taken(sock: socket.socket) -> Taken:
    head = await _exactly(sock, _LENGTH.size)
    length = _LENGTH.unpack(head)[0] if head else 0
    data = await _exactly(sock, length) if 0 < length <= _ANSWER_BYTES_MAX else None
    if data is None:
        raise Unavailable(_GONE)
    found = ms.unpack_from_store(memoryview(data))
    if isinstance(found, ms.Refusal):
        raise ms.error_of(found)
    assert isinstance(found, ms.Answer)
    taken: Taken = ms.unpack_value(found.value, Taken)
    return taken


# -- the store's end --------------------------------------------------------------------------------------------------


class ComingBody:
    """A body that comes over a socket: a `FillingBody`."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._left = 0
        self._ended = False

    async def read_into(self, buffer: memoryview) -> int:
        """See `FillingBody`. Raises IncompleteBody when the other side broke off."""
        if not self._left and not self._ended:
            head = await _exactly(self._socket, _LENGTH.size)
            if head is None:
                raise IncompleteBody("the body broke off")
            (self._left,) = _LENGTH.unpack(head)
            self._ended = not self._left
        if self._ended:
            return 0
        count = await _receive(self._socket, buffer[: self._left])
        if not count:
            raise IncompleteBody("the body broke off")
        self._left -= count
        return count


async def coming_bodies(sock: socket.socket) -> AsyncGenerator[tuple[ms.LongBody, socket.socket], None]:
    """Heads, and the sockets that their bodies come over, until the other side is gone. The sockets are the caller's to
    close.
    """
    sock.setblocking(False)
    while True:
        try:
            head, numbers, _, _ = socket.recv_fds(sock, _HEAD_BYTES_MAX, 1)
        except BlockingIOError:
            try:
                await trio.lowlevel.wait_readable(sock)
            except trio.ClosedResourceError:
                return
            continue
        except OSError:
            return
        if not head:
            return
        if not numbers:
            # who sent it finds its end closed
            log.error("a body could not be taken: no more files may be open")
            continue
        coming = socket.socket(fileno=numbers[0])
        coming.setblocking(False)
        yield msgspec.msgpack.decode(head, type=ms.LongBody), coming


async def take_coming(intake: Intake, head: ms.LongBody, sock: socket.socket) -> None:
    """Takes a body in, says what was made of it, and holds its space until the other side has closed the socket. Raises
    as `Intake.take`.
    """
    body = ComingBody(sock)
    async with intake.take(body, head.size, head.policy, hashed=head.hashed, inlined=head.inlined) as taken:
        await answer(sock, ms.Answer(0, ms.raw(taken)))
        await _exactly(sock, 1)


async def answer(sock: socket.socket, message: ms.Answer | ms.Refusal) -> None:
    """What is said over a body's socket. Who is gone needs no answer."""
    data = ms.pack(message)
    try:
        await _send(sock, _LENGTH.pack(len(data)) + data)
    except OSError:
        return
