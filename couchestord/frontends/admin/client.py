"""Asks a running daemon through its admin socket. Blocking: the command line has nothing else to do."""

import socket
from pathlib import Path
from typing import Any, Final

from couchestord.errors import AccessDenied, Unavailable
from couchestord.frontends.admin import protocol
from couchestord.listening import connect_in_folder

_TIMEOUT_S: Final = 120.0


class NoDaemon(Exception):
    """Nobody listens on the socket: no daemon runs on that folder, or it has not finished starting."""


def ask(folder: Path, command: str, arguments: dict[str, Any]) -> Any:
    """The result of a command, run by the daemon whose data folder is `folder`.

    Raises NoDaemon when there is none, the error of the command, AccessDenied for another user's daemon, Unavailable
    when the daemon goes away, takes more than two minutes, or has so many others waiting that it cannot be asked.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_TIMEOUT_S)
        _connect(client, folder)
        try:
            client.sendall(protocol.encode({"command": command, "arguments": arguments}))
            with client.makefile("rb") as lines:
                line = lines.readline()
        except OSError as error:
            raise Unavailable(f"the daemon did not answer: {error.strerror or error}") from None
    if not line.endswith(b"\n"):
        raise Unavailable("the daemon went away before it answered")
    return protocol.result_of(protocol.decode(line))


def _connect(client: socket.socket, folder: Path) -> None:
    try:
        connect_in_folder(client, folder / protocol.SOCKET_NAME)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        raise NoDaemon from None
    except PermissionError:
        raise AccessDenied(f"{folder} belongs to another user; run this as root or as the daemon's user") from None
    except OSError as error:
        raise Unavailable(f"the daemon on {folder} cannot be asked: {error.strerror or error}") from None
