"""Commands that look at a store, or mend it, while no daemon runs on it."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

import trio

from couchestord.cli.options import Commands, add_command, add_store_options, load_config, quiet_logs
from couchestord.config import Config
from couchestord.daemon import store_options
from couchestord.errors import DataLost
from couchestord.store.fsck import Finding, check_store
from couchestord.store.recover import recover_catalog


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
        "make the catalog again from the disks; stop the daemon first",
        "  couchestord recover --data ./data       the old catalog is set aside, not deleted\n\n"
        "A start does this by itself when the catalog is missing or damaged: this is for when it is not trusted.\n",
    )
    add_store_options(recover)
    recover.set_defaults(run=_recover)


def _fsck(options: argparse.Namespace) -> None:
    quiet_logs(sys.stderr)
    config = load_config(options)
    findings = trio.run(_check, config)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{finding.severity:6}{finding.where}: {finding.what}")
        print(f"{len(findings)} findings" if findings else "all is well")
    lost = sum(1 for finding in findings if finding.severity == "lost")
    if lost:
        raise DataLost(f"{lost} findings are data that is lost")


async def _check(config: Config) -> list[Finding]:
    def report(done: int, total: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\rsegments {done}/{total}" + ("\n" if done == total else ""))

    return await check_store(config.store.data, store_options(config), report)


def _recover(options: argparse.Namespace) -> None:
    quiet_logs(sys.stderr)
    config = load_config(options)
    recovered: dict[str, Any] = asdict(trio.run(recover_catalog, config.store.data, store_options(config)))
    if options.json:
        print(json.dumps(recovered, indent=2))
    else:
        for name, value in recovered.items():
            print(f"{name.replace('_', ' ')}: {'-' if value is None else value}")
