"""Commands that look at a store, or mend it, while no daemon runs on it."""

import argparse
import json
import sys
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from couchestord.cli import output, text
from couchestord.cli.options import Commands, add_command, add_store_options, load_config, parse_disks, quiet_logs
from couchestord.clock import SystemClock
from couchestord.config import Config
from couchestord.daemon import store_options
from couchestord.errors import ConfigError, DataLost, InvalidArgument
from couchestord.store.fsck import Finding, check_store
from couchestord.store.recover import recover_catalog

if TYPE_CHECKING:
    from couchestord.store.remake import Remade


def register(commands: Commands) -> None:
    """Adds fsck and recover."""
    fsck = add_command(
        commands,
        "fsck",
        "read and verify everything, change nothing; stop the daemon first",
        "  couchestord fsck --data ./data\n  couchestord fsck --json | jq '.[] | select(.severity == \"lost\")'\n",
    )
    add_store_options(fsck)
    fsck.set_defaults(run=_fsck)
    recover = add_command(
        commands,
        "recover",
        "make the catalog again from the disks, or a lost node from its bucket; stop the daemon first",
        "  couchestord recover --data ./data                          the old catalog is set aside, not deleted\n"
        "  couchestord recover --from-l3 --config /etc/couchestord.toml      on empty disks\n\n"
        "A start makes the catalog again by itself when it is missing or damaged: this is for when it is not trusted.\n"
        "With --from-l3 the store is made anew from what it had put in the bucket of [l3]; the node that had it must\n"
        "be gone, or stopped for good. What had no copy in the bucket is lost, and is named.\n",
    )
    add_store_options(recover)
    recover.add_argument("--from-l3", action="store_true", help="make a lost node anew from the bucket of [l3]")
    recover.add_argument("--store", metavar="ID", help="which store, when several are in the bucket")
    recover.add_argument("--disks", metavar="N", type=parse_disks, help="empty disks in the data folder (default: k+m)")
    recover.set_defaults(run=partial(_recover, recover))


def _fsck(options: argparse.Namespace) -> None:
    quiet_logs(sys.stderr)
    config = load_config(options)
    findings = trio.run(_check, config)
    if options.json:
        output.say(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        lines = [f"{finding.severity:6}{finding.where}: {finding.what}" for finding in findings]
        output.say("\n".join([*lines, f"{len(findings)} findings" if findings else "all is well"]))
    lost = sum(1 for finding in findings if finding.severity == "lost")
    if lost:
        raise DataLost(f"{lost} findings are data that is lost")


async def _check(config: Config) -> list[Finding]:
    def report(done: int, total: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\rsegments {done}/{total}" + ("\n" if done == total else ""))

    return await check_store(config.store.data, store_options(config), report)


def _recover(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if not options.from_l3 and (options.store is not None or options.disks is not None):
        parser.error("--store and --disks go with --from-l3")
    quiet_logs(sys.stderr)
    config = load_config(options)
    if options.from_l3:
        _remake(config, options)
        return
    recovered: dict[str, Any] = asdict(trio.run(recover_catalog, config.store.data, store_options(config)))
    if options.json:
        output.say(json.dumps(recovered, indent=2))
    else:
        lines = [f"{name.replace('_', ' ')}: {'-' if value is None else value}" for name, value in recovered.items()]
        output.say("\n".join(lines))


def _remake(config: Config, options: argparse.Namespace) -> None:
    try:
        store_id = bytes.fromhex(options.store) if options.store is not None else None
    except ValueError:
        raise InvalidArgument(f"--store {options.store!r} is not the id of a store: 32 hex digits") from None
    remade = asdict(trio.run(_remake_store, config, options.disks, store_id))
    remade["lost_names"] = [
        {"bucket": bucket, "key": key.decode("utf-8", "backslashreplace"), "version": f"{id_:016x}" if id_ else None}
        for bucket, key, id_ in remade["lost_names"]
    ]
    output.say(json.dumps(remade, indent=2) if options.json else text.remade(remade))


async def _remake_store(config: Config, disks_count: int | None, store_id: bytes | None) -> "Remade":
    # the other commands need not load what it takes to ask a bucket
    from couchestord.store.remake import remake_store

    options = store_options(config)
    l3 = options.l3
    if l3 is None:
        raise ConfigError("l3.mode is off: [l3] says which bucket the store is made anew from, and how it is entered")
    if disks_count is not None and not options.disks:
        options = replace(options, disks_count=disks_count)

    def report(what: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{what} {done}{f'/{total}' if total else ''}" + ("\n" if done == total else ""))

    clock = SystemClock()
    backend = l3.open_backend(clock)
    try:
        return await remake_store(config.store.data, options, backend, clock, report, store_id=store_id)
    finally:
        with trio.CancelScope(shield=True):
            await backend.aclose()
