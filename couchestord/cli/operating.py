"""Commands that ask a store: through the daemon when one runs on the data folder, else by opening it here."""

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import trio

from couchestord.cli import output, text
from couchestord.cli.options import Commands, add_command, add_store_options, load_config, quiet_logs
from couchestord.config import Config
from couchestord.daemon import open_store
from couchestord.errors import InvalidArgument, Unavailable
from couchestord.frontends.admin.client import NoDaemon, ask
from couchestord.frontends.admin.commands import execute
from couchestord.parsing import parse_size


def register(commands: Commands) -> None:
    """Adds key, user, bucket, policy, disk, cache, status and info."""
    _register_key(commands)
    _register_bucket(commands)
    _register_policy(commands)
    _register_user(commands)
    _register_disk(commands)
    _register_cache(commands)
    status = _leaf(
        commands,
        "status",
        "is the store well, and what would the loss of each disk cost",
        "  couchestord status --data ./data\n  couchestord status --json | jq .health\n",
    )
    status.set_defaults(run=lambda o: _run(o, "status", {}, text.status))
    info = _leaf(
        commands,
        "info",
        "where every extent and shard of an object lies",
        "  couchestord info photos/2024/cat.jpg\n",
    )
    info.add_argument("object", metavar="BUCKET/KEY")
    info.set_defaults(run=_info)


def _register_key(commands: Commands) -> None:
    examples = "  couchestord key list --show-secrets\n  couchestord key add ann\n  couchestord key remove KEYID\n"
    key = _group(commands, "key", "access keys: list, add, remove", examples)
    listing = _leaf(key, "list", "the access keys, oldest first", "  couchestord key list --show-secrets --json\n")
    listing.add_argument("--show-secrets", action="store_true", help="with the secret keys")
    listing.set_defaults(run=lambda o: _run(o, "key list", {"show_secrets": o.show_secrets}, text.keys))
    add = _leaf(
        key,
        "add",
        "give a user an access key, and make the user if there is none",
        "  couchestord key add ann                              both halves are made and printed, once\n"
        "  couchestord key add ci --access-key CI-KEY --secret-key-file ./secret\n"
        "  pass show s3 | couchestord key add ci --access-key CI-KEY --secret-key-file -\n",
    )
    add.add_argument("user", metavar="USER")
    add.add_argument("--access-key", metavar="KEY", help="default: a random one")
    add.add_argument("--secret-key-file", metavar="FILE", help="holds the secret key, - is standard input")
    add.add_argument("--no-admin", action="store_true", help="a user made here gets no rights on others' buckets")
    add.set_defaults(run=lambda o: _key_add(add, o))
    remove = _leaf(key, "remove", "take an access key away", "  couchestord key remove KEYID\n")
    remove.add_argument("access_key", metavar="KEY")
    remove.set_defaults(run=lambda o: _run(o, "key remove", {"access_key": o.access_key}, text.removed))


def _register_user(commands: Commands) -> None:
    examples = "  couchestord user list\n  couchestord user add ann --no-admin\n  couchestord user remove ann\n"
    user = _group(commands, "user", "who may sign requests: list, add, remove", examples)
    listing = _leaf(user, "list", "the users, oldest first", "  couchestord user list --json\n")
    listing.set_defaults(run=lambda o: _run(o, "user list", {}, text.users))
    add = _leaf(user, "add", "make a user without a key", "  couchestord user add ann\n")
    add.add_argument("user", metavar="USER")
    add.add_argument("--no-admin", action="store_true", help="no rights on other users' buckets")
    add.set_defaults(run=lambda o: _run(o, "user add", {"user": o.user, "admin": not o.no_admin}, text.user))
    remove = _leaf(
        user, "remove", "remove a user who owns no bucket, and its access keys", "  couchestord user remove ann\n"
    )
    remove.add_argument("user", metavar="USER")
    remove.set_defaults(run=lambda o: _run(o, "user remove", {"user": o.user}, text.user_removed))


def _register_bucket(commands: Commands) -> None:
    examples = "  couchestord bucket list\n  couchestord bucket create photos --owner ann\n"
    bucket = _group(commands, "bucket", "buckets: list, create, set, remove", examples)
    listing = _leaf(bucket, "list", "the buckets, by name", "  couchestord bucket list --json\n")
    listing.set_defaults(run=lambda o: _run(o, "bucket list", {}, text.buckets))
    create = _leaf(bucket, "create", "make a bucket", "  couchestord bucket create photos --owner ann\n")
    create.add_argument("bucket", metavar="BUCKET")
    create.add_argument("--owner", metavar="USER", help="the user that owns it (default: nobody, administrators only)")
    create.add_argument("--policy", metavar="POLICY", help="how its objects are coded (default: default)")
    create.set_defaults(run=_bucket_create)
    set_ = _leaf(
        bucket, "set", "keep new objects under another policy", "  couchestord bucket set photos --policy cold\n"
    )
    set_.add_argument("bucket", metavar="BUCKET")
    set_.add_argument("--policy", metavar="POLICY", required=True, help="for what is written from now on")
    set_.set_defaults(run=lambda o: _run(o, "bucket set", {"bucket": o.bucket, "policy": o.policy}, text.tree))
    remove = _leaf(bucket, "remove", "remove an empty bucket", "  couchestord bucket remove photos\n")
    remove.add_argument("bucket", metavar="BUCKET")
    remove.set_defaults(run=lambda o: _run(o, "bucket remove", {"bucket": o.bucket}, text.removed))


def _register_policy(commands: Commands) -> None:
    examples = "  couchestord policy add safe --k 2 --m 4\n  couchestord bucket create archive --policy safe\n"
    policy = _group(commands, "policy", "how data is coded and where it lies: list, show, add, set", examples)
    listing = _leaf(policy, "list", "the policies, the default first", "  couchestord policy list --json\n")
    listing.set_defaults(run=lambda o: _run(o, "policy list", {}, text.tree))
    show = _leaf(policy, "show", "one policy; the default shows the journal too", "  couchestord policy show default\n")
    show.add_argument("policy", metavar="POLICY")
    show.set_defaults(run=lambda o: _run(o, "policy show", {"policy": o.policy}, text.tree))
    about = "New data only: what is written stays as it is.\n"
    for name, help_, example in (
        (
            "add",
            "make a policy; what is not given is as in the default one",
            "  couchestord policy add even --k 3 --m 3\n",
        ),
        ("set", "change a policy", f"  couchestord policy set default --min-healthy-shards 5\n\n{about}"),
    ):
        leaf = _leaf(policy, name, help_, example)
        leaf.add_argument("policy", metavar="POLICY")
        leaf.add_argument("--k", metavar="N", type=int, help="data shards of a stripe")
        leaf.add_argument("--m", metavar="N", type=int, help="parity shards: so many may be lost")
        leaf.add_argument("--stripe-size", metavar="SIZE", help="data bytes of a full stripe")
        leaf.add_argument("--min-healthy-shards", metavar="N", type=int, help="fewest shards to write with; 0: k")
        leaf.add_argument("--disk-class", metavar="CLASS", help="disks that its segments lie on; any: all")
        leaf.set_defaults(run=partial(_policy_put, f"policy {name}"))


def _register_disk(commands: Commands) -> None:
    disk = _group(commands, "disk", "disks: list, replace", "  couchestord disk list\n  couchestord disk replace 3\n")
    listing = _leaf(
        disk, "list", "the disks: are they well, and what would their loss cost", "  couchestord disk list\n"
    )
    listing.set_defaults(run=lambda o: _run(o, "disk list", {}, text.tree))
    replace = _leaf(
        disk,
        "replace",
        "put an empty disk in the place of one that is lost for good",
        "  couchestord disk replace 3                           mounted where disk 3 was (store.disks, DIR/disk-3)\n"
        "  couchestord disk replace 3 /srv/disks/spare          in another folder of store.disks\n\n"
        "The daemon may run or not. The new disk is filled again in the background: `couchestord status` is healthy\n"
        "when that is done. Nothing that lies in FOLDER is overwritten: it must be empty. A disk that was only away\n"
        "needs none of this: mount it at its place.\n",
    )
    replace.add_argument("disk", metavar="N", type=int, help="number of the disk that is lost")
    replace.add_argument("folder", metavar="FOLDER", nargs="?", help="of the new disk (default: that of disk N)")
    replace.add_argument("--force", action="store_true", help="though FOLDER is on no file system of its own")
    replace.set_defaults(run=_disk_replace)


def _register_cache(commands: Commands) -> None:
    examples = "  couchestord cache stats\n  couchestord cache warmup photos/2026/\n"
    cache = _group(commands, "cache", "caches: stats, warmup, evict", examples)
    stats = _leaf(
        cache, "stats", "what each tier holds, and how often it was asked", "  couchestord cache stats --json\n"
    )
    stats.set_defaults(run=lambda o: _run(o, "cache stats", {}, text.caches))
    warmup = _leaf(
        cache,
        "warmup",
        "read objects into the caches of a running daemon, until they are full",
        "  couchestord cache warmup photos\n  couchestord cache warmup photos/2026/     keys that begin with 2026/\n",
    )
    warmup.add_argument("objects", metavar="BUCKET[/PREFIX]")
    warmup.set_defaults(run=_cache_warmup)
    evict = _leaf(cache, "evict", "forget what is cached; nothing is lost", "  couchestord cache evict --tier l1\n")
    evict.add_argument("--tier", choices=("l1", "l2"), help="only this one (default: all)")
    evict.set_defaults(run=_cache_evict)


def _group(commands: Commands, name: str, help_: str, examples: str) -> Commands:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help_,
        description=f"{help_[0].upper()}{help_[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return parser.add_subparsers(metavar="ACTION", required=True)


def _leaf(commands: Commands, name: str, help_: str, examples: str) -> argparse.ArgumentParser:
    parser = add_command(commands, name, help_, examples)
    add_store_options(parser)
    return parser


def _key_add(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if (options.access_key is None) != (options.secret_key_file is None):
        parser.error("give both --access-key and --secret-key-file, or neither")
    arguments = {"user": options.user, "admin": not options.no_admin}
    if options.access_key is not None:
        arguments |= {"access_key": options.access_key, "secret_key": _read_secret(options.secret_key_file)}
    _run(options, "key add", arguments, text.key_added)


def _read_secret(name: str) -> str:
    """The first line of a file: a line end after the secret is an editor's, not the secret's."""
    try:
        content = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"cannot read the secret key from {name}: {error}") from None
    secret = content.rstrip("\r\n")
    if not secret or not secret.isprintable():
        raise InvalidArgument(f"{name} does not hold a secret key on one line")
    return secret


def _bucket_create(options: argparse.Namespace) -> None:
    arguments = {"bucket": options.bucket} | ({"owner": options.owner} if options.owner else {})
    arguments |= {"policy": options.policy} if options.policy else {}
    _run(options, "bucket create", arguments, text.bucket_created)


def _policy_put(command: str, options: argparse.Namespace) -> None:
    arguments = {"policy": options.policy, "k": options.k, "m": options.m, "disk_class": options.disk_class}
    arguments["min_healthy_shards"] = options.min_healthy_shards
    if options.stripe_size is not None:
        try:
            arguments["stripe_bytes"] = parse_size(options.stripe_size)
        except ValueError as error:
            raise InvalidArgument(f"--stripe-size {options.stripe_size!r} {error}") from None
    _run(options, command, {name: value for name, value in arguments.items() if value is not None}, text.tree)


def _disk_replace(options: argparse.Namespace) -> None:
    arguments: dict[str, Any] = {"disk": options.disk, "force": options.force}
    if options.folder is not None:
        # the daemon's working directory is another one
        arguments["folder"] = os.path.abspath(options.folder)
    _run(options, "disk replace", arguments, text.disk_replaced)


def _cache_evict(options: argparse.Namespace) -> None:
    _run(options, "cache evict", {"tier": options.tier} if options.tier else {}, text.evicted)


def _cache_warmup(options: argparse.Namespace) -> None:
    """Step by step, so that each answer comes soon; how far it is goes to standard error."""
    quiet_logs(sys.stderr)
    data = load_config(options).store.data
    bucket, _, prefix = options.objects.removeprefix("s3://").partition("/")
    arguments = {"bucket": bucket} | ({"prefix": prefix} if prefix else {})
    total = {"objects": 0, "bytes": 0, "unreadable": 0}
    while True:
        try:
            step = ask(data, "cache warmup", arguments)
        except NoDaemon:
            raise Unavailable(f"no daemon runs on {data}: it is its caches that are warmed") from None
        total = {name: count + step[name] for name, count in total.items()}
        if step["next"] is None or total["bytes"] >= step["capacity_bytes"]:
            break
        print(text.warmed(total), file=sys.stderr)
        arguments["start"] = step["next"]
    result = total | {"all": step["next"] is None}
    output.say(json.dumps(result, indent=2) if options.json else text.warmed(result))


def _info(options: argparse.Namespace) -> None:
    bucket, slash, key = options.object.removeprefix("s3://").partition("/")
    if not slash or not bucket or not key:
        raise InvalidArgument(f"{options.object!r} is not BUCKET/KEY")
    _run(options, "info", {"bucket": bucket, "key": key}, text.tree)


def _run(options: argparse.Namespace, command: str, arguments: dict[str, Any], show: text.Show) -> None:
    quiet_logs(sys.stderr)
    config = load_config(options)
    try:
        result = ask(config.store.data, command, arguments)
    except NoDaemon:
        result = trio.run(_run_here, config, command, arguments)
    output.say(json.dumps(result, indent=2) if options.json else show(result))


async def _run_here(config: Config, command: str, arguments: dict[str, Any]) -> Any:
    async with open_store(config) as store:
        return await execute(store, command, arguments)
