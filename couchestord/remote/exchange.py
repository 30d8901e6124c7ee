"""One HTTP/1.1 connection to a server: requests out, replies in. Knows h11, no S3.

A request and its reply are under way at the same time: a server that refuses 64 MiB says so after the head, and what it
says must be read before the connection breaks under the rest. So a body is sent by a task beside the one that waits for
the reply, and a reply that comes first ends the sending. Such a connection is not used again.

Nothing waits for ever: each piece has `stall_s` to be taken by the server, and once all is sent, each piece of the
reply has as long to come.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final

import h11
import trio

from couchestord.remote.backend import Buffer
from couchestord.remote.messages import Ask, Reply

_SEND_BYTES: Final = 256 << 10
_RECEIVE_BYTES: Final = 256 << 10
_HEAD_BYTES_MAX: Final = 64 << 10
_EARLY_REPLIES_MAX: Final = 8
"""Such as 100 Continue."""


class BrokenExchange(Exception):
    """No whole reply came. The request may have taken effect."""


class Connection:
    """One connection. One exchange at a time; after an exception, or when `reusable` is False, only `aclose`."""

    def __init__(self, stream: trio.abc.Stream, stall_s: float) -> None:
        self._stream = stream
        self._stall_s = stall_s
        self._engine = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES_MAX)
        self._patience = trio.CancelScope()
        self.idle_since = 0.0

    @property
    def reusable(self) -> bool:
        """Whether another exchange may follow."""
        rests = self._engine.states == {h11.CLIENT: h11.IDLE, h11.SERVER: h11.IDLE}
        return rests and not self._engine.trailing_data[0]

    async def exchange(self, ask: Ask, body_bytes_max: int) -> Reply:
        """Raises BrokenExchange, also for a reply with a longer body than allowed."""
        request = h11.Request(method=ask.method, target=ask.target, headers=list(ask.headers))
        head = self._engine.send(request)  # before anything is received: a server that left makes it an error
        assert head is not None
        broken: BrokenExchange | None = None
        reply: Reply | None = None
        self._patience = trio.CancelScope(deadline=math.inf)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, head, ask.body)
            try:
                with self._patience:
                    reply = await self._receive(body_bytes_max)
            except BrokenExchange as error:
                broken = error
            except (h11.RemoteProtocolError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                broken = BrokenExchange(f"{type(error).__name__}: {error}")
            nursery.cancel_scope.cancel()
        if reply is None:
            raise broken or BrokenExchange(f"no reply for {self._stall_s:g} s")
        if self._engine.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
            self._engine.start_next_cycle()
        return reply

    async def aclose(self) -> None:
        """At once: what is under way is of no use to anybody."""
        await trio.aclose_forcefully(self._stream)

    # -- the two halves --------------------------------------------------------------------------------------------

    async def _send(self, head: bytes, body: Sequence[Buffer]) -> None:
        try:
            await self._send_piece(head)
            for piece in _pieces(body):
                await self._send_body(piece)
            self._engine.send(h11.EndOfMessage())
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass  # the server takes no more: its reply, if there is one, says why
        self._patience.deadline = trio.current_time() + self._stall_s

    async def _send_body(self, piece: Buffer) -> None:
        for data in self._engine.send_with_data_passthrough(h11.Data(data=piece)) or ():  # type: ignore[arg-type]
            await self._send_piece(data)

    async def _send_piece(self, data: bytes | memoryview) -> None:
        with trio.fail_after(self._stall_s):
            await self._stream.send_all(data)

    async def _receive(self, body_bytes_max: int) -> Reply:
        head: h11.Response | None = None
        pieces: list[bytes] = []
        left = body_bytes_max
        early = 0
        while True:
            event = self._engine.next_event()
            if event is h11.NEED_DATA:
                data = await self._stream.receive_some(_RECEIVE_BYTES)
                if self._patience.deadline < math.inf:
                    self._patience.deadline = trio.current_time() + self._stall_s
                self._engine.receive_data(bytes(data))
            elif isinstance(event, h11.InformationalResponse):
                early += 1
                if early > _EARLY_REPLIES_MAX:
                    raise BrokenExchange("nothing but interim replies")
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                left -= len(event.data)
                if left < 0:
                    raise BrokenExchange(f"the reply is longer than {body_bytes_max} bytes")
                pieces.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return Reply(head.status_code, dict(head.headers), b"".join(pieces))
            else:
                raise BrokenExchange("the server closed the connection")


def _pieces(body: Sequence[Buffer]) -> Iterator[Buffer]:
    """A body in pieces of `_SEND_BYTES` at most: parts may be short, and are joined; what is long enough is no copy."""
    joined = bytearray()
    for part in body:
        view = memoryview(part).cast("B")
        for start in range(0, len(view), _SEND_BYTES):
            piece = view[start : start + _SEND_BYTES]
            if len(joined) + len(piece) > _SEND_BYTES:
                yield joined
                joined = bytearray()
            if len(piece) == _SEND_BYTES:
                yield piece
            else:
                joined += piece
    if joined:
        yield joined
