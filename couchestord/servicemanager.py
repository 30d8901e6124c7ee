"""What the service manager is told, where one started the daemon."""

import os
import socket
from collections.abc import Mapping

from couchestord import logs

_log = logs.get(__name__)


def notify_systemd(state: str, environ: Mapping[str, str]) -> None:
    """Tells the service manager, as sd_notify(3) does; nothing happens when none asked."""
    name = environ.get("NOTIFY_SOCKET", "")
    if not name:
        return
    address = f"\0{name[1:]}" if name.startswith("@") else name
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        try:
            manager.sendto(f"{state}\nMAINPID={os.getpid()}".encode(), address)
        except OSError as error:
            _log.warning("service manager could not be told", state=state, reason=str(error))
