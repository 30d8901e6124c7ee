"""Users and their keys, as the store's callers see them."""

from couchestord.io import requests as rq
from couchestord.io.catalog.read import NAMES_CACHED_MAX
from couchestord.model import AccessKey, User
from couchestord.store.parts import Parts


class Accounts:
    """The part of `ObjectStore` that knows who may sign requests."""

    def __init__(self, parts: Parts) -> None:
        self._submit = parts.submit
        self._accounts = parts.catalog.accounts
        self._generations = parts.catalog.generations
        self._refresh = parts.catalog.refresh
        self._kept = 0
        self._keys: dict[str, AccessKey] = {}
        self._users: dict[str, User] = {}

    async def create_user(self, name: str, *, admin: bool = False) -> User:
        """Make a user; one that exists is answered as it is."""
        user: User = await self._submit(rq.MakeUser(name, admin))
        return user

    async def delete_user(self, name: str) -> tuple[str, ...]:
        """Remove a user who owns no bucket, with its keys; returns the ids of these.

        A bucket belongs to a name: left behind, it would fall to the next user of that name. So the buckets are to be
        deleted first, or to be made anew by somebody else. Raises NoSuchUser, UserOwnsBuckets, which names them.
        """
        keys: tuple[str, ...] = await self._submit(rq.RemoveUser(name))
        return keys

    async def create_key(self, user: str, *, access_key: str | None = None, secret_key: str | None = None) -> AccessKey:
        """Make a key for a user; what is not given is random. Raises NoSuchUser, KeyAlreadyExists, InvalidArgument."""
        key: AccessKey = await self._submit(rq.MakeKey(user, access_key, secret_key))
        return key

    async def delete_key(self, access_key: str) -> None:
        """Raises NoSuchAccessKey."""
        await self._submit(rq.RemoveKey(access_key))

    async def list_users(self) -> list[User]:
        """All users, oldest first."""
        rows = self._accounts.users()
        return [User(row.name, bool(row.admin), row.created_ns) for row in rows]

    async def list_keys(self) -> list[AccessKey]:
        """All keys with their secrets, oldest first."""
        rows = self._accounts.keys()
        return [AccessKey(row.user, row.id, row.secret, row.created_ns) for row in rows]

    def find_key(self, access_key: str) -> AccessKey | None:
        """The key of that id. Synchronous: for checking signatures."""
        self._drop_outdated()
        found = self._keys.get(access_key)
        if found is None:
            row = self._accounts.key(access_key)
            if row is not None:
                found = self._keys[access_key] = AccessKey(row.user, row.id, row.secret, row.created_ns)
        return found

    def find_user(self, name: str) -> User | None:
        """The user of that name. Synchronous: asked for every request."""
        self._drop_outdated()
        found = self._users.get(name)
        if found is None:
            row = self._accounts.user(name)
            if row is not None:
                found = self._users[name] = User(row.name, bool(row.admin), row.created_ns)
        return found

    def _drop_outdated(self) -> None:
        """Users and keys are kept as long as no name changes."""
        self._refresh()
        now = self._generations.stamp_of_names()
        if self._kept != now or len(self._keys) > NAMES_CACHED_MAX or len(self._users) > NAMES_CACHED_MAX:
            self._keys.clear()
            self._users.clear()
            self._kept = now
