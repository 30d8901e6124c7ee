from contextlib import closing
from pathlib import Path

import pytest
from small_store import SMALL, HandClock, core_of, make_store, new_store

from couchestord.errors import InvalidArgument, KeyAlreadyExists, NoSuchAccessKey, NoSuchBucket, NoSuchUser
from couchestord.io.sqlite import open_writer
from couchestord.model import AccessKey, User
from couchestord.store.door import ObjectStore


async def test_users_and_keys_last(tmp_path: Path) -> None:
    clock = HandClock()
    await make_store(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL, clock=clock) as store:
        ann = await store.create_user("ann", admin=True)
        bob = await store.create_user("bob")
        assert (ann.admin, bob.admin) == (True, False)
        assert await store.create_user("ann") == ann
        first = await store.create_key("ann")
        second = await store.create_key("bob", access_key="AKIDBOB", secret_key="bobs-own-secret")
        third = await store.create_key("ann")
        assert len({first.access_key, third.access_key}) == 2
        assert len({first.secret_key, third.secret_key}) == 2
        assert (len(first.access_key), len(first.secret_key)) == (20, 40)
    async with ObjectStore.open(tmp_path, SMALL, clock=clock) as store:
        assert await store.list_users() == [ann, bob]
        assert await store.list_keys() == [first, second, third]
        assert store.find_key("AKIDBOB") == AccessKey("bob", "AKIDBOB", "bobs-own-secret", second.created_ns)
        assert store.find_user("ann") == User("ann", True, ann.created_ns)
        assert store.find_key("none") is None
        assert store.find_user("none") is None


async def test_key_that_is_removed_is_found_no_more(tmp_path: Path) -> None:
    """Though it was found, and kept, before; a signature by it is refused from the answer on."""
    async with new_store(tmp_path) as store:
        await store.create_user("ann")
        await store.create_user("bob")
        one = await store.create_key("ann")
        two = await store.create_key("ann")
        assert store.find_key(one.access_key) == one
        assert store.find_key(two.access_key) == two
        await store.delete_key(one.access_key)
        assert store.find_key(one.access_key) is None
        assert store.find_key(two.access_key) == two
        await store.delete_user("ann")
        assert store.find_key(two.access_key) is None
        assert store.find_user("ann") is None
        assert await store.list_keys() == []
        again = await store.create_key("bob", access_key=one.access_key)
        assert store.find_key(one.access_key) == again


async def test_nothing_is_kept_over_another_catalog(tmp_path: Path) -> None:
    """One that was made anew may know less than what had been found in the one before."""
    async with new_store(tmp_path) as store:
        await store.create_user("ann")
        key = await store.create_key("ann")
        assert store.find_key(key.access_key) == key
        assert store.find_user("ann") is not None
        assert (await store.head_bucket("box")).name == "box"
        catalog = core_of(store).catalog
        with closing(open_writer(catalog.path)) as other:
            for table in ("account", "access_key", "bucket"):
                other.execute(f"delete from {table}")
        catalog.reopen_reader()
        assert store.find_key(key.access_key) is None
        assert store.find_user("ann") is None
        with pytest.raises(NoSuchBucket):
            await store.head_bucket("box")


async def test_refused(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await store.create_user("ann")
        key = await store.create_key("ann", access_key="AKIDANN", secret_key="a-good-secret")
        assert await store.create_key("ann", access_key="AKIDANN", secret_key=key.secret_key) == key
        with pytest.raises(KeyAlreadyExists):
            await store.create_key("ann", access_key="AKIDANN", secret_key="another-secret")
        for call in (store.create_key("none"), store.delete_user("none")):
            with pytest.raises(NoSuchUser):
                await call
        with pytest.raises(NoSuchAccessKey):
            await store.delete_key("none")
        for name in ("", "x" * 129, "line\nbreak"):
            with pytest.raises(InvalidArgument):
                await store.create_user(name)
        for access_key, secret in (
            ("A", None),
            ("A/B/C", None),
            ("A=BC", None),
            ("\u00e4bcd", None),
            ("AKID", "short"),
        ):
            with pytest.raises(InvalidArgument):
                await store.create_key("ann", access_key=access_key, secret_key=secret)
        assert await store.list_keys() == [key]


async def test_secret_is_not_shown(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await store.create_user("ann")
        key = await store.create_key("ann", secret_key="not-for-everyone")
        assert "not-for-everyone" not in f"{key!r} {key} {await store.list_keys()}"


async def test_owners_of_buckets(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await store.create_user("ann")
        made = await store.create_bucket("hers", owner="ann")
        assert made.owner == "ann"
        assert [bucket.name for bucket in await store.list_buckets()] == ["box", "hers"]
        assert await store.head_bucket("hers") == made
