"""Long bodies on their way to the store's process: each over a socket pair of its own.

The reader's process makes the pair and sends one end, with the head of what is to be stored. Then pieces follow, each a
length and so many bytes, a length of 0, and what is to be said of the body once it was read; the answer comes back. An
end without that is a body that broke off: nothing is stored. The kernel's buffers hold the faster side back.
"""

import socket
import struct
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

import msgspec
import trio

from couchestord.errors import IncompleteBody, Unavailable
from couchestord.model import Body, FillingBody
from couchestord.replica import messages as ms

_LENGTH: Final = struct.Struct("<I")
_PIECE_BYTES: Final = 256 << 10
_BUFFER_BYTES: Final = 1 << 20
_HEAD_BYTES_MAX: Final = 64 << 10
_END_BYTES_MAX: Final = 1 << 20
_ANSWER_BYTES_MAX: Final = 1 << 20
_GONE: Final = "the store's process is gone; the write may have happened: look before you try again"


class BodySender:
    """The reader's end: of one socket, over which the ends of others go."""

    def __init__(self, sock: socket.socket) -> None:
        """`sock` is a SOCK_SEQPACKET socket."""
        sock.setblocking(False)
        self._socket = sock
        self._turn = trio.Lock()

    async def send(self, head: ms.LongBody, body: Body, finish: Callable[[], Any], kind: Any) -> Any:
        """Hands a body over; returns the answer, of type `kind`, once it is durable. `finish` is called behind its end,
        and what it answers goes with it.

        Raises what the body raises, and what the store refuses it with.
        """
        ours, theirs = socket.socketpair()
        with ours:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            with theirs:
                await self._pass_on(theirs, ms.pack(head))
            ours.setblocking(False)
            try:
                await _send_body(ours, body)
                await _send_piece(ours, b"", ms.pack(finish()))
            except OSError:
                pass  # it was refused before it was read: the answer says why
            # as a commit: it cannot be taken back any more
            with trio.CancelScope(shield=True):
                answer = await _receive_all(ours)
        return _value(answer, kind)

    async def _pass_on(self, end: socket.socket, head: bytes) -> None:
        async with self._turn:
            while True:
                try:
                    socket.send_fds(self._socket, [head], [end.fileno()])
                    return
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._socket)
                except OSError as error:
                    raise Unavailable("the store's process is gone; try again soon") from error

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()


async def _send_body(sock: socket.socket, body: Body) -> None:
    if isinstance(body, FillingBody):
        buffer = memoryview(bytearray(_PIECE_BYTES))
        while count := await body.read_into(buffer):
            await _send_piece(sock, buffer[:count])
    elif isinstance(body, bytes):
        for at in range(0, len(body), _PIECE_BYTES):
            await _send_piece(sock, memoryview(body)[at : at + _PIECE_BYTES])
    else:
        async for piece in body:
            view = memoryview(piece).cast("B")
            for at in range(0, len(view), _PIECE_BYTES):
                await _send_piece(sock, view[at : at + _PIECE_BYTES])


async def _send_piece(sock: socket.socket, piece: bytes | memoryview, behind: bytes = b"") -> None:
    buffers = [memoryview(_LENGTH.pack(len(piece))), memoryview(piece)]
    if behind:
        buffers += [memoryview(_LENGTH.pack(len(behind))), memoryview(behind)]
    for buffer in buffers:
        while buffer:
            try:
                buffer = buffer[sock.send(buffer) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock)


async def _receive_all(sock: socket.socket) -> bytes:
    parts: list[bytes] = []
    while sum(map(len, parts)) <= _ANSWER_BYTES_MAX:
        try:
            part = sock.recv(_PIECE_BYTES)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
            continue
        except OSError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def _value(answer: bytes, kind: Any) -> Any:
    if not answer:
        raise Unavailable(_GONE)
    try:
        found = ms.unpack_from_store(answer)
    except msgspec.DecodeError:
        raise Unavailable(_GONE) from None
    if isinstance(found, ms.Refusal):
        raise ms.error_of(found)
    assert isinstance(found, ms.Answer)
    return ms.unpack_value(found.value, kind)


# -- the store's end --------------------------------------------------------------------------------------------------


class ComingBody:
    """A body that comes over a socket: a `FillingBody`. `end` is what was said behind it, once it was read."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._left = 0
        self.end = b""
        self._ended = False

    async def read_into(self, buffer: memoryview) -> int:
        """See `FillingBody`. Raises IncompleteBody when the other side broke off."""
        if self._ended:
            return 0
        if not self._left:
            self._left = await self._length()
        if not self._left:
            length = await self._length()
            if length > _END_BYTES_MAX:
                raise IncompleteBody("what was said behind a body is too long")
            self.end = bytes(await self._exactly(length))
            self._ended = True
            return 0
        count = await self._receive(buffer[: self._left])
        self._left -= count
        return count

    async def _length(self) -> int:
        (length,) = _LENGTH.unpack(await self._exactly(_LENGTH.size))
        return int(length)

    async def _exactly(self, length: int) -> bytearray:
        found = bytearray(length)
        at = 0
        while at < length:
            at += await self._receive(memoryview(found)[at:])
        return found

    async def _receive(self, buffer: memoryview) -> int:
        while True:
            try:
                count = self._socket.recv_into(buffer)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
                continue
            except OSError as error:
                raise IncompleteBody("the process that read the body is gone") from error
            if not count:
                raise IncompleteBody("the body broke off")
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
        if not numbers:
            return
        coming = socket.socket(fileno=numbers[0])
        coming.setblocking(False)
        yield msgspec.msgpack.decode(head, type=ms.LongBody), coming


async def answer(sock: socket.socket, message: ms.Answer | ms.Refusal) -> None:
    """The last that is said over a body's socket."""
    data = memoryview(ms.pack(message))
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
        except OSError:
            return
