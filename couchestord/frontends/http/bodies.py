"""The body of a request as a handler reads it, over whatever receives it."""

from typing import Final, Protocol

import trio

from couchestord.errors import IncompleteBody, RequestTimeout
from couchestord.frontends.http.protocol import HttpProtocol

_TURN_BYTES: Final = 1 << 20
"""So much of a body is read or sent before other tasks have a turn, when the client is always ahead."""
_PIECE_BYTES_MIN: Final = 64 << 10
"""What a piece counts for at least in that: a small one costs time too."""


class Turns:
    """Leaves others a turn now and then while one body moves."""

    __slots__ = ("_moved_bytes",)

    def __init__(self) -> None:
        self._moved_bytes = 0

    async def after(self, piece_bytes: int) -> None:
        """A piece of that length has moved."""
        self._moved_bytes += max(piece_bytes, _PIECE_BYTES_MIN)
        if self._moved_bytes >= _TURN_BYTES:
            self._moved_bytes = 0
            await trio.lowlevel.checkpoint()


class BodySource(Protocol):
    """What receives a body: a connection. Both reads raise IncompleteBody and RequestTimeout."""

    protocol: HttpProtocol

    async def read_body(self, left: int | None) -> bytes | None:
        """The next piece of a body that lacks `left` bytes, None at its end."""
        ...

    async def read_body_into(self, buffer: memoryview) -> int:
        """Reads from the socket into `buffer`; only while the protocol has `direct_bytes`."""
        ...


class ConnectionBody:
    """`RequestBody` over a connection."""

    __slots__ = ("_begun", "_connection", "_left", "_turns", "broken", "ended")

    def __init__(self, connection: BodySource, length: int | None) -> None:
        self._connection = connection
        self._left = length
        self.ended = length == 0
        self._begun = False
        self._turns = Turns()
        self.broken = False

    def __aiter__(self) -> "ConnectionBody":
        return self

    async def __anext__(self) -> bytes:
        if self.ended:
            raise StopAsyncIteration
        if self.broken:
            raise IncompleteBody("the body broke off before")
        self._begun = True
        try:
            piece = await self._connection.read_body(self._left)
            if piece is not None:
                await self._turns.after(len(piece))
        except BaseException:
            self.broken = True
            raise
        if piece is None:
            self.ended = True
            raise StopAsyncIteration
        if self._left is not None:
            self._left -= len(piece)
        return piece

    async def read_into(self, buffer: memoryview) -> int | None:
        if self.broken or not self._connection.protocol.direct_bytes:
            return None
        self._begun = True
        try:
            count = await self._connection.read_body_into(buffer)
            await self._turns.after(count)
        except BaseException:
            self.broken = True
            raise
        if self._left is not None:
            self._left -= count
        return count

    def can_be_skipped(self, bytes_max: int) -> bool:
        """What is unread may be thrown away to keep the connection."""
        if self.ended:
            return True
        if self.broken or (self._connection.protocol.wants_continue and not self._begun):
            return False
        return self._left is None or self._left <= bytes_max

    async def skip(self, bytes_max: int) -> bool:
        """Reads the rest and throws it away. False: more than `bytes_max` came, or the client broke off."""
        skipped = 0
        try:
            async for piece in self:
                skipped += len(piece)
                if skipped > bytes_max:
                    return False
        except (IncompleteBody, RequestTimeout):
            return False
        return True
