"""Messages over a stream socket between two processes, in order, each a length and so many bytes."""

import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from couchestord.errors import InternalError

_LENGTH: Final = struct.Struct("<I")
_RECEIVE_BYTES: Final = 256 << 10
MESSAGE_BYTES_MAX: Final = 16 << 20
"""A message is mostly a short body and what it is of; the longest names ten thousand parts."""
_JOINED_MAX: Final = 64
_JOINED_BYTES_MAX: Final = 64 << 10
"""So many messages are sent in one call, unless the first is longer."""
_UNSENT_BYTES_MAX: Final = 8 << 20
"""With more than that unsent, whoever sends waits."""


class Channel:
    """One end. `run` reads and writes until the other end is gone; messages may be sent from when it was made."""

    def __init__(self, sock: socket.socket, receive: Callable[[memoryview], None]) -> None:
        """`receive` is called in the task of `run` with each message; what it raises ends `run`."""
        sock.setblocking(False)
        self._socket = sock
        self._receive = receive
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._wake = trio.Event()
        self._room = trio.Event()
        self._closed = False
        self._may_have_come = True
        """Something that was not read yet."""

    def send(self, message: bytes, *, is_last: bool = False) -> None:
        """Now, or as soon as the other side takes it. Nothing is sent when that is gone. `is_last`: no other message is
        to be expected in this turn of the loop.
        """
        if self._closed:
            return
        # what is sent in one turn of the loop goes in one call
        frame = _LENGTH.pack(len(message)) + message
        self._unsent.append(memoryview(frame))
        self._unsent_bytes += len(frame)
        if is_last:
            with suppress(OSError):  # the task finds out
                self._send_some()
        if self._unsent:
            self._wake.set()

    @property
    def unsent_bytes(self) -> int:
        """What the other side has not taken yet."""
        return self._unsent_bytes

    async def wait_for_room(self) -> None:
        """While the other side is far behind."""
        while self._unsent_bytes > _UNSENT_BYTES_MAX and not self._closed:
            if self._room.is_set():  # else others wait for it already
                self._room = trio.Event()
            await self._room.wait()

    async def run(self) -> None:
        """Until the other side is gone. Closes the socket in any case. Raises what `receive` raised, InternalError."""
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                rest = b""
                try:
                    while data := await self._read():
                        rest = self._take(rest + data if rest else data)
                except Exception as error:
                    # raised outside of the nursery, which would wrap it
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            self.close()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # it and this frame would hold each other, and all that was read

    def close(self) -> None:
        """Gives the socket back; `run`, if it goes on, ends."""
        if not self._closed:
            with suppress(OSError):
                while self._unsent:
                    self._send_some()
            self._closed = True
            self._room.set()
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def _take(self, data: bytes) -> bytes:
        """Hands out whole messages; returns the rest."""
        view, at = memoryview(data), 0
        while len(data) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, at)
            if length > MESSAGE_BYTES_MAX:
                raise InternalError(f"a message of {length} bytes came from another process")
            end = at + _LENGTH.size + length
            if end > len(data):
                break
            self._receive(view[at + _LENGTH.size : end])
            at = end
        return data[at:]

    async def _read(self) -> bytes:
        while True:
            if not self._may_have_come:
                try:
                    await trio.lowlevel.wait_readable(self._socket)
                except trio.ClosedResourceError:
                    return b""
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                self._may_have_come = False
            except OSError:
                return b""
            else:
                # less than there is room for is all that there was
                self._may_have_come = len(data) == _RECEIVE_BYTES
                return data

    async def _write(self) -> None:
        while True:
            if not self._unsent:
                self._wake = trio.Event()
                await self._wake.wait()
            try:
                while self._unsent:
                    self._send_some()
            except BlockingIOError:
                with suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(self._socket)
            except (OSError, trio.ClosedResourceError):
                return
            self._room.set()

    def _send_some(self) -> None:
        """What is to be sent, as far as the other side takes it now. Raises BlockingIOError, OSError."""
        whole = self._unsent.popleft()
        if self._unsent and len(whole) < _JOINED_BYTES_MAX:
            parts = [whole]
            while self._unsent and len(parts) < _JOINED_MAX:
                parts.append(self._unsent.popleft())
            whole = memoryview(b"".join(parts))
        try:
            sent = self._socket.send(whole)
        except OSError:
            self._unsent.appendleft(whole)
            raise
        self._unsent_bytes -= sent
        if sent < len(whole):
            self._unsent.appendleft(whole[sent:])
