"""The job that joins pieces of files, in a real store whose jobs are stepped by hand."""

import random
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from bucket_rig import BucketRig, seal_all, upload
from file_rig import laid, make, there, write
from replica_rig import pair
from small_store import STRIPE_BYTES, body_of, core_of, faults_of, finish, make_store, new_store, read

from couchestord.errors import DataLost, NoSpace
from couchestord.frontends.posix.drafts import Draft
from couchestord.frontends.posix.publishing import publish
from couchestord.io import filerequests as fr
from couchestord.io.catalog.files import WornRow
from couchestord.io.mutations import IN_BLOB
from couchestord.io.sqlite import Connection
from couchestord.model import PART_BYTES_MIN, Policy
from couchestord.service import Progress
from couchestord.store import ObjectStore
from couchestord.store.joining import PASSED_OVER_S, Joiner

FREE = 8
KEY = b"file"


@pytest.fixture(autouse=True)
def few_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """And who writes waits for nothing."""
    monkeypatch.setattr("couchestord.io.catalog.piecerows.PIECES_FREE", FREE)
    monkeypatch.setattr("couchestord.store.files.SETTLE_S", 0)


def joiner_of(store: ObjectStore) -> Joiner:
    return core_of(store).jobs.joiner


def worn(store: ObjectStore, id_: int) -> WornRow:
    found = core_of(store).catalog.files.worn(id_)
    assert found is not None
    return found


def pieces_count(store: ObjectStore, id_: int) -> int:
    found = core_of(store).catalog.files.worn(id_)
    return 1 if found is None else found.pieces


def bound(file: "Written") -> int:
    """Of the pieces of a file that was joined: those for which it takes too much to do more."""
    return 2 + len(file.data) // (32 << 10)


def held_bytes(store: ObjectStore) -> int:
    """Of all contents there are."""
    rows = core_of(store).catalog.reading._rows("select coalesce(sum(length), 0) from content")
    return int(rows[0][0])


class Written:
    """A file that is written over, and what it must hold."""

    def __init__(self, store: ObjectStore, id_: int, data: bytes = b"", seed: int = 0) -> None:
        self.store = store
        self.id = id_
        self.data = data
        self.rng = random.Random(seed)

    async def write(self, *parts: tuple[int, bytes]) -> None:
        await write(self.store, self.id, *parts)
        self.data = laid(*parts, over=self.data)

    async def scatter(self, count: int, length: int, at_once: int = 1) -> None:
        """Write over it here and there."""
        for _ in range(count):
            starts = [self.rng.randrange(len(self.data) - length) for _ in range(at_once)]
            await self.write(*((start, self.rng.randbytes(length)) for start in starts))

    async def check(self) -> None:
        assert await self.store.files.read(self.id, 0, 1 << 40) == self.data


async def shown(file: Written) -> object:
    """What S3 and mounts show of it, but for its bytes."""
    store = file.store
    node = store.files.node(file.id)._replace(content=None)
    return await store.head("box", KEY), node, (await store.list("box")).entries


@asynccontextmanager
async def written(path: Path, size: int = 600_000, **changes: Any) -> AsyncIterator[Written]:
    async with new_store(path, **changes) as store:
        file = Written(store, await make(store, KEY))
        await file.write((0, body_of(size)))
        yield file
        await file.check()
    assert faults_of(path) == []


# -- too many pieces ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("destage", [False, True])
async def test_pieces_are_joined_and_nobody_sees_it(tmp_path: Path, destage: bool) -> None:
    async with written(tmp_path) as file:
        store, joiner = file.store, joiner_of(file.store)
        await store.files.change(fr.LinkNode(file.id, store.files.root("box"), b"other name"))
        await file.scatter(60, 500)
        if destage:
            await store.destage()
        assert pieces_count(store, file.id) > 100
        before = await shown(file)
        await finish(joiner)
        assert await shown(file) == before
        assert pieces_count(store, file.id) <= bound(file)
        assert held_bytes(store) <= 2 * len(file.data)
        for name in (KEY, b"other name"):
            assert await read(store, name) == file.data
        status = core_of(store).jobs.status()["join-pieces"]
        assert status == {
            "running": False,
            "joined_pieces": joiner.joined_pieces_count,
            "joined_bytes": joiner.joined_bytes,
        }
        assert joiner.joined_pieces_count > 80
        await store.destage()
        await file.check()


async def test_a_file_all_of_whose_pieces_are_joined_is_one_content_again(tmp_path: Path) -> None:
    """Its entries, all of them, say so: a GET of it is one look-up."""
    async with written(tmp_path, 30_000) as file:
        store, catalog = file.store, core_of(file.store).catalog
        await store.files.change(fr.LinkNode(file.id, store.files.root("box"), b"other name"))
        await file.scatter(20, 50)
        assert await read(store, KEY) == file.data  # and is kept
        root = store.files.root("box")
        assert catalog.reading.entry(root, KEY).content is None  # type: ignore[union-attr]
        await finish(joiner_of(store))
        for name in (KEY, b"other name"):
            row = catalog.reading.entry(root, name)
            assert row is not None
            assert row.extent is not None
            assert row.extent.length == row.size == len(file.data)
            assert await read(store, name) == file.data
        assert catalog.files.worn(file.id) is None
        assert held_bytes(store) == len(file.data)


async def test_what_is_appended_bit_by_bit_is_joined(tmp_path: Path) -> None:
    async with written(tmp_path, 10) as file:
        for number in range(50):
            await file.write((len(file.data), b"line %d\n" % number))
        await finish(joiner_of(file.store))
        assert core_of(file.store).catalog.files.worn(file.id) is None


async def test_as_many_as_a_file_may_have_stay(tmp_path: Path) -> None:
    async with written(tmp_path) as file:
        await file.write(*((n * 100_000, b"x" * 40_000) for n in range(1, 4)))
        assert worn(file.store, file.id).pieces <= FREE
        sequence = core_of(file.store).catalog.committed_sequence
        await finish(joiner_of(file.store))
        assert core_of(file.store).catalog.committed_sequence == sequence


async def test_holes_stay_holes(tmp_path: Path) -> None:
    """Pieces between which there are some are searched for once, not again and again."""
    async with written(tmp_path, 10) as file:
        store = file.store
        await file.write(*((1 + n * 10_000, b"%d" % n) for n in range(1, 40)))
        joiner, held = joiner_of(store), held_bytes(store)
        assert await joiner.work() is Progress.BUSY
        assert await joiner.work() is Progress.IDLE
        assert held_bytes(store) == held
        assert worn(store, file.id).pieces == 40
        await file.write((500_000, b"one more"))
        assert await joiner.work() is Progress.IDLE
        await file.write(*((500_000 + n, b"x") for n in range(100, 120, 2)))
        await file.write(*((500_000 + n, b"y") for n in range(99, 121, 2)))
        await finish(joiner)
        assert worn(store, file.id).pieces == 42


# -- bytes that nobody can read ----------------------------------------------------------------------------------------


async def test_what_is_dead_in_contents_is_given_back(tmp_path: Path) -> None:
    """Each is written over but for a sliver: few pieces that hold much."""
    async with written(tmp_path, 100) as file:
        store = file.store
        for number in range(7):
            await file.write((number * 10_000, body_of(90_000, number)))
        assert worn(store, file.id).pieces <= FREE
        assert held_bytes(store) > 4 * len(file.data)
        await finish(joiner_of(store))
        assert held_bytes(store) <= 2 * len(file.data)
        await file.check()
        await core_of(store).destage_all()
        assert sum(row.live_bytes for row in core_of(store).catalog.reading.segments()) == held_bytes(store)


async def test_more_is_given_back_while_the_disks_are_nearly_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with written(tmp_path, 100) as file:
        store = file.store
        for number in range(8):
            await file.write((number * 60_000, body_of(100_000, number)))
        calm = held_bytes(store)
        assert 1.4 * len(file.data) < calm < 2 * len(file.data)
        await finish(joiner_of(store))
        assert held_bytes(store) == calm
        monkeypatch.setattr(joiner_of(store), "_is_pressed", lambda: True)
        await finish(joiner_of(store))
        assert held_bytes(store) <= 4 / 3 * len(file.data)


async def most_steps(store: ObjectStore) -> tuple[int, int]:
    """(hundreds of steps of SQLite's machine that readers took in one step of the job at most, those of all steps)."""
    most = total = taken = 0

    def count() -> int:
        nonlocal taken
        taken += 1
        return 0

    reader = core_of(store).catalog._reader
    assert isinstance(reader, Connection)
    reader.set_progress_handler(count, 100)
    while await joiner_of(store).work() is Progress.BUSY:
        most, total, taken = max(most, taken), total + taken, 0
    reader.set_progress_handler(None, 0)
    return most, total


async def test_a_step_counts_few_of_the_pieces_of_contents_that_lie_all_over_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of what is written at random: each page has some of most of them."""
    monkeypatch.setattr("couchestord.io.catalog.piecerows.PIECES_FREE", 1 << 20)
    monkeypatch.setattr("couchestord.store.joining.PIECES_COUNTED_MAX", 400, raising=False)
    length, each, count = 20, 200, 60
    size = length * each * count
    async with written(tmp_path, size + 1) as file:
        store = file.store
        await store.copy("box", b"copy", "box", KEY)
        for number in range(count):
            starts = [(turn * count + number) * length for turn in range(each)]
            await file.write(*((start, file.rng.randbytes(length)) for start in starts))
        monkeypatch.setattr(joiner_of(store), "_is_pressed", lambda: True)
        most, total = await most_steps(store)
        assert joiner_of(store).joined_bytes == 0, "nothing is to be gained, and all is looked at"
        assert most < 400
        assert total < 8000
        await file.write((0, body_of(size * 7 // 10)))
        most, _ = await most_steps(store)
        assert joiner_of(store).joined_bytes > 0
        assert most < 400


async def test_a_content_of_many_pieces_that_goes_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a disk image whose copy was deleted: not with each batch of it again."""
    monkeypatch.setattr("couchestord.io.catalog.piecerows.PIECES_FREE", 1 << 20)
    async with written(tmp_path, 240_000) as file:
        store = file.store
        await store.copy("box", b"copy", "box", KEY)
        for first in range(0, 240_000, 60_000):
            await file.write(*((start, b"x" * 20) for start in range(first, first + 60_000, 40)))
        await store.delete("box", b"copy")
        assert worn(store, file.id).pieces == 12_000
        monkeypatch.setattr(joiner_of(store), "_is_pressed", lambda: True)
        _, total = await most_steps(store)
        assert held_bytes(store) == len(file.data)
        assert total < 14_000


async def test_a_long_content_goes_extent_by_extent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file of many extents those go at once that were written over, and the room that the others take while they
    are moved is never much.
    """
    monkeypatch.setattr("couchestord.store.pieces.BATCH_BYTES", 1 << 20)
    async with new_store(tmp_path, segment_bytes=1 << 20) as store:
        pool = core_of(store).pool
        object.__setattr__(pool.options, "extent_bytes_max", STRIPE_BYTES)
        body = body_of(20 * STRIPE_BYTES)
        await store.put("box", KEY, body)
        file = Written(store, there(store, KEY).id, body)
        await file.write((0, b"x" * STRIPE_BYTES))
        assert held_bytes(store) == len(body), "the first extent has gone"
        await file.write(*((n * STRIPE_BYTES, b"y" * (STRIPE_BYTES * 3 // 4)) for n in range(1, 20)))
        most = held_bytes(store)
        monkeypatch.setattr(joiner_of(store), "_is_pressed", lambda: True)
        monkeypatch.setattr("couchestord.store.joining.BATCH_BYTES", STRIPE_BYTES)
        while await joiner_of(store).work() is Progress.BUSY:
            assert held_bytes(store) <= most + STRIPE_BYTES
        assert held_bytes(store) <= 4 / 3 * len(body)
        await file.check()
    assert faults_of(tmp_path) == []


async def test_a_copy_keeps_what_it_has(tmp_path: Path) -> None:
    """As long as a copy has the bytes nothing is to be gained; what both have lost is given back."""
    async with written(tmp_path, 300_000) as file:
        store = file.store
        await store.copy("box", b"copy", "box", KEY)
        copy = Written(store, there(store, b"copy").id, file.data)
        for part in range(3):
            await file.write((part * 95_000, body_of(100_000, part)))
        await finish(joiner_of(store))
        assert held_bytes(store) >= 500_000
        for part in range(3):
            await copy.write((part * 95_000, body_of(100_000, 9 + part)))
        for number in range(9):
            await copy.write((number * 10_000, body_of(90_000, 20 + number)))
        await finish(joiner_of(store))
        assert held_bytes(store) <= 2 * (len(file.data) + len(copy.data))
        await copy.check()
        await store.delete("box", b"copy")
        await finish(joiner_of(store))
        assert held_bytes(store) <= 2 * len(file.data)


def test_what_a_copy_had_is_given_back_once_it_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the file was searched in vain before, and nobody has written it since."""
    clock = trio.testing.MockClock(rate=1.0)

    async def main() -> None:
        async with written(tmp_path, 300_000) as file:
            store, joiner = file.store, joiner_of(file.store)
            monkeypatch.setattr(joiner, "_is_pressed", lambda: True)
            await store.copy("box", b"copy", "box", KEY)
            await file.write((1, body_of(299_990)))
            await finish(joiner)
            held = held_bytes(store)
            assert held > 4 / 3 * len(file.data)
            await store.delete("box", b"copy")
            await finish(joiner)
            assert held_bytes(store) == held, "a byte of it is the file's"
            clock.jump(PASSED_OVER_S)
            await finish(joiner)
            assert held_bytes(store) <= 4 / 3 * len(file.data)

    trio.run(main, clock=clock)


async def test_objects_of_parts_are_left_alone(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        begun = (await store.create_upload("box", KEY)).upload_id
        bodies = [body_of(PART_BYTES_MIN), *(body_of(PART_BYTES_MIN, n) for n in range(9)), b"end"]
        parts = [(n, (await store.put_part("box", KEY, begun, n, body)).etag) for n, body in enumerate(bodies, start=1)]
        await store.complete_upload("box", KEY, begun, parts)
        await store.copy("box", b"copy", "box", KEY)
        sequence = core_of(store).catalog.committed_sequence
        assert await joiner_of(store).work() is Progress.IDLE
        assert core_of(store).catalog.committed_sequence == sequence


# -- beside others -----------------------------------------------------------------------------------------------------


async def test_what_is_written_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with written(tmp_path) as file:
        store, joiner = file.store, joiner_of(file.store)
        submit, raced = core_of(store).writer.submit, 0
        monkeypatch.setattr("couchestord.store.pieces.BATCH_PIECES", 16)

        async def submit_late(request: object) -> Any:
            nonlocal raced
            if isinstance(request, fr.JoinPieces) and raced < 20:
                raced += 1
                middle = request.old[len(request.old) // 2]
                await file.write((middle.offset + 5, b"meanwhile %d" % raced))
            return await submit(request)

        monkeypatch.setattr(joiner, "_submit", submit_late)
        await file.scatter(60, 500)
        await finish(joiner)
        assert raced > 1
        assert pieces_count(store, file.id) <= bound(file)
        assert held_bytes(store) <= 2 * len(file.data)
        await file.check()


@pytest.mark.parametrize("way", ["cut", "unlinked", "deleted", "replaced", "gone", "one again"])
async def test_a_file_that_is_another_by_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    async with new_store(tmp_path) as store:
        file = Written(store, await make(store, KEY))
        await file.write((0, body_of(200_000)))
        await file.scatter(30, 500)
        joiner, submit = joiner_of(store), core_of(store).writer.submit

        async def submit_late(request: object) -> Any:
            joiner._submit = submit
            match way:
                case "cut":
                    await write(store, file.id, cut=1000)
                    file.data = file.data[:1000]
                case "unlinked":
                    await store.files.change(fr.UnlinkNode(store.files.root("box"), KEY, keep=True))
                case "deleted":
                    await store.delete("box", KEY)
                case "replaced":
                    await store.put("box", KEY, b"anew")
                case "gone":
                    await store.delete("box", KEY)
                    await store.destage()
                case _:
                    await write(store, file.id, (0, b"x" * 300_000), cut=0)
                    file.data = b"x" * 300_000
            return await submit(request)

        monkeypatch.setattr(joiner, "_submit", submit_late)
        await finish(joiner)
        if way in ("cut", "unlinked", "one again"):
            await file.check()  # one without a name somebody has open
        elif way == "replaced":
            assert await read(store, KEY) == b"anew"
    assert faults_of(tmp_path) == []


async def test_readers_beside_the_store_go_on(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        file = Written(both.store, await make(both.replica, KEY))
        await write(both.replica, file.id, (0, body_of(400_000)))
        file.data = body_of(400_000)
        await file.scatter(40, 500)
        await both.store.destage()
        async with await both.replica.get("box", KEY) as reader:
            pieces = aiter(reader)
            found = bytes(await anext(pieces))
            await finish(joiner_of(both.store))
            await both.store.destage()
            await core_of(both.store).pool.aclose()
            await finish(core_of(both.store).jobs.compactor)
            async for piece in pieces:
                found += piece
        assert found == file.data
        assert await both.replica.files.read(file.id, 0, 1 << 40) == file.data
        assert await read(both.replica, KEY) == file.data


async def test_older_versions_are_joined_too(tmp_path: Path) -> None:
    async with written(tmp_path, 30_000) as file:
        store = file.store
        await file.scatter(20, 50)
        await store.set_versioning("box", "Enabled")
        await store.put("box", KEY, b"newer")
        await finish(joiner_of(store))
        assert core_of(store).catalog.files.worn(file.id) is None
        assert await read(store, KEY) == b"newer"
        assert await read(store, KEY, version_id="null") == file.data


async def test_versions_of_one_file_under_several_keys_are_joined_together(tmp_path: Path) -> None:
    async with written(tmp_path, 30_000) as file:
        store = file.store
        await store.files.change(fr.LinkNode(file.id, store.files.root("box"), b"other"))
        await file.scatter(20, 50)
        await store.set_versioning("box", "Enabled")
        for key in (KEY, b"other"):
            await store.put("box", key, b"newer")
        await finish(joiner_of(store))
        assert core_of(store).catalog.files.worn(file.id) is None
        assert await read(store, KEY, version_id="null") == file.data
        await store.delete("box", KEY, version_id="null")
        assert await read(store, b"other", version_id="null") == file.data


async def test_new_contents_are_kept_as_the_bucket_says(tmp_path: Path) -> None:
    async with written(tmp_path) as file:
        store = file.store
        safe = await store.policies.add(Policy(name="safe", k=2, m=4, stripe_bytes=STRIPE_BYTES))
        await store.policies.assign("box", "safe")
        await file.scatter(60, 500)
        await finish(joiner_of(store))
        await store.destage()
        contents = core_of(store).catalog.reading._rows("select policy, sum(length) from content group by policy")
        assert dict(contents)[safe.id] > 300_000


# -- what goes wrong ---------------------------------------------------------------------------------------------------


async def test_pieces_that_cannot_be_read_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with written(tmp_path) as file:
        await file.scatter(60, 500)
        joiner, load = joiner_of(file.store), "couchestord.store.reader.ExtentSource.load"
        with monkeypatch.context() as patch:

            async def lost(*_: object) -> bytes:
                raise DataLost("too few shards")

            patch.setattr(load, lost)
            await finish(joiner)
        assert joiner.joined_bytes == 0
        assert worn(file.store, file.id).pieces > 100
        await file.scatter(40, 500)  # a quarter more
        await finish(joiner)
        assert pieces_count(file.store, file.id) <= bound(file)


def test_what_could_not_be_read_is_tried_again_once_its_disks_may_be_back(tmp_path: Path) -> None:
    clock = trio.testing.MockClock(rate=1.0)

    async def main() -> None:
        async with written(tmp_path) as file:
            await file.scatter(60, 500)
            await file.store.destage()
            joiner, disks = joiner_of(file.store), core_of(file.store).disks
            disks.failures = dict.fromkeys(range(3), "pulled")
            await finish(joiner)
            disks.failures = {}
            await finish(joiner)
            assert joiner.joined_bytes == 0, "not at once"
            clock.jump(PASSED_OVER_S)
            await finish(joiner)
            assert pieces_count(file.store, file.id) <= bound(file)

    trio.run(main, clock=clock)


async def test_without_room_it_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with written(tmp_path) as file:
        await file.scatter(60, 3000)
        joiner = joiner_of(file.store)
        with monkeypatch.context() as patch:

            async def full(*_: object, **__: object) -> Any:
                raise NoSpace("full")

            patch.setattr(core_of(file.store).pool, "take", full)
            assert await joiner.work() is Progress.IDLE
        await finish(joiner)
        assert joiner.joined_bytes > 0


async def test_clients_come_first_unless_somebody_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with written(tmp_path) as file:
        joiner, throttle = joiner_of(file.store), core_of(file.store).jobs.throttle
        monkeypatch.setattr(throttle, "_busy", lambda: True)
        monkeypatch.setattr("couchestord.io.catalog.piecerows.PIECES_FREE", 40)
        await file.scatter(30, 500)
        assert 40 < worn(file.store, file.id).pieces < 80
        assert await joiner.work() is Progress.THROTTLED
        await file.scatter(20, 500)
        assert await joiner.work() is Progress.BUSY


async def test_what_is_in_a_bucket_only_stays_there(tmp_path: Path) -> None:
    await make_store(tmp_path)
    rig = BucketRig(tmp_path, "tiered")
    async with rig.open() as store:
        file = Written(store, await make(store, KEY))
        await file.write((0, body_of(600_000)))
        await file.scatter(60, 500)
        await store.destage()
        await seal_all(store)
        await upload(store)
        rows = core_of(store).catalog.reading._rows("select distinct segment from extent")
        assert rows == [(IN_BLOB,)]
        await finish(joiner_of(store))
        assert joiner_of(store).joined_bytes == 0
        await file.scatter(60, 500)
        await finish(joiner_of(store))
        assert 0 < joiner_of(store).joined_bytes < 60 * 500
        await file.check()


# -- whoever writes ----------------------------------------------------------------------------------------------------


async def test_whoever_writes_an_overrun_file_waits_for_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with written(tmp_path) as file:
        store = file.store
        await file.scatter(3 * FREE, 500)
        assert worn(store, file.id).is_overrun
        monkeypatch.setattr("couchestord.store.files.SETTLE_S", 0.3)
        began_s = trio.current_time()
        await file.scatter(1, 500)
        assert trio.current_time() - began_s >= 0.3, "but not for ever"
        monkeypatch.setattr("couchestord.store.files.SETTLE_S", 600)
        draft, data = Draft(len(file.data)), body_of(500)
        draft.write(7, data, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, store.files, file.id, draft)
            await trio.sleep(0.2)
            assert draft.is_dirty, "what is written meanwhile goes with it"
            await finish(joiner_of(store))
        file.data = laid((7, data), over=file.data)


async def test_a_special_file_is_never_worn(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        fifo = await make(store, b"fifo", stat.S_IFIFO | 0o600)
        await store.files.settle(fifo)
        assert core_of(store).catalog.files.worn(fifo) is None
