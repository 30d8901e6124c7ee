"""The command that mounts a bucket."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import trio

from couchestord import logs, memory
from couchestord.cli import output
from couchestord.cli.options import Commands, add_command, add_store_options, add_trust_option, load_config


def register(commands: Commands) -> None:
    """Adds mount."""
    mount = add_command(
        commands,
        "mount",
        "show buckets as a file system",
        "  couchestord mount /mnt/store --data ./data\n"
        "  couchestord mount --bucket photos /mnt/photos --data ./data\n\n"
        "The daemon has to run. Ctrl-C, SIGTERM or umount ends the mount.\n",
    )
    mount.add_argument("--bucket", metavar="BUCKET", help="this one only (default: all, each a folder)")
    mount.add_argument("folder", metavar="DIR", type=Path, help="the folder to mount on")
    mount.add_argument("--read-only", action="store_true", help="nothing can be changed through it")
    mount.add_argument("--allow-other", action="store_true", help="other users may use it")
    add_trust_option(mount)
    mount.add_argument("--with-parent", action="store_true", help="end when standard input does")
    add_store_options(mount)
    mount.set_defaults(run=_mount)


def _mount(options: argparse.Namespace) -> None:
    from couchestord.processes.mount import Mount, run_mount

    config = load_config(options)
    logs.configure(config.log.level, config.log.format, sys.stderr)
    wished = ["nosuid", "nodev"]
    wished += ["ro"] if options.read_only else []
    wished += ["allow_other"] if options.allow_other else []
    mount = Mount(options.bucket, options.folder, wished, options.trust_s3_owners)

    def announce() -> None:
        memory.settle()
        if options.json:
            output.announce(json.dumps({"bucket": mount.bucket, "folder": str(mount.folder)}))
        else:
            output.announce(f"{mount.bucket or 'all buckets'} mounted on {mount.folder}")

    trio.run(partial(run_mount, config, mount, announce=announce, with_parent=options.with_parent))
