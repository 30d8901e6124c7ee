"""What the supervisor and a process that it started tell each other: a word a packet, some with descriptors."""

import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import trio

STOP: Final = b"stop"
"""To any: finish what is under way and end. The store's process cuts when it is told twice."""
LEAVE: Final = b"leave"
"""To a worker: another one has its place. As `STOP`, and clients are told with the answer to their next request."""
LINK: Final = b"link"
"""To any: the ends of two sockets, for requests and for bodies. A worker uses the newest pair; the store's process
serves each. From a worker: those that it had are closed, though nobody has ended, as far as it knows.
"""
LEAVE_S: Final = 600.0
"""What a worker that leaves has begun may take so long."""
READY: Final = b"ready"
"""From any: it serves."""
_WORD_BYTES_MAX: Final = 64
_DESCRIPTORS_MAX: Final = 2


@dataclass(frozen=True, slots=True)
class Order:
    word: bytes
    sockets: tuple[socket.socket, ...] = ()


def send(sock: socket.socket, word: bytes, sockets: tuple[socket.socket, ...] = ()) -> None:
    """Raises OSError when the other process is gone. The sockets stay the caller's, too."""
    socket.send_fds(sock, [word], [each.fileno() for each in sockets])


def receive(sock: socket.socket) -> Order | None:
    """The next word; None when the other process is gone. Raises BlockingIOError."""
    try:
        word, numbers, _, _ = socket.recv_fds(sock, _WORD_BYTES_MAX, _DESCRIPTORS_MAX)
    except BlockingIOError:
        raise
    except OSError:
        return None
    return Order(word, tuple(socket.socket(fileno=number) for number in numbers)) if word else None


async def orders(sock: socket.socket) -> AsyncIterator[Order]:
    """Words as they come, until the supervisor is gone: then a last one to stop."""
    sock.setblocking(False)
    while True:
        try:
            order = receive(sock)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
            continue
        if order is None:
            yield Order(STOP)
            return
        yield order
