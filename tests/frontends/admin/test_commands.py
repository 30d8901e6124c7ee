from typing import Any, cast

import pytest
from admin_store import AdminStore

from couchestord.errors import BucketAlreadyOwnedByYou, InvalidArgument, KeyAlreadyExists, NoSuchAccessKey, NoSuchUser
from couchestord.frontends.admin.commands import COMMANDS, execute


@pytest.fixture
def store() -> AdminStore:
    return AdminStore()


async def run(store: AdminStore, command: object, **arguments: Any) -> Any:
    return await execute(cast(Any, store), command, arguments)


async def test_key_add_makes_user_and_key(store: AdminStore) -> None:
    row = await run(store, "key add", user="ann", access_key="AK", secret_key="SK")
    assert row == {"user": "ann", "access_key": "AK"}
    assert store.users["ann"].admin
    assert store.keys["AK"].secret_key == "SK"


async def test_key_add_tells_the_secret_only_when_it_made_it(store: AdminStore) -> None:
    assert await run(store, "key add", user="ann") == {
        **{"user": "ann", "access_key": "GENERATED0", "secret_key": "made-up-secret"}
    }


async def test_no_admin(store: AdminStore) -> None:
    await run(store, "key add", user="bob", admin=False)
    assert not store.users["bob"].admin


async def test_same_key_again_is_done_another_secret_is_a_conflict(store: AdminStore) -> None:
    for _ in range(2):
        await run(store, "key add", user="ann", access_key="AK", secret_key="SK")
    with pytest.raises(KeyAlreadyExists):
        await run(store, "key add", user="ann", access_key="AK", secret_key="other")
    with pytest.raises(KeyAlreadyExists):
        await run(store, "key add", user="eve", access_key="AK", secret_key="SK")
    assert len(store.keys) == 1


async def test_key_list_hides_secrets_unless_asked(store: AdminStore) -> None:
    await run(store, "key add", user="ann", access_key="AK", secret_key="SK")
    assert await run(store, "key list") == [{"user": "ann", "access_key": "AK"}]
    shown = [{"user": "ann", "access_key": "AK", "secret_key": "SK"}]
    assert await run(store, "key list", show_secrets=True) == shown


async def test_key_remove(store: AdminStore) -> None:
    await run(store, "key add", user="ann", access_key="AK", secret_key="SK")
    await run(store, "key remove", access_key="AK")
    assert store.keys == {}
    with pytest.raises(NoSuchAccessKey):
        await run(store, "key remove", access_key="AK")


async def test_users(store: AdminStore) -> None:
    assert await run(store, "user list") == []
    await run(store, "user add", user="ann", admin=False)
    for key in ("A1", "A2"):
        await run(store, "key add", user="ann", access_key=key, secret_key="SK")
    await run(store, "key add", user="bob", access_key="B1", secret_key="SK")
    await run(store, "bucket create", bucket="photos", owner="bob")
    assert await run(store, "user list") == [
        {"user": "ann", "admin": False, "access_keys": 2, "buckets": 0},
        {"user": "bob", "admin": True, "access_keys": 1, "buckets": 1},
    ]
    assert await run(store, "user remove", user="ann") == {"user": "ann", "access_keys": ["A1", "A2"]}
    assert await run(store, "key list") == [{"user": "bob", "access_key": "B1"}]
    with pytest.raises(NoSuchUser):
        await run(store, "user remove", user="ann")


async def test_buckets(store: AdminStore) -> None:
    await run(store, "user add", user="ann")
    await run(store, "bucket create", bucket="photos", owner="ann")
    assert await run(store, "bucket list") == [
        {"bucket": "photos", "owner": "ann", "policy": "default", "created_ns": 5}
    ]
    with pytest.raises(BucketAlreadyOwnedByYou):
        await run(store, "bucket create", bucket="photos")
    with pytest.raises(NoSuchUser):
        await run(store, "bucket create", bucket="other", owner="nobody")
    await run(store, "bucket remove", bucket="photos")
    assert await run(store, "bucket list") == []


async def test_info_takes_any_bytes_of_a_key(store: AdminStore) -> None:
    key = b"a\xff/\xc3\xa9"
    found = await run(store, "info", bucket="photos", key=key.decode("utf-8", "surrogateescape"))
    assert found == {"bucket": "photos", "key": key.hex()}


@pytest.mark.parametrize("command", ["", "format disks", None, ["status"]])
async def test_unknown_command_names_the_known(store: AdminStore, command: object) -> None:
    with pytest.raises(InvalidArgument, match="key add"):
        await run(store, command)


@pytest.mark.parametrize("command", list(COMMANDS))
async def test_unknown_argument_does_nothing(store: AdminStore, command: str) -> None:
    store.keys["AK"] = await store.create_key((await store.create_user("u")).name)
    before = (dict(store.users), dict(store.keys), dict(store.buckets))
    with pytest.raises(InvalidArgument, match="froce"):
        await run(store, command, user="ann", access_key="AK", bucket="photos", key="k", policy="p", disk=2, froce=True)
    assert (store.users, store.keys, store.buckets) == before


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("key add", {}),
        ("key add", {"user": ""}),
        ("key add", {"user": 5}),
        ("key add", {"user": "ann", "access_key": "AK"}),
        ("key add", {"user": "ann", "admin": "yes"}),
        ("info", {"bucket": "photos"}),
    ],
)
async def test_bad_arguments(store: AdminStore, command: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        await run(store, command, **arguments)
    assert store.users == {}


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("bucket remove", {"bucket": "b\udcff"}),
        ("key add", {"user": "\udcff"}),
        ("policy show", {"policy": "\ud800"}),
        ("info", {"bucket": "b", "key": "\ud800"}),
    ],
)
async def test_text_that_is_no_utf_8_is_refused(store: AdminStore, command: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="is not UTF-8"):
        await run(store, command, **arguments)


async def test_arguments_are_an_object(store: AdminStore) -> None:
    with pytest.raises(InvalidArgument):
        await execute(cast(Any, store), "status", ["x"])
