"""The admin socket: commands from the same machine, from root or from the user the daemon runs as, nobody else."""

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from couchestord import logs
from couchestord.errors import AccessDenied, Error, InternalError, InvalidArgument
from couchestord.frontends.admin import protocol
from couchestord.listening import close_in_folder, listen_in_folder, may_connect, peer_uid

Execute = Callable[[object, object], Awaitable[Any]]
"""A command's name and arguments to its result."""

_CLIENTS_MAX: Final = 16
_IDLE_TIMEOUT_S: Final = 60.0

_log = logs.get(__name__)


@asynccontextmanager
async def serve_admin(folder: Path, execute: Execute) -> AsyncIterator[Path]:
    """Listens on couchestord.sock in `folder` while the body runs, and yields its path.

    The caller holds the store's lock, so a socket file that is already there is left over and removed. Raises
    ConfigError when the socket cannot be made.
    """
    path = folder / protocol.SOCKET_NAME
    listener = trio.socket.from_stdlib_socket(listen_in_folder(path, socket.SOCK_STREAM, _CLIENTS_MAX))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_accept, listener, execute, nursery)
            yield path
            nursery.cancel_scope.cancel()
    finally:
        close_in_folder(listener, path)


async def _accept(listener: trio.socket.SocketType, execute: Execute, nursery: trio.Nursery) -> None:
    slots = trio.Semaphore(_CLIENTS_MAX)
    while True:
        await slots.acquire()
        try:
            client, _ = await listener.accept()
        except OSError as error:
            slots.release()
            _log.warning("admin socket could not accept", reason=str(error))
            await trio.sleep(0.1)
            continue
        nursery.start_soon(_serve, trio.SocketStream(client), execute, slots)


async def _serve(stream: trio.SocketStream, execute: Execute, slots: trio.Semaphore) -> None:
    try:
        async with stream:
            lines = _Lines(stream)
            if not may_connect(peer_uid(stream.socket), os.geteuid()):
                # read first: closing a socket with bytes unread would reset it before the refusal is seen
                await lines.next()
                await _answer(stream, protocol.error_answer(AccessDenied("only root and the daemon's own user may")))
                return
            while (line := await lines.next()) is not None:
                await _answer(stream, await _run(line, execute))
    except (trio.BrokenResourceError, trio.TooSlowError):
        return
    except InvalidArgument as error:
        _log.info("admin client was refused", reason=str(error))
    finally:
        slots.release()


async def _run(line: bytes, execute: Execute) -> dict[str, Any]:
    try:
        request = protocol.decode(line)
        return {"result": await execute(request.get("command"), request.get("arguments", {}))}
    except Error as error:
        return protocol.error_answer(error)
    except Exception:
        _log.exception("admin command failed")
        return protocol.error_answer(InternalError("the command failed; the daemon's log has the details"))


async def _answer(stream: trio.SocketStream, answer: dict[str, Any]) -> None:
    with trio.fail_after(_IDLE_TIMEOUT_S):
        await stream.send_all(protocol.encode(answer))


class _Lines:
    """Lines of a stream, each at most protocol.LINE_BYTES_MAX."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def next(self) -> bytes | None:
        """The next line, None at the end. Raises InvalidArgument over the limit, TooSlowError after a minute."""
        with trio.fail_after(_IDLE_TIMEOUT_S):
            while (end := self._buffer.find(b"\n")) < 0:
                if len(self._buffer) > protocol.LINE_BYTES_MAX:
                    raise InvalidArgument("a request line is too long")
                received = await self._stream.receive_some(1 << 16)
                if not received:
                    return None
                self._buffer += received
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line
