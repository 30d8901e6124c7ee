"""The single writer on simulated disks: what is answered, when, and what is left when something fails.

Seen to fail with: refusals answered before the sync; the catalog kept when the journal failed; `drain` that does not
wait for what was queued.
"""

import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from catalog_check import check_catalog
from decide_rig import STORE_ID, StepClock, put_request
from log_rig import new_disks, start_log
from simdisk import SimDisk

from couchestord.errors import (
    BucketAlreadyOwnedByYou,
    Corrupt,
    EntityTooLarge,
    InternalError,
    JournalFull,
    NoSpace,
    NoSuchBucket,
    ShuttingDown,
    TooFewDisks,
    WritesStopped,
)
from couchestord.io import mutations as mu
from couchestord.io import requests as rq
from couchestord.io.catalog.catalog import Catalog
from couchestord.io.catalog.reserve import Reserve
from couchestord.io.disks import Disks
from couchestord.io.records import BODY_BYTES_MAX, META_BYTES_MAX
from couchestord.model import Attributes, Conditions, Policy
from couchestord.store import writer
from couchestord.store.decide import Decider
from couchestord.store.fill import Fill
from couchestord.store.mounts import Mounts
from couchestord.store.writer import GATHER_S_MAX, Writer


class Rig:
    def __init__(self, sims: list[SimDisk], disks: Disks, catalog: Catalog, writer: Writer, journal: Any) -> None:
        self.sims = sims
        self.disks = disks
        self.catalog = catalog
        self.writer = writer
        self.journal = journal
        self.answers: dict[object, object] = {}

    def freeze(self, frozen: bool) -> None:
        for sim in self.sims:
            sim.frozen = frozen

    async def ask(self, name: object, request: object) -> None:
        """Submit; the answer or the refusal is in `answers`."""
        try:
            self.answers[name] = await self.writer.submit(request)
        except Exception as error:
            self.answers[name] = error

    def read(self, key: bytes) -> Any:
        bucket = self.catalog.reading.bucket("bucket")
        return bucket and self.catalog.reading.live(bucket.root, key)


@asynccontextmanager
async def open_rig(folder: Path) -> AsyncIterator[tuple[Rig, trio.Nursery]]:
    sims = await new_disks(1)
    log = await start_log(sims)
    path = folder / "catalog.sqlite"
    Catalog.create(path, STORE_ID, Policy())
    catalog = Catalog(path)
    it = Writer(
        catalog,
        log.journal,
        log.disks,
        Decider(catalog, StepClock(), lambda: log.disks.epoch, Mounts(folder / "mounts.json")),
        Reserve(catalog.path, 1 << 20),
    )
    rig = Rig(sims, log.disks, catalog, it, log.journal)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.run)
        yield rig, nursery
        rig.freeze(False)
        nursery.cancel_scope.cancel()
    catalog.close()
    check_catalog(path)


async def test_a_full_file_system_of_the_catalog_gives_its_reserve_to_deletes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New data gets none of it, before and after."""
    free_bytes = 20 << 20
    reserve = Reserve(tmp_path / "catalog.sqlite", 1 << 20)
    monkeypatch.setattr(Reserve, "free_bytes", lambda self: free_bytes + self.lacking_bytes())
    async with open_rig(tmp_path) as (rig, _):
        assert reserve.make(0)
        await rig.writer.submit(rq.MakeBucket("bucket", ""))

        async def tried(key: bytes) -> tuple[bool, ...]:
            await rig.ask("put", put_request("bucket", key, b"body"))
            kept = reserve.is_whole()
            await rig.ask("delete", rq.DeleteObject("bucket", b"there", None, Conditions()))
            assert kept, "new data may not have it"
            return tuple(not isinstance(rig.answers[name], NoSpace) for name in ("put", "delete"))

        assert await tried(b"1") == (True, True)
        assert reserve.is_whole()
        free_bytes = (8 << 20) - 1
        assert await tried(b"2") == (False, True)
        assert not reserve.is_whole()
        await rig.ask("put", put_request("bucket", b"3", b"body"))
        assert isinstance(rig.answers["put"], NoSpace)
        free_bytes = 6 << 20
        await rig.ask("delete", rq.DeleteObject("bucket", b"there", None, Conditions()))
        assert isinstance(rig.answers["delete"], NoSpace)
        free_bytes = 20 << 20
        assert reserve.make(0)
        assert await tried(b"4") == (True, True)


async def test_a_full_journal_refuses_new_data_then_changes_and_never_what_frees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("couchestord.store.writer.SLOW_S_MAX", 0)
    async with open_rig(tmp_path) as (rig, _):
        await rig.writer.submit(rq.MakeBucket("bucket", ""))
        await rig.writer.submit(put_request("bucket", b"there", b"body"))
        for fill, put, delete in ((0.99, True, True), (1.0, False, True), (1.49, False, True), (1.5, False, False)):
            monkeypatch.setattr(type(rig.writer), "_fill", fill)
            await rig.ask("put", put_request("bucket", b"%f" % fill, b"body"))
            await rig.ask("delete", rq.DeleteObject("bucket", b"there", None, Conditions()))
            row = await rig.writer.submit(rq.MakeSegment(4, 2, 1 << 20, tuple(range(6))))
            await rig.writer.submit(rq.SealSegment(row.id, 1))
            assert await rig.writer.submit(rq.DropSegment(row.id))
            await rig.writer.submit(rq.SaveJob("snapshot", b"state"))
            assert [isinstance(rig.answers[name], JournalFull) for name in ("put", "delete")] == [not put, not delete]
        monkeypatch.undo()
        await rig.writer.submit(put_request("bucket", b"there", b"again"))


async def test_what_waits_is_committed_as_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And room is looked for once."""
    looks: list[Catalog] = []

    def look(catalog: Catalog) -> int:
        looks.append(catalog)
        return 0

    monkeypatch.setattr(Catalog, "wal_bytes", look)
    async with open_rig(tmp_path) as (rig, nursery):
        await rig.writer.submit(rq.MakeBucket("bucket", ""))
        syncs = rig.journal.syncs_count
        async with trio.open_nursery() as inner:
            for number in range(100):
                inner.start_soon(rig.ask, number, put_request("bucket", b"key %d" % number, b"x"))
        assert rig.journal.syncs_count - syncs <= 2 * 3
        assert len(looks) == rig.writer.stats.groups <= 3
        assert rig.writer.stats.mutations == 101
        assert all(rig.answers[number].key == b"key %d" % number for number in range(100))  # type: ignore[attr-defined]
        del nursery


async def test_every_answer_of_a_group_waits_for_its_sync(tmp_path: Path) -> None:
    """A refusal may rest on a mutation of the same group, which may still fail."""
    async with open_rig(tmp_path) as (rig, nursery):
        await rig.writer.submit(rq.MakeBucket("bucket", ""))
        rig.freeze(True)
        once = Conditions(if_none_match=("*",))
        nursery.start_soon(rig.ask, "first", put_request("bucket", b"k", b"1", conditions=once))
        nursery.start_soon(rig.ask, "second", put_request("bucket", b"k", b"2", conditions=once))
        nursery.start_soon(rig.ask, "third", put_request("nobody", b"k", b"2"))
        await trio.testing.wait_all_tasks_blocked()
        assert rig.answers == {}
        assert rig.read(b"k") is None, "nobody reads what is not durable"
        rig.freeze(False)
        await trio.testing.wait_all_tasks_blocked()
        kinds = sorted(type(rig.answers[name]).__name__ for name in ("first", "second", "third"))
        assert kinds == ["NoSuchBucket", "ObjectInfo", "PreconditionFailed"]
        assert rig.read(b"k").size == 1


async def test_a_failed_commit_answers_nobody_and_takes_the_catalog_back(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as (rig, _):
        await rig.writer.submit(rq.MakeBucket("bucket", ""))
        before = rig.catalog.applier.sequence, rig.catalog.applier.next_id, rig.catalog.applier.digest
        for sim in rig.sims[:4]:
            sim.gone = True
        async with trio.open_nursery() as inner:
            inner.start_soon(rig.ask, "put", put_request("bucket", b"dir/k", b"1"))
            inner.start_soon(rig.ask, "refused", put_request("nobody", b"k", b"1"))
        assert {type(answer) for answer in rig.answers.values()} == {TooFewDisks}
        assert (rig.catalog.applier.sequence, rig.catalog.applier.next_id, rig.catalog.applier.digest) == before
        assert rig.read(b"dir/k") is None
        with pytest.raises(TooFewDisks):
            await rig.writer.submit(rq.RemoveBucket("bucket"))


class Body(bytearray):
    """That it is gone can be seen."""


async def test_who_is_refused_keeps_the_bodies_of_its_group_no_longer(tmp_path: Path) -> None:
    """Not until the collector comes, either: refusals cost little, and many can be had before that."""
    made: list[weakref.ref[Body]] = []

    async def put(writer: Writer, bucket: str, number: int) -> None:
        body = Body(100_000)
        made.append(weakref.ref(body))
        with suppress(NoSuchBucket):
            await writer.submit(put_request(bucket, b"%d" % number, body))  # type: ignore[arg-type]

    async with open_rig(tmp_path) as (rig, _):
        await rig.writer.submit(rq.MakeBucket("bucket", ""))
        gc.collect()
        gc.disable()
        try:
            async with trio.open_nursery() as inner:
                for number in range(20):
                    inner.start_soon(put, rig.writer, "nobody" if number % 2 else "bucket", number)
            await trio.testing.wait_all_tasks_blocked()
            assert not any(body() for body in made)
        finally:
            gc.enable()


async def test_requests_of_a_group_see_each_other_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "GATHER_S_MAX", 0.0)
    async with open_rig(tmp_path) as (rig, nursery):
        rig.freeze(True)
        nursery.start_soon(rig.ask, 0, rq.MakeUser("ann", True))
        await trio.testing.wait_all_tasks_blocked()
        for number, request in enumerate(
            (
                rq.MakeBucket("bucket", ""),
                rq.MakeBucket("bucket", ""),
                put_request("bucket", b"d/k", b"1"),
                rq.DeleteObject("bucket", b"d/k", None, Conditions()),
                rq.RemoveBucket("bucket"),
                put_request("bucket", b"d/k", b"1"),
            ),
            start=1,
        ):
            nursery.start_soon(rig.ask, number, request)
            await trio.testing.wait_all_tasks_blocked()
        rig.freeze(False)
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(rig.answers[2], BucketAlreadyOwnedByYou)
        assert isinstance(rig.answers[6], NoSuchBucket)
        assert rig.writer.stats.groups == 2
        assert rig.catalog.reading.buckets() == []


async def test_a_group_that_changes_many_rows_is_cut_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key may have a thousand directories of its own: a group of 256 such held the loop for seconds."""
    monkeypatch.setattr(writer, "GATHER_S_MAX", 0.0)
    async with open_rig(tmp_path) as (rig, nursery):
        await rig.writer.submit(rq.MakeBucket("bucket", ""))
        groups: list[int] = []
        append = rig.journal.append

        async def counted(first: int, entries: list[Any]) -> None:
            groups.append(len(entries))
            await append(first, entries)

        monkeypatch.setattr(rig.journal, "append", counted)

        async def all_at_once(keys: list[bytes]) -> None:
            rig.freeze(True)
            nursery.start_soon(rig.ask, b"first", put_request("bucket", b"first", b"1"))
            await trio.testing.wait_all_tasks_blocked()
            groups.clear()
            for key in keys:
                nursery.start_soon(rig.ask, key, put_request("bucket", key, b"1"))
                await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(rig.ask, b"last", rq.DeleteObject("bucket", keys[-1], None, Conditions()))
            await trio.testing.wait_all_tasks_blocked()
            rig.freeze(False)
            await trio.testing.wait_all_tasks_blocked()
            assert all(not isinstance(rig.answers[key], Exception) for key in (*keys, b"last"))
            assert [bool(rig.read(key)) for key in keys] == [True] * (len(keys) - 1) + [False], "in their order"

        deep = [b"%d" % number + b"/" * 900 for number in range(10)]
        await all_at_once(deep)
        assert max(groups) == 2
        await all_at_once([b"%03d" % number for number in range(250)])
        assert groups == [251]


def test_those_who_were_answered_are_waited_for(tmp_path: Path) -> None:
    """Until as many are here as were under way, or a sync would have been over."""
    clock = trio.testing.MockClock()

    async def main() -> None:
        async with open_rig(tmp_path) as (rig, nursery):
            settle, stats = trio.testing.wait_all_tasks_blocked, rig.writer.stats

            async def sync_for(sync_s: float, *waiting: int) -> None:
                """A group whose sync takes so long, while others come."""
                rig.freeze(True)
                nursery.start_soon(rig.ask, 0, rq.PutSetting("it", b""))
                await settle()
                for name in waiting:
                    nursery.start_soon(rig.ask, name, rq.PutSetting("it", b""))
                clock.jump(sync_s)
                rig.freeze(False)
                await settle()

            await sync_for(0.003)
            groups = stats.groups
            for name in (1, 2, 3):  # one client alone never waits, or no time would pass
                await rig.ask(name, rq.PutSetting("it", b""))
            assert stats.groups == groups + 3

            await sync_for(0.003, 4, 5)
            assert not {4, 5} & rig.answers.keys()
            nursery.start_soon(rig.ask, 6, rq.PutSetting("it", b""))
            await settle()
            assert {4, 5, 6} <= rig.answers.keys(), "as many as had been under way are here"
            assert stats.groups == groups + 5

            await sync_for(0.003, 7)
            for wait_s, answered in ((0.002, False), (0.0011, True)):
                clock.jump(wait_s)
                await settle()
                assert (7 in rig.answers) == answered, "no longer than a sync takes"
            await sync_for(4.0, 8)
            clock.jump(GATHER_S_MAX)
            await settle()
            assert 8 in rig.answers, "not for seconds, though the disks are so slow"

    trio.run(main, clock=clock)


async def test_a_request_that_cannot_be_applied_is_taken_out_alone(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as (rig, _):
        await rig.writer.submit(rq.MakeBucket("bucket", ""))
        async with trio.open_nursery() as inner:
            inner.start_soon(rig.ask, "good", put_request("bucket", b"good", b"1"))
            inner.start_soon(rig.ask, "bad", put_request("bucket", b"bad/k", extents=(mu.Extent(5, 999, 1, 0),)))
            inner.start_soon(rig.ask, "unknown", object())
            inner.start_soon(rig.ask, "better", put_request("bucket", b"better", b"1"))
        assert isinstance(rig.answers["bad"], InternalError)
        assert isinstance(rig.answers["unknown"], InternalError)
        assert rig.read(b"good")
        assert rig.read(b"better")
        assert not rig.read(b"bad/k")


async def test_a_record_too_long_to_be_read_again_is_refused(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as (rig, _):
        await rig.writer.submit(rq.MakeBucket("bucket", ""))
        attributes = Attributes(metadata={"x": "y" * META_BYTES_MAX})
        with pytest.raises(EntityTooLarge):
            await rig.writer.submit(put_request("bucket", b"k", b"1", attributes=attributes))
        await rig.writer.submit(put_request("bucket", b"k", b"1"))


async def test_of_a_group_only_what_no_record_holds_is_refused(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as (rig, _):
        await rig.writer.submit(rq.MakeBucket("bucket", ""))
        groups = rig.writer.stats.groups
        async with trio.open_nursery() as inner:
            for key, length in (
                (b"before", 1),
                (b"longest", BODY_BYTES_MAX),
                (b"longer", BODY_BYTES_MAX + 1),
                (b"k", 1),
            ):
                inner.start_soon(rig.ask, key, put_request("bucket", key, bytes(length)))
        assert rig.writer.stats.groups == groups + 1
        assert isinstance(rig.answers[b"longer"], EntityTooLarge)
        assert [bool(rig.read(key)) for key in (b"before", b"longest", b"longer", b"k")] == [True, True, False, True]


async def test_what_is_handed_in_is_told_its_answer_and_is_not_taken_while_writers_are_slowed(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as (rig, _):
        await rig.writer.submit(rq.MakeBucket("bucket", ""))
        told: list[Any] = []
        put, delete = put_request("bucket", b"k", b"1"), rq.DeleteObject("bucket", b"k", None, Conditions())
        rig.writer._filled = 0.95
        assert not rig.writer.hand_in(put, told.append)
        assert rig.writer.hand_in(delete, told.append), "it makes room"
        await trio.testing.wait_all_tasks_blocked()
        assert told[0].unwrap()
        rig.freeze(True)
        assert rig.writer.hand_in(put, told.append)
        await trio.testing.wait_all_tasks_blocked()
        assert len(told) == 1, "nobody is told before the sync"
        rig.freeze(False)
        await trio.testing.wait_all_tasks_blocked()
        assert told[1].unwrap().key == b"k"
        await rig.writer.drain()
        with pytest.raises(ShuttingDown):
            rig.writer.hand_in(put, told.append)


async def test_new_data_waits_while_room_is_made(tmp_path: Path) -> None:
    """However it comes. What gives room back does not."""

    class Held(Fill):
        is_over = False

        def is_held(self) -> bool:
            return not self.is_over

        def is_pressed(self) -> bool:
            return not self.is_over

    async with open_rig(tmp_path) as (rig, nursery):
        await rig.writer.submit(rq.MakeBucket("bucket", ""))
        put, delete = put_request("bucket", b"k", b"1"), rq.DeleteObject("bucket", b"k", None, Conditions())
        rig.writer.fill = fill = Held(rig.catalog.copies, rig.disks)
        assert not rig.writer.hand_in(put, lambda _: None)
        assert rig.writer.hand_in(delete, lambda _: None)
        nursery.start_soon(rig.writer.submit, put)
        await trio.sleep(0.3)
        assert rig.read(b"k") is None
        fill.is_over = True
        await trio.sleep(0.3)
        assert rig.read(b"k") is not None


async def test_it_is_quiet_between_two_groups_only(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as (rig, nursery):
        await rig.writer.submit(rq.MakeBucket("bucket", ""))
        told: list[Any] = []
        async with rig.writer.quiet():
            assert rig.writer.hand_in(put_request("bucket", b"a", b"1"), told.append)
            await trio.testing.wait_all_tasks_blocked()
            assert not told
        await trio.testing.wait_all_tasks_blocked()
        assert told[0].unwrap()
        rig.freeze(True)
        assert rig.writer.hand_in(put_request("bucket", b"b", b"1"), told.append)
        await trio.testing.wait_all_tasks_blocked()

        async def be_quiet() -> None:
            async with rig.writer.quiet():
                told.append("quiet")

        nursery.start_soon(be_quiet)
        await trio.testing.wait_all_tasks_blocked()
        assert len(told) == 1, "a group is being committed"
        rig.freeze(False)
        await trio.testing.wait_all_tasks_blocked()
        assert told[1].unwrap()
        assert told[2] == "quiet"


async def test_what_is_handed_in_as_the_writer_ends_is_refused(tmp_path: Path) -> None:
    told: list[Any] = []
    async with open_rig(tmp_path) as (rig, nursery):
        await rig.writer.submit(rq.MakeBucket("bucket", ""))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        assert rig.writer.hand_in(put_request("bucket", b"k", b"1"), told.append)
    with pytest.raises(ShuttingDown):
        told[0].unwrap()


async def test_one_that_cannot_be_told_keeps_nobody_else_waiting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_outcome: object) -> None:
        raise RuntimeError("a defect")

    async with open_rig(tmp_path) as (rig, _):
        await rig.writer.submit(rq.MakeBucket("bucket", ""))
        rig.writer.hand_in(put_request("bucket", b"a", b"1"), fail)
        assert await rig.writer.submit(put_request("bucket", b"b", b"1"))
        assert rig.read(b"a")
    assert "could not be told" in caplog.text
    caplog.clear()


async def test_a_cancelled_submitter_waits_for_its_answer(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as (rig, nursery):
        await rig.writer.submit(rq.MakeBucket("bucket", ""))
        rig.freeze(True)
        with trio.CancelScope() as scope:
            nursery.start_soon(trio.testing.wait_all_tasks_blocked)

            async def cancel_then_thaw() -> None:
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                await trio.testing.wait_all_tasks_blocked()
                rig.freeze(False)

            nursery.start_soon(cancel_then_thaw)
            info = await rig.writer.submit(put_request("bucket", b"k", b"1"))
            assert info.key == b"k"
        assert rig.read(b"k").size == 1


async def test_drain_waits_for_all_that_was_taken_and_refuses_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "GATHER_S_MAX", 0.0)
    async with open_rig(tmp_path) as (rig, nursery):
        await rig.writer.submit(rq.MakeBucket("bucket", ""))
        rig.freeze(True)
        nursery.start_soon(rig.ask, 1, put_request("bucket", b"1", b"1"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(rig.ask, 2, put_request("bucket", b"2", b"1"))  # waits for the next group
        await trio.testing.wait_all_tasks_blocked()
        drained = trio.Event()

        async def drain() -> None:
            await rig.writer.drain()
            assert rig.read(b"1")
            assert rig.read(b"2")
            drained.set()

        nursery.start_soon(drain)
        await trio.testing.wait_all_tasks_blocked()
        assert not drained.is_set()
        with pytest.raises(ShuttingDown):
            await rig.writer.submit(put_request("bucket", b"3", b"1"))
        rig.freeze(False)
        await trio.testing.wait_all_tasks_blocked()
        assert drained.is_set()
        assert set(rig.answers) == {1, 2}
        assert rig.writer.stopped_because


async def test_drain_waits_for_what_was_queued_a_moment_ago(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as (rig, nursery):
        await rig.writer.submit(rq.MakeBucket("bucket", ""))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(rig.ask, 1, put_request("bucket", b"1", b"1"))
        while rig.writer._idle.is_set():
            await trio.lowlevel.checkpoint()
        await rig.writer.drain()
        await trio.testing.wait_all_tasks_blocked()
        assert set(rig.answers) == {1}


async def test_a_catalog_that_fails_behind_the_commit_point_stops_writes(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as (rig, _):
        await rig.writer.submit(rq.MakeBucket("bucket", ""))
        records = rig.journal._files[-1].end

        def fail() -> None:
            rig.catalog.rollback()
            raise Corrupt("disk I/O error")

        rig.catalog.commit = fail  # type: ignore[method-assign]
        with pytest.raises(Corrupt):
            await rig.writer.submit(put_request("bucket", b"k", b"1"))
        assert rig.journal._files[-1].end == records + 1, "it is in the log"
        with pytest.raises(WritesStopped):
            await rig.writer.submit(put_request("bucket", b"k", b"1"))
        assert rig.catalog.reading.bucket("bucket")


async def test_a_writer_that_ends_finishes_what_waits(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as (rig, nursery):
        rig.freeze(True)
        nursery.start_soon(rig.ask, 1, rq.MakeBucket("bucket", ""))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(rig.ask, 2, rq.MakeBucket("bucket-2", ""))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        rig.freeze(False)
    assert {number: type(it).__name__ for number, it in rig.answers.items()} == {1: "BucketInfo", 2: "BucketInfo"}
    with pytest.raises(ShuttingDown):
        await rig.writer.submit(rq.MakeBucket("bucket-3", ""))
