"""How many files the process may have open, and how many clients that leaves room for.

A disk whose call fails for want of a descriptor is given up as if it were broken. So clients, who need no key to
connect, must never take the last ones.
"""

import resource
from typing import Final

from couchestord import logs

_PER_DISK: Final = 384
"""Idle descriptors that a disk keeps, lanes, and those in use."""
_PER_CLIENT: Final = 4
"""A socket, and the shard files of what it reads, most of which others read too."""
_OTHER: Final = 384
"""The catalog, listening sockets, clients of the health, metrics and admin servers, clients that are refused."""
_CLIENTS_MIN: Final = 64

_log = logs.get(__name__)


def clients_max(files_max: int, disks_count: int, wanted: int) -> int:
    """So many of `wanted` clients may be connected at a time. Pure."""
    left = files_max - _OTHER - disks_count * _PER_DISK
    return min(wanted, max(_CLIENTS_MIN, left // _PER_CLIENT))


def make_room(disks_count: int, wanted: int) -> int:
    """Raises the process's limit as far as `wanted` clients need it and the system allows; returns `clients_max`."""
    needed = _OTHER + disks_count * _PER_DISK + wanted * _PER_CLIENT
    files_max, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files_max < needed:
        raised = min(needed, most)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, most))
            files_max = raised
        except (OSError, ValueError) as error:
            _log.debug("limit of open files could not be raised", reason=str(error))
    clients = clients_max(files_max, disks_count, wanted)
    if clients < wanted:
        _log.warning(
            "few files may be open, so fewer clients are served at a time",
            clients=clients,
            limit=files_max,
            needed=needed,
        )
    elif files_max < needed:
        _log.warning("few files may be open, so disks may be given up", limit=files_max, needed=needed)
    return clients
