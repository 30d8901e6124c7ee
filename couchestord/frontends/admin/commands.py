"""What an operator can do to a store: one function per command, the same whether a daemon runs or not."""

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from couchestord.errors import InvalidArgument, NoSuchUser
from couchestord.model import ANY_CLASS, DEFAULT_POLICY, AccessKey, BucketInfo
from couchestord.store import ObjectStore

Command = Callable[[ObjectStore, "Arguments"], Awaitable[Any]]


class Arguments:
    """The arguments of a request, checked as they are taken."""

    def __init__(self, given: object) -> None:
        if not isinstance(given, Mapping):
            raise InvalidArgument("arguments are a JSON object")
        self._given = dict(given)

    def text(self, name: str) -> str:
        found = self.optional_text(name)
        if found is None:
            raise InvalidArgument(f"the argument {name} is missing")
        return found

    def optional_text(self, name: str) -> str | None:
        return self._encoded(name, "strict").decode() or None

    def octets(self, name: str) -> bytes:
        """What need not be UTF-8, a key say."""
        found = self.optional_octets(name)
        if not found:
            raise InvalidArgument(f"the argument {name} is missing")
        return found

    def optional_octets(self, name: str) -> bytes:
        """Empty when it is not given."""
        return self._encoded(name, "surrogateescape")

    def _encoded(self, name: str, errors: str) -> bytes:
        found = self._given.pop(name, None)
        if found is not None and (not isinstance(found, str) or not found):
            raise InvalidArgument(f"the argument {name} is not a text")
        try:
            return (found or "").encode("utf-8", errors)
        except UnicodeEncodeError:
            raise InvalidArgument(f"the argument {name} is not UTF-8") from None

    def number(self, name: str) -> int:
        found = self.optional_number(name)
        if found is None:
            raise InvalidArgument(f"the argument {name} is missing")
        return found

    def optional_number(self, name: str) -> int | None:
        found = self._given.pop(name, None)
        if found is not None and (not isinstance(found, int) or isinstance(found, bool)):
            raise InvalidArgument(f"the argument {name} is not a whole number")
        return found

    def flag(self, name: str, default: bool = False) -> bool:
        found = self._given.pop(name, default)
        if not isinstance(found, bool):
            raise InvalidArgument(f"the argument {name} is neither true nor false")
        return found

    def end(self) -> None:
        """Nothing else was given. Called before anything is done."""
        if self._given:
            raise InvalidArgument(f"unknown arguments: {', '.join(sorted(map(str, self._given)))}")


async def execute(store: ObjectStore, name: object, given: object) -> Any:
    """Runs a command; returns what JSON can say. Raises InvalidArgument for one not known, and what the store does."""
    command = COMMANDS.get(name) if isinstance(name, str) else None
    if command is None:
        raise InvalidArgument(f"unknown command {name!r}; known: {', '.join(COMMANDS)}")
    return await command(store, Arguments(given))


async def _status(store: ObjectStore, arguments: Arguments) -> dict[str, Any]:
    arguments.end()
    return await store.status()


async def _info(store: ObjectStore, arguments: Arguments) -> dict[str, Any]:
    bucket, key = arguments.text("bucket"), arguments.octets("key")
    arguments.end()
    return await store.describe(bucket, key)


async def _key_list(store: ObjectStore, arguments: Arguments) -> list[dict[str, str]]:
    """Oldest first."""
    show_secrets = arguments.flag("show_secrets")
    arguments.end()
    return [_key_row(key, show_secrets=show_secrets) for key in await store.list_keys()]


async def _key_add(store: ObjectStore, arguments: Arguments) -> dict[str, str]:
    """Makes the user too, as administrator unless `admin` is false. The same key again for that user is no error."""
    user, admin = arguments.text("user"), arguments.flag("admin", True)
    access_key, secret_key = arguments.optional_text("access_key"), arguments.optional_text("secret_key")
    arguments.end()
    if (access_key is None) != (secret_key is None):
        raise InvalidArgument("an access key and its secret are given together or not at all")
    try:
        key = await store.create_key(user, access_key=access_key, secret_key=secret_key)
    except NoSuchUser:  # nothing else is wrong: a key that is refused leaves no user behind
        await store.create_user(user, admin=admin)
        key = await store.create_key(user, access_key=access_key, secret_key=secret_key)
    return _key_row(key, show_secrets=secret_key is None)


async def _key_remove(store: ObjectStore, arguments: Arguments) -> dict[str, str]:
    access_key = arguments.text("access_key")
    arguments.end()
    await store.delete_key(access_key)
    return {"access_key": access_key}


async def _user_add(store: ObjectStore, arguments: Arguments) -> dict[str, Any]:
    name, admin = arguments.text("user"), arguments.flag("admin", True)
    arguments.end()
    user = await store.create_user(name, admin=admin)
    return {"user": user.name, "admin": user.admin}


async def _user_list(store: ObjectStore, arguments: Arguments) -> list[dict[str, Any]]:
    """Oldest first, with how many access keys and buckets each has."""
    arguments.end()
    keys = Counter(key.user for key in await store.list_keys())
    buckets = Counter(bucket.owner for bucket in await store.list_buckets())
    return [
        {"user": user.name, "admin": user.admin, "access_keys": keys[user.name], "buckets": buckets[user.name]}
        for user in await store.list_users()
    ]


async def _user_remove(store: ObjectStore, arguments: Arguments) -> dict[str, Any]:
    """With its access keys, which are named."""
    name = arguments.text("user")
    arguments.end()
    return {"user": name, "access_keys": list(await store.delete_user(name))}


async def _bucket_list(store: ObjectStore, arguments: Arguments) -> list[dict[str, Any]]:
    arguments.end()
    return [_bucket_row(bucket) for bucket in await store.list_buckets()]


async def _bucket_set(store: ObjectStore, arguments: Arguments) -> dict[str, Any]:
    bucket, policy = arguments.text("bucket"), arguments.text("policy")
    arguments.end()
    await store.policies.assign(bucket, policy)
    return _bucket_row(await store.head_bucket(bucket))


async def _bucket_create(store: ObjectStore, arguments: Arguments) -> dict[str, Any]:
    bucket, owner = arguments.text("bucket"), arguments.optional_text("owner")
    policy = arguments.optional_text("policy") or DEFAULT_POLICY
    arguments.end()
    return _bucket_row(await store.create_bucket(bucket, owner=owner or "", policy=policy))


async def _bucket_remove(store: ObjectStore, arguments: Arguments) -> dict[str, Any]:
    bucket = arguments.text("bucket")
    arguments.end()
    await store.delete_bucket(bucket)
    return {"bucket": bucket}


async def _disk_list(store: ObjectStore, arguments: Arguments) -> list[dict[str, Any]]:
    """By index."""
    arguments.end()
    return await store.disks.list()


async def _disk_replace(store: ObjectStore, arguments: Arguments) -> dict[str, Any]:
    """A folder is told as an absolute path: the daemon's own is another one."""
    index, folder, force = arguments.number("disk"), arguments.optional_octets("folder"), arguments.flag("force")
    arguments.end()
    done = await store.disks.replace(index, Path(os.fsdecode(folder)) if folder else None, force=force)
    return {"disk": done.index, "folder": str(done.folder), "new": done.is_new}


def _key_row(key: AccessKey, *, show_secrets: bool) -> dict[str, str]:
    row = {"user": key.user, "access_key": key.access_key}
    return {**row, "secret_key": key.secret_key} if show_secrets else row


def _bucket_row(bucket: BucketInfo) -> dict[str, Any]:
    return {"bucket": bucket.name, "owner": bucket.owner, "policy": bucket.policy, "created_ns": bucket.created_ns}


async def _policy_list(store: ObjectStore, arguments: Arguments) -> list[dict[str, Any]]:
    """The default first, then as they were made."""
    arguments.end()
    return [store.policies.describe(policy) for policy in store.policies.list()]


async def _policy_show(store: ObjectStore, arguments: Arguments) -> dict[str, Any]:
    name = arguments.text("policy")
    arguments.end()
    return store.policies.describe(store.policies.find(name)) | store.policies.log_settings(name)


async def _policy_add(store: ObjectStore, arguments: Arguments) -> dict[str, Any]:
    """What is not given is as in the default policy."""
    name, fields = arguments.text("policy"), _policy_fields(arguments)
    policy = replace(store.policies.find(DEFAULT_POLICY), name=name, **fields)
    return store.policies.describe(await store.policies.add(policy))


async def _policy_set(store: ObjectStore, arguments: Arguments) -> dict[str, Any]:
    name, fields = arguments.text("policy"), _policy_fields(arguments)
    return store.policies.describe(await store.policies.change(name, **fields))


def _policy_fields(arguments: Arguments) -> dict[str, Any]:
    """What is given of a policy. A new k or m asks for as many healthy shards as the new k, unless told otherwise."""
    names = ("k", "m", "stripe_bytes", "min_healthy_shards")
    fields: dict[str, Any] = {name: arguments.optional_number(name) for name in names}
    fields["disk_class"] = arguments.optional_text("disk_class")
    arguments.end()
    fields = {name: value for name, value in fields.items() if value is not None}
    if fields.get("disk_class") == ANY_CLASS:
        fields["disk_class"] = ""
    return {"min_healthy_shards": 0} | fields if fields.keys() & {"k", "m"} else fields


async def _cache_stats(store: ObjectStore, arguments: Arguments) -> list[dict[str, Any]]:
    """The tiers, from the top down; none when caches are off. With workers, each of them under `processes`."""
    arguments.end()
    return store.caches.stats_of_each()


async def _cache_evict(store: ObjectStore, arguments: Arguments) -> dict[str, Any]:
    """All tiers, or one by name."""
    tier = arguments.optional_text("tier")
    arguments.end()
    if tier not in (None, *(row["tier"] for row in store.caches.stats())):
        raise InvalidArgument(f"there is no tier {tier!r}")
    return {"bytes": await store.caches.evict(tier)}


async def _cache_warm(store: ObjectStore, arguments: Arguments) -> dict[str, Any]:
    """One step; `next` is where the next one starts, None after the last. `capacity_bytes`: end when as much was
    brought.
    """
    bucket = arguments.text("bucket")
    prefix, start = arguments.optional_octets("prefix"), arguments.optional_octets("start")
    arguments.end()
    done = await store.caches.warm(bucket, prefix, start)
    return {
        "objects": done.objects_count,
        "bytes": done.size_bytes,
        "unreadable": done.lost_count,
        "next": None if done.next_start is None else done.next_start.decode("utf-8", "surrogateescape"),
        "capacity_bytes": store.caches.warm_bytes_max(),
    }


COMMANDS: Final[Mapping[str, Command]] = {
    "status": _status,
    "info": _info,
    "key list": _key_list,
    "key add": _key_add,
    "key remove": _key_remove,
    "user add": _user_add,
    "user list": _user_list,
    "user remove": _user_remove,
    "bucket list": _bucket_list,
    "bucket create": _bucket_create,
    "bucket set": _bucket_set,
    "bucket remove": _bucket_remove,
    "disk list": _disk_list,
    "disk replace": _disk_replace,
    "cache stats": _cache_stats,
    "cache warmup": _cache_warm,
    "cache evict": _cache_evict,
    "policy list": _policy_list,
    "policy show": _policy_show,
    "policy add": _policy_add,
    "policy set": _policy_set,
}
