"""A stand-in for the store's part that operators use, in memory. It keeps no promise of the real one."""

from dataclasses import dataclass, replace
from typing import Any

from couchestord.errors import BucketAlreadyOwnedByYou, KeyAlreadyExists, NoSuchAccessKey, NoSuchBucket, NoSuchUser
from couchestord.model import AccessKey, BucketInfo, User


@dataclass(frozen=True, slots=True)
class FakeHealth:
    state: str = "healthy"
    reasons: tuple[str, ...] = ()


class AdminStore:
    def __init__(self) -> None:
        self.present = FakeHealth()
        self.users: dict[str, User] = {}
        self.keys: dict[str, AccessKey] = {}
        self.buckets: dict[str, BucketInfo] = {}

    def degrade(self, state: str, *reasons: str) -> None:
        self.present = replace(self.present, state=state, reasons=reasons)

    def health(self) -> FakeHealth:
        return self.present

    async def status(self) -> dict[str, Any]:
        health = {"state": self.present.state, "reasons": list(self.present.reasons)}
        return {"health": health, "engine": "zfec"}

    async def describe(self, bucket: str, key: bytes) -> dict[str, Any]:
        return {"bucket": bucket, "key": key.hex()}

    async def create_user(self, name: str, *, admin: bool = False) -> User:
        self.users[name] = User(name, admin, 0)
        return self.users[name]

    async def delete_user(self, name: str) -> tuple[str, ...]:
        if self.users.pop(name, None) is None:
            raise NoSuchUser(f"there is no user {name}")
        keys = tuple(key.access_key for key in self.keys.values() if key.user == name)
        for key in keys:
            del self.keys[key]
        return keys

    async def list_users(self) -> list[User]:
        return list(self.users.values())

    async def create_key(self, user: str, *, access_key: str | None = None, secret_key: str | None = None) -> AccessKey:
        if user not in self.users:
            raise NoSuchUser(f"there is no user {user}")
        there = self.keys.get(access_key or "")
        if there is not None and (there.user, there.secret_key) == (user, secret_key):
            return there
        key = AccessKey(user, access_key or f"GENERATED{len(self.keys)}", secret_key or "made-up-secret", 0)
        if key.access_key in self.keys:
            raise KeyAlreadyExists(f"the access key {key.access_key} exists")
        self.keys[key.access_key] = key
        return key

    async def delete_key(self, access_key: str) -> None:
        if access_key not in self.keys:
            raise NoSuchAccessKey(f"there is no access key {access_key}")
        del self.keys[access_key]

    async def list_keys(self) -> list[AccessKey]:
        return list(self.keys.values())

    async def create_bucket(self, bucket: str, *, owner: str = "", policy: str = "default") -> BucketInfo:
        if owner and owner not in self.users:
            raise NoSuchUser(f"there is no user {owner}")
        if bucket in self.buckets:
            raise BucketAlreadyOwnedByYou(f"the bucket {bucket} exists")
        self.buckets[bucket] = BucketInfo(bucket, 5, owner, policy=policy)
        return self.buckets[bucket]

    async def delete_bucket(self, bucket: str) -> None:
        if bucket not in self.buckets:
            raise NoSuchBucket(f"there is no bucket {bucket}")
        del self.buckets[bucket]

    async def list_buckets(self) -> list[BucketInfo]:
        return sorted(self.buckets.values(), key=lambda bucket: bucket.name)
