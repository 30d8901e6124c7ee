"""Whoever has changed something is answered once mounts show it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from file_rig import make
from small_store import core_of, new_store

from couchestord.errors import PreconditionFailed, Unavailable
from couchestord.io import filerequests as fr
from couchestord.io.catalog.changes import Changes
from couchestord.model import Conditions
from couchestord.store import ObjectStore, answering
from couchestord.store.mounts import Claim


class Shown:
    """A mount that shows what it is told when the test says so."""

    def __init__(self, bucket: str | None = "box") -> None:
        self.told: list[Changes] = []
        self.may = trio.Event()
        self.is_gone = False
        self.claim = Claim(bucket, False, self._which_open, self._show, owner=self)

    async def _which_open(self, inodes: Sequence[int]) -> Sequence[int]:
        return []

    async def _show(self, changes: Changes) -> None:
        self.told.append(changes)
        await self.may.wait()
        if self.is_gone:
            raise Unavailable("it is gone")


async def put(store: ObjectStore, key: bytes) -> None:
    await store.put("box", key, b"bytes")


async def _told(mount: Shown) -> None:
    with trio.fail_after(30):
        while not mount.told:
            await trio.sleep(0.01)


async def _begin(nursery: trio.Nursery, call: Callable[..., Any], *arguments: Any) -> trio.Event:
    """Set once the call has returned; it has come as far as it comes without being shown."""
    answered = trio.Event()

    async def run() -> None:
        await call(*arguments)
        answered.set()

    nursery.start_soon(run)
    await trio.testing.wait_all_tasks_blocked(0.05)
    return answered


async def test_answered_once_all_that_show_the_bucket_do(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store, trio.open_nursery() as nursery:
        await store.create_bucket("other")
        one, two, other = Shown(), Shown(None), Shown("other")
        for each in (one, two, other):
            core_of(store).mounts.add(each.claim)
        answered = await _begin(nursery, put, store, b"a/key")
        await _told(two)
        assert not answered.is_set()
        (changes,) = one.told
        assert {name for _, name in changes.names} == {b"a", b"key"}
        # what is committed is there for others: only the answer waits
        await store.head("box", b"a/key")
        one.may.set()
        await trio.sleep(0.05)
        assert not answered.is_set()
        two.is_gone = True
        two.may.set()
        await answered.wait()
        assert other.told == []


async def test_what_changes_nothing_that_is_shown_is_answered_at_once(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        shown = Shown()
        core_of(store).mounts.add(shown.claim)
        await store.delete("box", b"none")
        await store.create_upload("box", b"key")
        assert shown.told == []


async def test_what_rests_on_a_change_that_is_not_shown_yet_is_answered_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "SHOWN_S_MAX", 60.0)
    async with new_store(tmp_path) as store, trio.open_nursery() as nursery:
        await store.create_bucket("other")
        for bucket, key in (("box", b"key"), ("box", b"second"), ("other", b"key")):
            await store.put(bucket, key, b"bytes")
        shown = Shown()
        core_of(store).mounts.add(shown.claim)
        order: list[str] = []

        async def delete(name: str, key: bytes) -> None:
            await store.delete("box", key)
            order.append(name)

        async def refused() -> None:
            with pytest.raises(PreconditionFailed):
                await store.delete("box", b"second", conditions=Conditions(if_match=("other",)))
            order.append("refused")

        first = await _begin(nursery, delete, "first", b"key")
        await _told(shown)
        others = [await _begin(nursery, delete, "again", b"key"), await _begin(nursery, refused)]
        # whom it does not concern
        await store.delete("other", b"none")
        await core_of(store).submit(fr.FreeOrphans(()), shown)
        assert order == []
        shown.may.set()
        for answered in (first, *others):
            await answered.wait()
        assert order[0] == "first"
        assert len(shown.told) == 1
        await store.delete("box", b"key")
    assert sorted(order[1:]) == ["again", "refused"]


async def test_what_rests_on_a_change_of_the_same_commit_is_answered_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "SHOWN_S_MAX", 60.0)
    async with new_store(tmp_path) as store, trio.open_nursery() as nursery:
        await put(store, b"key")
        shown = Shown()
        core_of(store).mounts.add(shown.claim)
        async with core_of(store).writer.quiet():
            # a group of its own, which waits for its turn while the next one gathers
            await _begin(nursery, store.delete, "box", b"none")
            answered = [await _begin(nursery, store.delete, "box", b"key") for _ in range(2)]
        await _told(shown)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not any(each.is_set() for each in answered)
        shown.may.set()
        for each in answered:
            await each.wait()


async def test_who_asks_knows(tmp_path: Path) -> None:
    """Its kernel may hold the directory until the call is answered."""
    async with new_store(tmp_path) as store, trio.open_nursery() as nursery:
        asks, others = Shown(), Shown()
        mounts, root = core_of(store).mounts, store.files.root("box")
        mounts.add(asks.claim)
        await core_of(store).submit(fr.MakeNode(root, b"made", 0o100644, 0, 0), asks)
        assert asks.told == []
        mounts.add(others.claim)
        request = fr.MakeNode(root, b"second", 0o100644, 0, 0)
        answered = await _begin(nursery, core_of(store).submit, request, asks)
        await _told(others)
        assert not answered.is_set()
        others.may.set()
        await answered.wait()
        assert asks.told == []


async def test_who_hangs_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "SHOWN_S_MAX", 1.0)
    async with new_store(tmp_path) as store:
        shown = Shown()
        mounts = core_of(store).mounts
        mounts.add(shown.claim)
        begun_s = trio.current_time()
        await put(store, b"first")
        assert trio.current_time() - begun_s >= 1
        assert mounts.status() == {"shown": [{"bucket": "box", "writes": False, "is_late": True}], "gone": 0, "late": 1}
        begun_s = trio.current_time()
        for number in range(10):
            await put(store, b"%d" % number)
        assert trio.current_time() - begun_s < 1
        shown.may.set()
        await trio.sleep(0.1)
        assert len(shown.told) == 11
        assert mounts.status()["shown"][0]["is_late"] is False
        shown.may = trio.Event()
        begun_s = trio.current_time()
        await put(store, b"waited for again")
        assert trio.current_time() - begun_s >= 1
        assert mounts.status()["late"] == 2


async def test_after_a_repair_everything_is_in_doubt(tmp_path: Path) -> None:
    """The log has what nobody has noted."""
    async with new_store(tmp_path) as store:
        shown = Shown()
        shown.may.set()
        core_of(store).mounts.add(shown.claim)
        await make(store, b"file")
        shown.told.clear()
        core_of(store).writer.resume()
        await _told(shown)
        assert shown.told == [Changes(everything=True)]
