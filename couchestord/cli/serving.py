"""Commands that stay in the foreground, and the one that makes a store: up, serve, init."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio

from couchestord import daemon, logs, memory
from couchestord.cli import credentials, output
from couchestord.cli.options import (
    Commands,
    add_command,
    add_server_options,
    add_store_options,
    add_trust_option,
    load_config,
    parse_disks,
    quiet_logs,
)
from couchestord.config import Config
from couchestord.daemon import Running
from couchestord.model import AccessKey
from couchestord.processes.running import run_with_workers, workers_count
from couchestord.store import ObjectStore

_ADMIN = "admin"
_SHARDS_PER_DISK = """\
A stripe has k data and m parity shards (4 and 2), each on a disk of its own. With fewer disks than k+m several
share one, up to --shards-per-disk: a lost disk takes them all, so the store outlives the loss of m/N disks only.
3 disks with 2 shards each outlive the loss of one; 2 disks with 3 each outlive none, nor does a single one with 6.
"""


def register(commands: Commands) -> None:
    """Adds up, serve and init."""
    up = add_command(
        commands,
        "up",
        "serve a data folder, making a store and a first key where there is none",
        "  couchestord up --data ./data\n"
        "  couchestord up --data ./data --disks 8 --s3-addr 127.0.0.1:9100\n"
        "  couchestord up --data ./data --disks 3 --shards-per-disk 2\n\n"
        "The disks are DIR/disk-0, DIR/disk-1 and so on: folders, or mount points. The first key is copied to\n"
        "DIR/credentials (0600); the store holds the key itself. Ctrl-C or SIGTERM stops in good order.\n\n"
        + _SHARDS_PER_DISK,
    )
    add_store_options(up)
    _add_disks_options(up)
    add_server_options(up)
    up.add_argument("--mount", metavar="DIR", type=Path, help="mount all buckets on this folder; see couchestord mount")
    add_trust_option(up)
    up.set_defaults(run=partial(_up, up))
    serve = add_command(
        commands,
        "serve",
        "serve a store that exists",
        "  couchestord serve --config /etc/couchestord.toml\n"
        "  COUCHESTORD_LOG__FORMAT=json couchestord serve --data /srv/store\n\n"
        "Makes nothing: without a store it ends with an error. Missing disks of a store are no error up to m.\n",
    )
    add_store_options(serve)
    add_server_options(serve)
    serve.set_defaults(run=_serve)
    init = add_command(
        commands,
        "init",
        "make a store and do not serve it",
        "  couchestord init --config /etc/couchestord.toml && couchestord key add ann --config /etc/couchestord.toml\n"
        "  couchestord init --data ./data --disks 3 --shards-per-disk 2\n\n" + _SHARDS_PER_DISK,
    )
    add_store_options(init)
    _add_disks_options(init)
    init.set_defaults(run=_init)


def _add_disks_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--disks", metavar="N", type=parse_disks, default=6, help="disks of a new store (default 6)")
    parser.add_argument(
        "--shards-per-disk",
        metavar="N",
        type=parse_disks,
        help="most shards of a stripe on one disk of a new store (default 1)",
    )


def _up(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.trust_s3_owners and not options.mount:
        parser.error("--trust-s3-owners goes with --mount")
    config = load_config(options)
    prepare = partial(_first_key, config)
    announce = partial(_announce_up, config, mount=options.mount, as_json=options.json)
    mount = _mount_line(config, options) if options.mount else ()
    _run(config, prepare=prepare, announce=announce, create_disks_count=options.disks, mount=mount)


def _mount_line(config: Config, options: argparse.Namespace) -> list[str]:
    """What mounts the store of this command line, and ends with the process that runs it. Raises ConfigError."""
    # what is wrong with it is said now, not over and over later
    from couchestord.processes.mount import check_mount_point

    check_mount_point(options.mount)
    line = [sys.executable, "-m", "couchestord", "mount", os.fspath(options.mount), "--with-parent"]
    line += ["--data", os.fspath(config.store.data)]
    line += ["--config", os.fspath(options.config)] if options.config else []
    line += ["--trust-s3-owners"] if options.trust_s3_owners else []
    return line


def _serve(options: argparse.Namespace) -> None:
    config = load_config(options)
    _run(config, prepare=_nothing, announce=partial(_announce, config, as_json=options.json), create_disks_count=None)


def _init(options: argparse.Namespace) -> None:
    quiet_logs(sys.stderr)
    config = load_config(options)
    disks = trio.run(daemon.create_store, config, options.disks)
    if options.json:
        output.say(json.dumps({"data": str(config.store.data), "disks": [str(disk) for disk in disks]}))
    else:
        output.say(f"a store was made on {len(disks)} disks; next: couchestord key add USER, then couchestord serve")


def _run(config: Config, *, announce: Callable[[Running], None], **arguments: Any) -> None:
    def settle(running: Running) -> None:
        memory.settle()
        announce(running)

    logs.configure(config.log.level, config.log.format, sys.stderr)
    count = workers_count(config.s3.workers)
    if count:
        run_with_workers(config, count, os.environ, announce=settle, settle=memory.settle, **arguments)
    else:
        # it is what replaces workers, and would end a process that has none on the spot
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        trio.run(partial(daemon.run, config, environ=os.environ, announce=settle, **arguments))


async def _nothing(_store: ObjectStore) -> None:
    return None


async def _first_key(config: Config, store: ObjectStore) -> None:
    """An administrator's key where there is none at all; the credentials file is a copy of the oldest one."""
    keys = await store.list_keys()
    if not keys:
        if _ADMIN not in {user.name for user in await store.list_users()}:
            await store.create_user(_ADMIN, admin=True)
        keys = [await store.create_key(_ADMIN)]
    key: AccessKey = keys[0]
    await trio.to_thread.run_sync(credentials.write, config.store.data, key)


def _announce(config: Config, running: Running, *, as_json: bool) -> None:
    if as_json:
        output.announce(json.dumps(_addresses(config, running)))
    else:
        output.announce(_line(config, running))


def _line(config: Config, running: Running) -> str:
    pages = f"metrics on http://{running.metrics}/metrics, health on http://{running.health}/healthz"
    return f"S3 on {config.s3.scheme}://{running.s3}, {pages}"


def _announce_up(config: Config, running: Running, *, mount: Path | None, as_json: bool) -> None:
    if as_json:
        known = {**_addresses(config, running), "credentials": str(credentials.path_in(config.store.data))}
        output.announce(json.dumps(known | ({"mount": str(mount)} if mount else {})))
        return
    lines = [_line(config, running)]
    lines += [f"buckets are folders in {mount}: mkdir {mount}/BUCKET makes one"] if mount else []
    lines.append(credentials.lines_to_paste(config.store.data, running.s3, config.s3))
    output.announce("\n".join(lines))


def _addresses(config: Config, running: Running) -> dict[str, str]:
    return {
        "s3": f"{config.s3.scheme}://{running.s3}",
        "metrics": f"http://{running.metrics}/metrics",
        "health": f"http://{running.health}/healthz",
        "admin_socket": str(running.admin_socket),
    }
