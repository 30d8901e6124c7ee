"""Runs a daemon that has workers, from the process that was started."""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Final

import trio

from couchestord.cache.l2map import L2Map
from couchestord.config import Config
from couchestord.daemon import Running, cache_options, store_options
from couchestord.front import certificate_of
from couchestord.io.sharedpage import SharedPage
from couchestord.listening import bind_several
from couchestord.mountkeeper import kept_mounted
from couchestord.parsing import Address
from couchestord.processes import orders
from couchestord.processes.storeside import run_store
from couchestord.processes.supervisor import Role, Supervisor
from couchestord.processes.worker import run_worker
from couchestord.servicemanager import notify_systemd
from couchestord.store.opening import disk_folders

_CPUS_FOR_ONE: Final = 3
"""With no more than so many CPUs, "auto" is one process."""
_AUTO_MAX: Final = 8


def workers_count(wanted: int | None) -> int:
    """Workers for a setting: None asks for as many as the CPUs that this process may use are good for.

    The process that writes needs one under load, and clients, kernel threads and disks another.
    """
    if wanted is not None:
        return wanted
    cpus = len(os.sched_getaffinity(0))
    return 0 if cpus <= _CPUS_FOR_ONE else min(cpus - 2, _AUTO_MAX)


def run_with_workers(
    config: Config,
    workers_count: int,
    environ: Mapping[str, str],
    *,
    announce: Callable[[Running], None],
    settle: Callable[[], None],
    mount: Sequence[str] = (),
    create_disks_count: int | None = None,
    **arguments: Any,
) -> None:
    """Serves until SIGTERM or SIGINT; SIGHUP replaces the workers one by one. Raises what `daemon.run` raises in the
    process of the store, which is another than the one that was started; in that one, SystemExit with its exit code,
    and ConfigError.

    `arguments`, `mount` and `create_disks_count` are those of `daemon.run`; `settle` is called in each worker once it
    serves.
    """
    # before there are processes that could not say what is wrong with it
    certificate_of(config)
    folders = disk_folders(config.store.data, store_options(config))
    disks_count = max(len(folders), create_disks_count or 0)
    cache = cache_options(config)
    if cache.l2_bytes:
        cache = replace(cache, l2_map=L2Map(cache.l2_bytes))
    with ExitStack() as stack:
        several = bind_several("s3", config.s3.address, workers_count, stack)
        bound = {
            "metrics": bind_several("metrics", config.metrics.address, 1, stack)[0],
            "health": bind_several("health", config.health.address, 1, stack)[0],
        }
        page = SharedPage()
        notify = partial(notify_systemd, environ=environ)
        found = Supervisor(several, page, notify, has_mount=bool(mount)).run()
        if not isinstance(found, Role):
            raise SystemExit(found)
        if found.kind == "worker":
            own = found.number, found.listeners
            trio.run(run_worker, config, found.control, page, cache, *own, workers_count, disks_count, settle)
            return
        host, port = several[0][0].getsockname()[:2]
        for listeners in several:
            for listener in listeners:
                listener.close()  # what comes to them is the workers'
        if found.kind == "mount":
            trio.run(_keep_mounted, found.control, mount)
            return
        address = Address(host, port)
        arguments |= {"bound": bound, "create_disks_count": create_disks_count}
        trio.run(partial(run_store, config, found.control, page, cache, address, announce, **arguments))


async def _keep_mounted(control: socket.socket, line: Sequence[str]) -> None:
    """In a process of its own, which the mount ends with: when the store's is started again it goes on."""
    async with kept_mounted(line):
        async for order in orders.orders(control):
            if order.word == orders.STOP:
                return
