"""How long a slow client is waited for: a deadline for silence, and a least rate for what moves too slowly.

Only waiting is counted, so a client that is always ahead of us costs nothing here, and a slow handler is not taken for
a slow client.
"""

import fcntl
import math
import socket
import sys
import termios
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from couchestord.frontends.http.messages import Limits

_LOOK_S_MIN: Final = 1.0
"""No more often is it looked how far a client has come."""


class Patience:
    """How long the client is still waited for while one body moves.

    It begins with the grace of the limits. Waiting spends it, each byte that moves gives back the time that this byte
    may take at the least rate, and it never grows beyond the grace: a client that was quick and now drips is cut as
    soon as one that has always dripped.
    """

    __slots__ = ("_bytes_per_s_min", "_left_s", "_left_s_max", "_moved", "_moved_bytes", "_timeout_s")

    def __init__(self, limits: Limits, timeout_s: float, moved: Callable[[], int]) -> None:
        """`timeout_s` is for a client that does nothing at all. `moved` counts the bytes that have moved so far."""
        self._bytes_per_s_min = limits.bytes_per_s_min
        self._left_s = self._left_s_max = limits.slow_grace_s if limits.bytes_per_s_min else math.inf
        self._timeout_s = timeout_s
        self._moved = moved
        self._moved_bytes = moved()

    async def wait(self, ready: Callable[[socket.socket], Awaitable[None]], sock: socket.socket) -> bool:
        """Waits until `ready` for `sock` returns. False: the client did nothing for too long, or too little."""
        while True:
            self._credit()
            if self._left_s <= 0:
                return False
            begun_s, before_bytes = trio.current_time(), self._moved_bytes
            deadline_s = begun_s + min(self._timeout_s, max(self._left_s, _LOOK_S_MIN))
            with trio.CancelScope(deadline=deadline_s) as scope:
                await ready(sock)
            self._left_s -= trio.current_time() - begun_s
            if not scope.cancelled_caught:
                return True
            if self._moved() <= before_bytes:
                return False

    def _credit(self) -> None:
        moved_bytes = self._moved()
        if self._bytes_per_s_min and moved_bytes > self._moved_bytes:
            gained_s = (moved_bytes - self._moved_bytes) / self._bytes_per_s_min
            self._left_s = min(self._left_s_max, self._left_s + gained_s)
        self._moved_bytes = moved_bytes


def ignore_late(_awaited: str) -> None:
    """For who does not want to know which clients were late."""


def untaken_bytes(sock: socket.socket) -> int:
    """So much of what was sent the other side has not taken yet. A socket may become writable long after it did."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
