"""Sockets that listen, and what is said when there can be none."""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from couchestord.errors import ConfigError
from couchestord.parsing import Address

BACKLOG: Final = 1024
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)


async def bind(
    section: str, address: Address, stack: AsyncExitStack, bound: Sequence[socket.socket] | None = None
) -> list[trio.SocketListener]:
    """Listeners on an address, closed with `stack`; over copies of the sockets that are `bound` to it already. Raises
    ConfigError that says why not and what to do.
    """
    try:
        listeners = (
            listeners_of(bound)
            if bound
            else await trio.open_tcp_listeners(address.port, host=address.host, backlog=BACKLOG)
        )
    except (OSError, UnicodeError) as error:
        raise ConfigError(why_not_bound(section, address, error)) from None
    for listener in listeners:
        stack.push_async_callback(listener.aclose)
    return listeners


def why_not_bound(section: str, address: Address, error: OSError | UnicodeError) -> str:
    change = f"set {section}.address (--{section}-addr) to another"
    if isinstance(error, socket.gaierror | UnicodeError):  # or it cannot be the name of a host
        return f"cannot listen on {address}: the host is not known; {change}"
    if error.errno == errno.EADDRINUSE:
        return f"cannot listen on {address}: the port is in use by another program; stop it, or {change}"
    if error.errno == errno.EACCES:
        return f"cannot listen on {address}: ports below 1024 need root or CAP_NET_BIND_SERVICE; {change}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen on {address}: this machine does not have that address; {change}"
    return f"cannot listen on {address}: {error.strerror or error}; {change}"


def copies(listeners: Sequence[trio.SocketListener]) -> list[trio.SocketListener]:
    """The same listening sockets, for a server that closes them at its end."""
    return [trio.SocketListener(listener.socket.dup()) for listener in listeners]


def address_of(listeners: Sequence[trio.SocketListener]) -> Address:
    name = listeners[0].socket.getsockname()
    return Address(name[0], name[1])


def bind_several(section: str, address: Address, count: int, stack: ExitStack) -> list[list[socket.socket]]:
    """`count` times listeners on one address, among which the kernel spreads clients, closed with `stack`. Without
    trio. Raises ConfigError that says why not and what to do.
    """
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
        places = [(family, str(where[0]), int(where[1])) for family, *_, where in found]
        several: list[list[socket.socket]] = [[] for _ in range(count)]
        for family, host, port in places:
            # several sockets of one user may share an address: another program of ours would not be noticed
            with _listener(family, (host, port), shared=False) as alone:
                port = alone.getsockname()[1]
            for listeners in several:
                listeners.append(stack.enter_context(_listener(family, (host, port), shared=True)))
    except (OSError, UnicodeError) as error:
        raise ConfigError(why_not_bound(section, address, error)) from None
    return several


def _listener(family: int, where: tuple[str, int], *, shared: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(where)
        if shared:
            listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def listeners_of(sockets: Sequence[socket.socket]) -> list[trio.SocketListener]:
    """Listeners over copies of sockets that listen."""
    return [trio.SocketListener(trio.socket.from_stdlib_socket(each.dup())) for each in sockets]


# -- sockets in a folder -----------------------------------------------------------------------------------------------


def listen_in_folder(path: Path, kind: int, backlog: int) -> socket.socket:
    """A listening socket of AF_UNIX at `path`, for its user only; a file that is there is replaced. Raises
    ConfigError.
    """
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        path.unlink(missing_ok=True)
        with _short_address(path) as address:
            listener.bind(address)
        # before anybody can connect; a umask is all threads', and nobody could enter a folder that one makes meanwhile
        path.chmod(0o600)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot make the socket {path}: {error.strerror}") from None
    return listener


def close_in_folder(listener: socket.socket | trio.socket.SocketType, path: Path) -> None:
    """Closes what `listen_in_folder` has made, and removes its file; one that stays is replaced by the next."""
    listener.close()
    with suppress(OSError):  # the file system may have become read-only
        path.unlink()


def connect_in_folder(sock: socket.socket, path: Path) -> None:
    """Connects to a socket that `listen_in_folder` has made. Raises OSError."""
    with _short_address(path) as address:
        sock.connect(address)


@contextmanager
def _short_address(path: Path) -> Iterator[str]:
    """Through a descriptor of the folder: an address of AF_UNIX has only 107 bytes, a folder's name more."""
    folder = os.open(path.parent, os.O_DIRECTORY | os.O_PATH)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def peer_uid(sock: socket.socket | trio.socket.SocketType) -> int:
    """The user id of the process that connected, from the kernel."""
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(packed)[1]
    return uid


def may_connect(uid: int, own_uid: int) -> bool:
    """The mode of the socket file says the same; this holds when somebody changes it, or its folder's."""
    return uid in (0, own_uid)
