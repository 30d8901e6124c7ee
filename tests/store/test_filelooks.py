"""Files at one look: what is kept is what the store has, wherever the bytes lie, and not too much of it."""

import random
from pathlib import Path
from typing import Any

import pytest
from file_rig import laid, make, there, write
from replica_rig import commit_parted, pair
from small_store import STRIPE_BYTES, body_of, core_of, finish, flip, new_store, segments

from couchestord.cache import CACHES_OFF, CacheConfig
from couchestord.errors import DataLost, StaleInode
from couchestord.io import filerequests as fr
from couchestord.io.catalog.generations import slot_of_file
from couchestord.store import Objects, filelooks
from couchestord.store.filelooks import FileLook, FileLooks
from couchestord.store.runs import Run, find_stretch

PARTS = [
    (5, b"short"),
    (70_000, body_of(9 * STRIPE_BYTES + 17)),
    (900_000, body_of(30_000, 1)),
    (1_000_000, body_of(3 * STRIPE_BYTES + 999, 2)),
    (1_400_000, b"end"),
]
"""Holes between them, and bytes that ride in the record."""


def looks_of(store: Objects) -> FileLooks:
    return store.files._looks


def places(store: Objects, id_: int) -> list[tuple[int, int]]:
    """Where the bytes of a file lie, as its look has it. Asks nothing else."""
    runs = looks_of(store).find(id_, 0, 1 << 40)[1]
    return [(run.extent.segment, run.extent.stripe) for run in runs if run.extent is not None]


def lend_counts(store: Objects, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each read, whether it was found in memory."""
    counts: list[bool] = []
    lend = FileLooks.lend

    def counted(self: FileLooks, runs: list[Run]) -> bytes | memoryview | None:
        found = lend(self, runs)
        counts.append(found is not None)
        return found

    monkeypatch.setattr(FileLooks, "lend", counted)
    return counts


@pytest.mark.parametrize("cache", [CACHES_OFF, CacheConfig(4 << 20)])
@pytest.mark.parametrize("destaged", [False, True])
async def test_any_range_is_lent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: CacheConfig, destaged: bool
) -> None:
    """Over holes, pieces, extents, stripes and shards; and once it is in memory, without a wait."""
    async with new_store(tmp_path, cache=cache) as store:
        id_ = await make(store, b"f")
        await write(store, id_, *PARTS)
        await write(store, id_, (200_000, b"over"), (650_000, body_of(70_000, 3)))
        whole = laid((200_000, b"over"), (650_000, body_of(70_000, 3)), over=laid(*PARTS))
        if destaged:
            await store.destage()
        files, rng = store.files, random.Random(4)
        edges = [0, len(whole), *(offset for offset, _ in PARTS), *(offset + len(data) for offset, data in PARTS)]
        assert await files.read(id_, 0, len(whole)) == whole
        counts = lend_counts(store, monkeypatch)
        for _ in range(400):
            first = max(0, rng.choice([*edges, rng.randrange(len(whole))]) + rng.randrange(-50, 50))
            length = rng.choice((1, 100, 4096, 70_000, 131_072, 400_000))
            assert bytes(await files.lend(id_, first, length)) == whole[first : first + length]
        assert sum(counts) > 0.95 * len(counts)


@pytest.mark.parametrize("beside", [False, True])
async def test_what_was_looked_at_before_is_not_what_is_read(tmp_path: Path, beside: bool) -> None:
    """Written over, cut, removed: the next read sees it, in the store's process and beside it."""
    async with pair(tmp_path) as both:
        store, files = both.store, (both.replica if beside else both.store).files
        id_ = await make(store, b"f")
        assert await files.read(id_, 0, 99) == b""
        body = body_of(5 * STRIPE_BYTES)
        await write(store, id_, (0, body))
        for changes in ([(0, b"new")], [(300, b"in the middle")], [(len(body), b"behind")], [(0, body_of(400_000, 9))]):
            assert await files.read(id_, 0, 1 << 20) == body
            await write(store, id_, *changes)
            body = laid(*changes, over=body)
        assert await files.read(id_, 0, 1 << 20) == body
        await write(store, id_, cut=1000)
        assert await files.read(id_, 0, 1 << 20) == body[:1000]
        root = store.files.root("box")
        await store.files.change(fr.UnlinkNode(root, b"f", keep=True))
        assert await files.read(id_, 0, 1 << 20) == body[:1000]
        await write(store, id_, (0, b"without a name"))
        assert await files.read(id_, 0, 20) == laid((0, b"without a name"), over=body)[:20]
        await store.files.change(fr.FreeOrphans((id_,)))
        with pytest.raises(StaleInode):
            await files.read(id_, 0, 1)


@pytest.mark.parametrize("beside", [False, True])
async def test_bytes_are_looked_for_where_they_lie_now(tmp_path: Path, beside: bool) -> None:
    async with pair(tmp_path) as both:
        store, seen = both.store, both.replica if beside else both.store
        id_, body = await make(store, b"f"), body_of(20_000)
        await write(store, id_, (0, body))
        before = places(seen, id_)
        assert before == places(seen, id_)
        await store.destage()
        assert [segment for segment, _ in before] == [0]
        assert all(segment for segment, _ in places(seen, id_))
        assert await seen.files.read(id_, 0, len(body)) == body


async def test_a_segment_that_went_is_not_read_from(tmp_path: Path) -> None:
    bodies = [body_of(150_000, number) for number in range(14)]
    async with new_store(tmp_path, cache=CACHES_OFF) as store:
        core, ids = core_of(store), [await make(store, b"%d" % number) for number in range(14)]
        for id_, body in zip(ids, bodies, strict=True):
            await write(store, id_, (0, body))
        await store.destage()
        kept = range(0, 14, 4)
        before = {number: places(store, ids[number]) for number in kept}
        for number in set(range(14)) - set(kept):
            await store.delete("box", b"%d" % number)
        await core.pool.aclose()
        there = {row.id for row in segments(store)}
        await finish(core.jobs.compactor)
        await store.destage()
        await core.pool.aclose()
        await finish(core.jobs.compactor)
        assert not there & {row.id for row in segments(store)}
        for number in kept:
            assert places(store, ids[number]) != before[number]
            assert await store.files.read(ids[number], 0, 150_000) == bodies[number]


@pytest.mark.parametrize("raises", [False, True])
async def test_a_publication_between_two_questions_is_not_read_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raises: bool
) -> None:
    """Another process publishes after the file was looked at, and before its extents are: all is asked again."""
    async with new_store(tmp_path) as store:
        id_, body = await make(store, b"f"), body_of(3 * STRIPE_BYTES)
        await write(store, id_, (0, body))
        slots, find, asked = core_of(store).catalog.generations.slots, find_stretch, 0

        def meanwhile(*args: Any) -> Any:
            nonlocal asked
            asked += 1
            found = find(*args)
            if asked == 1:
                slots[slot_of_file(id_)] += 1
                if raises:
                    raise DataLost("its content is gone")
                return found._replace(extent=None)
            return found

        monkeypatch.setattr(filelooks, "find_stretch", meanwhile)
        assert await store.files.read(id_, 0, len(body)) == body
        assert asked >= 2


@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("whole", [False, True])
async def test_a_commit_in_the_midst_of_a_read_beside_it_is_seen_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool, is_kept: bool
) -> None:
    """The file is looked at when the numbers grew already and nothing else has changed, and its extents are asked for
    when they can be seen; by the same read, or by a later one that finds what the first has kept.
    """
    async with pair(tmp_path) as both:
        await both.store.put("box", b"f", b"old" * 3000)
        looks, id_ = looks_of(both.replica), there(both.store, b"f").id
        first, found = list[FileLook](), list[tuple[int, list[Run]] | None]()
        look = FileLooks._look

        def find() -> None:
            try:
                seen, runs = looks.find(id_, 0, 1 << 20)
                found.append((seen.size, runs))
            except StaleInode:
                found.append(None)

        def go_on() -> None:
            with monkeypatch.context() as patch:
                if not is_kept:
                    patch.setattr(FileLooks, "_look", lambda self, _: first.pop() if first else look(self, id_))
                find()

        with commit_parted(both, monkeypatch, lambda: first.append(looks._look(id_)), go_on):
            if whole:
                # another file of that name
                await both.store.put("box", b"f", b"new" * 500)
            else:
                await write(both.store, id_, (8000, b"new" * 500))
        find()
        assert found[0] == found[1]
        assert whole == (found[0] is None)


async def test_what_is_lost_is_not_looked_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with new_store(tmp_path) as store:
        id_ = await make(store, b"f")
        await write(store, id_, (0, b"bytes"))
        monkeypatch.setattr(core_of(store).catalog.reading, "extents", lambda *_: [])
        with pytest.raises(DataLost, match="no extent of content"):
            await store.files.read(id_, 0, 5)


async def test_little_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filelooks, "FILES_KEPT_MAX", 8)
    monkeypatch.setattr(filelooks, "STRETCHES_KEPT_MAX", 5)
    async with new_store(tmp_path) as store:
        looks, bodies = looks_of(store), dict[int, bytes]()
        for number in range(20):
            id_ = await make(store, b"f%d" % number)
            parts = [(at, bytes([number + at % 7]) * 50) for at in range(0, 3000, 100)]
            await write(store, id_, *parts)
            bodies[id_] = laid(*parts)
        rng = random.Random(3)
        for _ in range(300):
            id_, first = rng.choice(list(bodies)), rng.randrange(3000)
            assert await store.files.read(id_, first, 120) == bodies[id_][first : first + 120]
            kept = [*looks._young.values(), *looks._old.values()]
            assert len(kept) <= 8
            assert all(len(look._stretches) == len(look._starts) <= 5 for look in kept)
        assert len(looks._young) + len(looks._old) > 4


async def test_a_look_at_what_somebody_changes_just_now_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with new_store(tmp_path) as store:
        id_ = await make(store, b"f")
        await write(store, id_, (0, b"bytes"))
        monkeypatch.setattr(type(core_of(store).catalog.generations), "is_current", lambda *_: False)
        assert await store.files.read(id_, 0, 5) == b"bytes"
        assert not looks_of(store)._young


async def test_a_look_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as nobody changes the file, whatever becomes of others, the catalog is asked once."""
    async with new_store(tmp_path) as store:
        id_, body = await make(store, b"f"), body_of(5 * STRIPE_BYTES)
        await write(store, id_, (0, body))
        assert await store.files.read(id_, 0, len(body)) == body
        with monkeypatch.context() as patch:
            patch.setattr(core_of(store).catalog.files, "node", None)
            patch.setattr(filelooks, "find_stretch", None)
            for at in range(0, len(body), 5000):
                await store.put("box", b"another", b"x")
                assert await store.files.read(id_, at, 9000) == body[at : at + 9000]


@pytest.mark.parametrize("cache", [CACHES_OFF, CacheConfig(4 << 20)])
async def test_rot_is_not_lent(tmp_path: Path, cache: CacheConfig) -> None:
    async with new_store(tmp_path, cache=cache) as store:
        id_, body = await make(store, b"f"), body_of(8 * STRIPE_BYTES)
        await write(store, id_, (0, body))
        assert await store.files.read(id_, 0, 1) == body[:1]
        for path in sorted(tmp_path.rglob("segments/*"))[:1]:
            for at in range(4096 + 100, path.stat().st_size, 2048):
                flip(path, at)
        for at in range(0, len(body), 30_000):
            assert bytes(await store.files.lend(id_, at, 30_000)) == body[at : at + 30_000]
        assert await store.files.read(id_, 0, len(body)) == body
        assert core_of(store).stripes.degraded_reads_count


async def test_long_ranges_push_nothing_out_of_memory(tmp_path: Path) -> None:
    """What is read once, in order, is read past the cache, which keeps what is asked for again."""
    async with new_store(tmp_path, cache=CacheConfig(1 << 20), stripe_bytes=1 << 20, segment_bytes=8 << 20) as store:
        id_, body = await make(store, b"f"), body_of(4 << 20)
        await write(store, id_, (0, body))
        assert await store.files.read(id_, 0, len(body)) == body
        (before,) = core_of(store).reader_parts.cache.stats()
        for at in range(0, len(body), 128 << 10):
            assert bytes(await store.files.lend(id_, at, 128 << 10)) == body[at : at + (128 << 10)]
        (after,) = core_of(store).reader_parts.cache.stats()
        assert (after.evictions_count, after.entries_count) == (before.evictions_count, before.entries_count)
