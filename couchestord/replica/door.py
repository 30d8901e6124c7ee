"""How a process that the daemon has not forked comes to read its store: a socket in the data folder.

Who connects says what it is, and gets what a process that was forked has: a socket for requests, one for bodies, the
shared page, and memory for its words there. Both must be of one version, since nothing they tell each other has any.
"""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Final

import msgspec
import trio

from couchestord import logs
from couchestord.errors import AccessDenied, ConfigError, Unavailable
from couchestord.io.sharedpage import ALONE, SharedPage
from couchestord.listening import close_in_folder, connect_in_folder, listen_in_folder, may_connect, peer_uid
from couchestord.replica.host import Host
from couchestord.replica.link import Link
from couchestord.versions import program_version

log = logs.get(__name__)
SOCKET_NAME: Final = "store.sock"
_CLIENTS_MAX: Final = 16
_WORDS_BYTES_MAX: Final = 1 << 10
_GRANTED: Final = 4
"""Descriptors: two sockets, the page, and words."""
_SAY_S: Final = 10.0
"""Who has connected says what it wants within so long."""


class _Wish(msgspec.Struct, frozen=True, array_like=True):
    version: str


class _Grant(msgspec.Struct, frozen=True, array_like=True):
    """Why not; empty: the descriptors come along."""

    refusal: str = ""


@asynccontextmanager
async def serve_door(folder: Path, host: Host) -> AsyncIterator[None]:
    """Lets processes in while the body runs. The caller holds the store's lock. Raises ConfigError."""
    path = folder / SOCKET_NAME
    listener = listen_in_folder(path, socket.SOCK_SEQPACKET, _CLIENTS_MAX)
    listener.setblocking(False)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_accept, listener, host, nursery)
            yield
            nursery.cancel_scope.cancel()
    finally:
        close_in_folder(listener, path)


async def _accept(listener: socket.socket, host: Host, nursery: trio.Nursery) -> None:
    slots = trio.Semaphore(_CLIENTS_MAX)
    while True:
        await trio.lowlevel.wait_readable(listener)
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            continue
        except OSError as error:
            log.warning("nobody can be let in", reason=str(error))
            await trio.sleep(0.1)
            continue
        await slots.acquire()
        nursery.start_soon(_let_in, client, host, slots)


async def _let_in(client: socket.socket, host: Host, slots: trio.Semaphore) -> None:
    with client:
        client.setblocking(False)
        try:
            refusal = await _refusal(client)
        finally:
            slots.release()
        if refusal or not host.has_room:
            _say(client, _Grant(refusal or "too many processes read this store already"))
            return
        try:
            with ExitStack() as opened:
                requests = _pair(opened, socket.SOCK_STREAM)
                bodies = _pair(opened, socket.SOCK_SEQPACKET)
                page = host.page.apart()
                with closing(page):
                    _say(client, _Grant(), [requests[1].fileno(), bodies[1].fileno(), *page.descriptors])
                requests[1].close()
                bodies[1].close()
                opened.pop_all()
        except OSError as error:
            _say(client, _Grant(f"no more files may be open: {error.strerror}"))
            return
    await host.serve_reader(requests[0], bodies[0], page)


def _pair(opened: ExitStack, kind: int) -> tuple[socket.socket, socket.socket]:
    ends = socket.socketpair(socket.AF_UNIX, kind)
    for end in ends:
        opened.enter_context(end)
    return ends


async def _refusal(client: socket.socket) -> str:
    """Why a process is not let in; empty: it is."""
    with trio.move_on_after(_SAY_S):
        await trio.lowlevel.wait_readable(client)
    try:
        wish = msgspec.msgpack.decode(client.recv(_WORDS_BYTES_MAX), type=_Wish)
    except (OSError, msgspec.DecodeError):
        return "nothing that could be understood was said"
    # not before all was read: what is left unread would take the place of the answer
    if not may_connect(peer_uid(client), os.geteuid()):
        return "only root and the daemon's own user may"
    if wish.version != program_version():
        return f"the daemon is version {program_version()}, this is {wish.version}: start the older of them again"
    return ""


def _say(client: socket.socket, grant: _Grant, descriptors: list[int] | None = None) -> None:
    with suppress(OSError):  # who is gone closes what it was given, too
        socket.send_fds(client, [msgspec.msgpack.encode(grant)], descriptors or [])


async def knock(folder: Path) -> Link:
    """A link to the daemon whose data folder is `folder`; the caller runs it. Raises ConfigError when none runs, or it
    is another version, AccessDenied for another user's, Unavailable.
    """
    try:
        said, descriptors = await _ask(folder / SOCKET_NAME)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        raise Unavailable(f"no daemon runs on {folder}: start it with couchestord up --data {folder}") from None
    except PermissionError:
        raise AccessDenied(f"{folder} belongs to another user; run this as root or as the daemon's user") from None
    except (OSError, trio.TooSlowError) as error:
        raise Unavailable(f"the daemon on {folder} does not answer: {error}") from None
    if not said:
        raise Unavailable(f"the daemon on {folder} went away")
    grant = msgspec.msgpack.decode(said, type=_Grant)
    if grant.refusal:
        raise ConfigError(f"the daemon on {folder} refuses: {grant.refusal}")
    if len(descriptors) < _GRANTED:
        for each in descriptors:
            os.close(each)
        raise Unavailable("what the daemon gives cannot be taken: no more files may be open")
    requests, bodies, page, words = descriptors
    shared = SharedPage(page, words)
    shared.close()
    return Link(socket.socket(fileno=requests), socket.socket(fileno=bodies), shared, ALONE)


async def _ask(path: Path) -> tuple[bytes, list[int]]:
    """What the daemon says to who knocks, and descriptors, fewer when no more files may be open here. Raises OSError,
    TooSlowError.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.setblocking(False)
        connect_in_folder(client, path)
        client.send(msgspec.msgpack.encode(_Wish(program_version())))
        with trio.fail_after(_SAY_S):
            await trio.lowlevel.wait_readable(client)
        said, descriptors, _, _ = socket.recv_fds(client, _WORDS_BYTES_MAX, _GRANTED)
    return said, descriptors
