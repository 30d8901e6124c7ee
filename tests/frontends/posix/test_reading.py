"""Reads of files that are written, and of several at a time."""

import random
from pathlib import Path

import pytest
import trio
from file_rig import laid, make, write
from small_store import STRIPE_BYTES, body_of, new_store

from couchestord.cache import CACHES_OFF
from couchestord.errors import NoSpace
from couchestord.frontends.posix.drafts import Draft
from couchestord.frontends.posix.publishing import publish
from couchestord.frontends.posix.reading import read
from couchestord.io import filerequests as fr
from couchestord.store.files import Files


async def test_what_is_lent_is_whole_until_the_next_is_read(tmp_path: Path) -> None:
    """Several read at a time, from memory that is used again."""
    async with new_store(tmp_path, cache=CACHES_OFF) as store:
        bodies = [body_of(4 * STRIPE_BYTES, seed) for seed in range(3)]
        ids = [await make(store, b"%d" % number) for number in range(3)]
        for id_, body in zip(ids, bodies, strict=True):
            await write(store, id_, (0, body))
            assert await store.files.read(id_, 0, len(body)) == body

        async def compare(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(30):
                which, first = rng.randrange(3), rng.randrange(3 * STRIPE_BYTES)
                length = rng.choice((5000, STRIPE_BYTES, 2 * STRIPE_BYTES))
                found = await read(store.files, ids[which], None, first, length)
                assert bytes(found) == bodies[which][first : first + length]
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for seed in range(8):
                nursery.start_soon(compare, seed)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_draft_is_laid_over_what_is_published_while_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    async with new_store(tmp_path) as store:
        id_, body = await make(store, b"f"), body_of(200_000)
        await write(store, id_, (0, body))
        draft = Draft(len(body))
        first, second = (150_000, b"first" * 20_000), (190_000, b"second" * 1000)
        draft.write(*first, 1)
        states = [laid(first, over=body), laid(first, second, over=body)]

        async def check(whole: bytes) -> None:
            for at in range(0, len(whole) + 10_000, 37_000):
                found = await read(store.files, id_, draft, at, 50_000)
                assert bytes(found) == whole[at : at + 50_000]

        await check(states[0])
        change = store.files.change

        async def meanwhile(request: fr.PublishFile) -> object:
            await check(states[0])
            draft.write(*second, 2)
            await check(states[1])
            if fails:
                raise NoSpace("full")
            answer = await change(request)
            await check(states[1])
            return answer

        with monkeypatch.context() as patch:
            patch.setattr(store.files, "change", meanwhile)
            try:
                await publish(store.files, id_, draft)
            except NoSpace:
                assert fails
        await check(states[1])
        await publish(store.files, id_, draft)
        await check(states[1])
        assert await store.files.read(id_, 0, 1 << 20) == states[1]


async def test_beside_a_draft_that_was_published_nothing_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with new_store(tmp_path) as store:
        id_, draft = await make(store, b"f"), Draft(0)
        draft.write(0, body_of(1000), 1)
        await publish(store.files, id_, draft)
        lend, lent = Files.lend, []

        async def seen(self: Files, *asked: int) -> bytes | memoryview:
            lent.append(await lend(self, *asked))
            return lent[-1]

        monkeypatch.setattr(Files, "lend", seen)
        found = await read(store.files, id_, draft, 0, 1000)
        assert bytes(found) == body_of(1000)
        assert found is lent[0]
