"""Requests that are asked for again, by somebody who never heard the answer."""

import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from file_rig import there
from small_store import core_of, new_store

from couchestord.errors import EntryExists, NoSuchEntry, StaleInode, Unavailable
from couchestord.io import filerequests as fr
from couchestord.store import ObjectStore

MODE = stat.S_IFREG | 0o600


@asynccontextmanager
async def asked(path: Path) -> AsyncIterator[tuple[ObjectStore, int, int]]:
    """A store, the root of its bucket, and the last record that somebody knows of who then asked for a file `a`."""
    async with new_store(path) as store:
        root, known = store.files.root("box"), store.files.version
        await core_of(store).submit(fr.MakeNode(root, b"a", MODE, 0, 0, token=7))
        await store.put("box", b"other", b"bytes")
        yield store, root, known


async def test_what_was_done_is_answered_as_it_was(tmp_path: Path) -> None:
    async with asked(tmp_path) as (store, root, known):
        submit, version = core_of(store).submit, store.files.version
        made = await submit(fr.MakeNode(root, b"a", MODE, 0, 0, token=7, asked_after=known))
        assert made == there(store, b"a")
        assert store.files.version == version
        requests = [
            fr.LinkNode(made.id, root, b"b", token=8),
            fr.RenameNode(root, b"b", root, b"c", token=9),
            fr.SetXattr(made.id, b"user.a", b"value", must_not_exist=True, token=10),
            fr.SetXattr(made.id, b"user.a", None, token=11),
            fr.UnlinkNode(root, b"c", token=12),
            fr.MakeNode(root, b"d", stat.S_IFDIR | 0o755, 0, 0, token=13),
            fr.RemoveDirectory(root, b"d", token=14),
        ]
        for request in requests:
            before = store.files.version
            first = await submit(request)
            after = store.files.version
            if request.token == 13:
                assert (await submit(replace(request, asked_after=before))).id == first.id
            elif request.token != 8:
                assert await submit(replace(request, asked_after=before)) == first
            assert store.files.version == after == before + 1


async def test_what_was_not_done_is_done(tmp_path: Path) -> None:
    async with asked(tmp_path) as (store, root, known):
        submit = core_of(store).submit
        made = await submit(fr.MakeNode(root, b"b", MODE, 0, 0, token=8, asked_after=known))
        assert made.id == there(store, b"b").id
        with pytest.raises(EntryExists):  # somebody else made it
            await submit(fr.MakeNode(root, b"a", MODE, 0, 0, token=9, asked_after=known))
        with pytest.raises(NoSuchEntry):
            await submit(fr.UnlinkNode(root, b"none", token=10, asked_after=store.files.version))


async def test_what_was_made_and_is_gone(tmp_path: Path) -> None:
    async with asked(tmp_path) as (store, root, known):
        await store.delete("box", b"a")
        with pytest.raises(StaleInode):
            await core_of(store).submit(fr.MakeNode(root, b"a", MODE, 0, 0, token=7, asked_after=known))


async def test_a_log_that_does_not_reach_back(tmp_path: Path) -> None:
    async with asked(tmp_path) as (store, root, known):
        await core_of(store).destage_all()
        assert not core_of(store).journal.holds(known + 1)
        with pytest.raises(Unavailable, match="look before"):
            await core_of(store).submit(fr.UnlinkNode(root, b"a", token=8, asked_after=known))
        assert there(store, b"a").nlink == 1
