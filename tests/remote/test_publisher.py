"""Publishing: what can be recovered is what was, gets never older, and in the end is all of it, wherever it is cut."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from backends import OpenBackend
from publish_rig import QUICK, STORE, PublishRig, run
from upload_rig import Crash, crash_at

from couchestord.errors import Corrupt, RemoteDenied, RemoteError, RemoteUnavailable
from couchestord.io.checksum import xxh3_64
from couchestord.remote.root import Entry, RootName, Run
from couchestord.service import Progress


async def test_a_store_that_took_no_snapshot_yet(tmp_path: Path) -> None:
    rig = PublishRig()
    publisher = await rig.start()
    await run(publisher)
    root, end = await rig.recover(tmp_path / "file")
    assert (root.sequence, root.pieces, end) == (0, (), 0)
    rig.commit(40)
    await run(publisher)
    root, end = await rig.recover(tmp_path / "file")
    assert (root.sequence, end) == (0, 40)
    assert rig.count("log") > 3, "a run has a bound"
    assert publisher.sequence == 40
    assert publisher.rooted_sequence == 0


async def test_a_snapshot_and_the_log_behind_it(tmp_path: Path) -> None:
    rig = PublishRig()
    rig.commit(30)
    for _ in range(9):
        rig.take()
        rig.commit(3)
    publisher = await rig.start()
    await run(publisher)
    root, end = await rig.recover(tmp_path / "file")
    assert (root.sequence, end) == (54, 57)
    assert root.size_bytes == 9 * 700
    assert root.made_ns > 0
    assert publisher.rooted_sequence == 54
    assert publisher.sequence == 57


async def test_what_has_not_changed_is_not_put_again(tmp_path: Path) -> None:
    rig = PublishRig()
    for _ in range(20):
        rig.commit()
        rig.take()
    publisher = await rig.start()
    await run(publisher)
    before = set(rig.backend.objects)
    rig.commit()
    rig.take()
    rig.backend.calls.clear()
    await run(publisher)
    put = [key for call, key in rig.backend.calls if call == "put_new" and key.startswith("pieces/")]
    assert 1 <= len(put) <= 3, "what was changed, and the end of the file"
    assert not before & set(put)
    root, _ = await rig.recover(tmp_path / "file")
    assert root.sequence == 21


async def test_two_roots_are_kept_and_what_they_need(tmp_path: Path) -> None:
    rig = PublishRig()
    for start in range(3):
        publisher = await rig.start()
        for _ in range(4):
            rig.commit(12)
            await run(publisher)
            rig.take()
            rig.commit(12)
            await run(publisher)
        assert rig.count("roots") == 2, start
    roots = [await rig.roots.read_root(name) for name in await rig.roots.names()]
    assert [root.sequence for root in roots] == [276, 252]
    assert publisher.kept_from == 252
    needed = {digest for root in roots for digest in root.pieces}
    assert await rig.roots.pieces() == needed
    assert publisher.removed_objects_count > 20
    for root in roots:
        end = root.sequence
        async for sequence, _, _ in rig.roots.entries(root):
            end = sequence
        assert end == 288, "the log from the older one on is kept too"
    first = (await rig.roots.runs())[0]
    assert 240 < first.first <= 253, "and none before it"
    await rig.recover(tmp_path / "file")


async def test_a_run_waits_for_others_up_to_its_age() -> None:
    async def watch() -> None:
        rig = PublishRig()
        publisher = await rig.start(replace(QUICK, run_age_s=60.0, run_bytes=100_000))
        await run(publisher)
        rig.commit(3)
        await run(publisher)
        await trio.sleep(59)
        rig.commit(3)
        await run(publisher)
        assert rig.count("log") == 0
        assert publisher.sequence == 0
        await trio.sleep(2)
        await run(publisher)
        assert rig.count("log") == 1
        assert publisher.sequence == 6
        rig.commit(2000)
        await run(publisher)
        assert rig.count("log") == 2, "before its age, when it is long enough"

    await trio.to_thread.run_sync(lambda: trio.run(watch, clock=trio.testing.MockClock(autojump_threshold=0)))


async def test_a_newer_root_is_asked_for_when_somebody_waits_for_it() -> None:
    """What the catalog in the backend names may not be deleted there."""

    async def watch() -> None:
        rig = PublishRig()
        awaited = [False]
        publisher = await rig.start(replace(QUICK, root_age_s=3600.0), lambda: awaited[0])
        await run(publisher)
        await trio.sleep(4000)
        rig.commit()
        await run(publisher)
        assert rig.asked_count == 0, "nobody waits"
        awaited[0] = True
        await run(publisher)
        assert rig.asked_count == 1
        rig.take()
        await run(publisher)
        await trio.sleep(3000)
        await run(publisher)
        assert rig.asked_count == 1, "it is not old yet"

    await trio.to_thread.run_sync(lambda: trio.run(watch, clock=trio.testing.MockClock(autojump_threshold=0)))


async def test_a_newer_root_is_asked_for_when_many_runs_lie_behind_the_last_one() -> None:
    rig = PublishRig()
    publisher = await rig.start(replace(QUICK, runs_max=3))
    await run(publisher)
    for count in range(1, 4):
        assert rig.asked_count == 0
        rig.commit()
        await run(publisher)
        assert rig.count("log") == count
    await run(publisher)
    assert rig.asked_count == 1
    await run(publisher)
    assert rig.asked_count == 1, "not again at once"
    rig.take()
    await run(publisher)
    rig.commit()
    await run(publisher)
    assert rig.asked_count == 1


async def test_in_every_backend(open_backend: OpenBackend, tmp_path: Path) -> None:
    async with open_backend() as backend:
        rig = PublishRig(bucket=backend)
        for _ in range(2):
            publisher = await rig.start()
            for _ in range(3):
                rig.commit(30)
                rig.take()
                rig.commit(10)
                await run(publisher)
                root, end = await rig.recover(tmp_path / "file")
                assert root.sequence == max(rig.snapshots)
                assert end == len(rig.log)
        assert len(await rig.roots.names()) == 2


def scene(rig: PublishRig, turn: int) -> None:
    """What the store does between two steps of the job."""
    rig.commit(5)
    if turn % 2:
        rig.take()
        rig.commit(2)


async def play(rig: PublishRig) -> None:
    """A start, and some turns of a store whose log and snapshots grow."""
    publisher = await rig.start()
    for turn in range(4):
        scene(rig, turn)
        for _ in range(60):
            if await publisher.work() is Progress.IDLE and not publisher.trouble:
                break


async def test_wherever_it_ends_what_can_be_recovered_gets_never_older(tmp_path: Path) -> None:
    for number in itertools.count(1):
        rig = PublishRig()
        await play(rig)
        _, known = await rig.recover(tmp_path / "file")
        rig.at = crash_at(number)
        try:
            await play(rig)
            assert number > 80
            return
        except Crash:
            rig.at = lambda _event: None
        _, end = await rig.recover(tmp_path / "file")
        assert end >= known, number
        await run(await rig.start())
        root, end = await rig.recover(tmp_path / "file")
        assert (root.sequence, end) == (max(rig.snapshots), len(rig.log)), number
        assert rig.count("roots") == 2


@pytest.mark.parametrize("seed", range(20))
async def test_failures_at_any_time(seed: int, tmp_path: Path) -> None:
    rig = PublishRig(seed)
    rig.commit(3)
    left = [200]
    known = 0

    def at(event: str) -> None:
        left[0] -= 1
        chance = rig.random.random()
        if left[0] < 0:
            return
        if chance < 0.05:
            rig.commit(3)
        elif chance < 0.08:
            rig.take()
        elif chance < 0.2 and event != "piece":
            raise RemoteUnavailable(event)

    publisher = await rig.start()
    rig.at = at
    while left[0] > 0:
        await publisher.work()
        if publisher.roots_count:
            _, end = await rig.recover(tmp_path / "file")
            assert end >= known
            known = end
            assert publisher.sequence <= end, "it promises no more than there is"
        rig.commit(rig.random.randrange(3))
    await run(publisher)
    root, end = await rig.recover(tmp_path / "file")
    assert end == len(rig.log)
    assert root.sequence == max(rig.snapshots)


async def test_a_copy_of_the_store_ends_it() -> None:
    rig = PublishRig()
    rig.commit()
    publisher = await rig.start()
    rig.backend.objects[f"claims/{STORE.hex()}/{99:016x}"] = b"x"
    assert await publisher.work() is Progress.IDLE
    assert "copy of this store" in publisher.trouble
    assert rig.count("roots") == rig.count("log") == 0


@pytest.mark.parametrize("kind", ["run", "litter"])
async def test_the_claim_is_checked_before_each_write(kind: str) -> None:
    rig = PublishRig()
    rig.commit()
    rig.take()
    publisher = await rig.start()
    await run(publisher)
    rig.commit()
    if kind == "litter":
        for _ in range(3):
            rig.take()
            assert await publisher.work() is Progress.BUSY
            rig.commit()
    rig.backend.objects[f"claims/{STORE.hex()}/{99:016x}"] = b"x"
    rig.backend.calls.clear()
    assert await publisher.work() is Progress.IDLE
    assert "copy of this store" in publisher.trouble
    assert {call for call, _ in rig.backend.calls} == {"list"}


async def test_a_piece_that_comes_back_wrong_gets_no_root(tmp_path: Path) -> None:
    rig = PublishRig()
    rig.commit()
    rig.take()
    publisher = await rig.start()

    def spoil(event: str) -> None:
        if event.startswith("after put_new pieces/"):
            rig.backend.objects[event.split()[-1]] = b"rot"

    rig.at = spoil
    assert await publisher.work() is Progress.IDLE
    assert "checksum" in publisher.trouble
    assert rig.count("roots") == 0
    rig.at = lambda _event: None
    await run(publisher)
    assert (await rig.recover(tmp_path / "file"))[0].sequence == 1


async def test_failures_are_told_and_tried_again_later(caplog: pytest.LogCaptureFixture) -> None:
    rig = PublishRig()
    publisher = await rig.start(replace(QUICK, retry_s=3600.0))

    def deny(event: str) -> None:
        if event.startswith("before put_new"):
            raise RemoteDenied("403 AccessDenied")

    rig.at = deny
    assert await publisher.work() is Progress.IDLE
    rig.at = lambda _event: None
    assert await publisher.work() is Progress.IDLE, "not before its time"
    assert rig.count("roots") == 0
    assert publisher.trouble == "403 AccessDenied"
    assert "AccessDenied" in caplog.text


async def test_the_bucket_was_away_while_the_log_was_trimmed(tmp_path: Path) -> None:
    rig = PublishRig()
    publisher = await rig.start()
    rig.commit(5)
    await run(publisher)

    def away(event: str) -> None:
        if not event.startswith("piece"):
            raise RemoteUnavailable("away")

    rig.at = away
    rig.commit(5)
    await publisher.work()
    rig.commit(5)
    rig.take()
    rig.commit(5)
    await publisher.work()
    rig.at = lambda _event: None
    await run(publisher)
    root, end = await rig.recover(tmp_path / "file")
    assert (root.sequence, end) == (15, 20)


async def test_what_was_gathered_before_a_snapshot_stays_with_the_root_before_it(tmp_path: Path) -> None:
    rig = PublishRig()
    publisher = await rig.start(replace(QUICK, run_age_s=3600.0, run_bytes=100_000))
    await run(publisher)
    rig.commit(10)
    await run(publisher)
    assert rig.count("log") == 0
    rig.commit(10)
    rig.take()
    rig.commit(10)
    await run(publisher)
    assert (await rig.recover(tmp_path / "file"))[1] == 20, "what came since waits for its age"
    del rig.backend.objects[(await rig.roots.names())[0].key]
    assert (await rig.recover(tmp_path / "file"))[1] == 10


async def test_a_root_whose_answer_was_lost_is_put_again() -> None:
    rig = PublishRig()
    rig.commit()
    rig.take()
    publisher = await rig.start()

    def lose(event: str) -> None:
        if event.startswith("after put_new roots/"):
            raise RemoteUnavailable("no answer")

    rig.at = lose
    assert await publisher.work() is Progress.IDLE
    rig.at = lambda _event: None
    await run(publisher)
    assert publisher.roots_count == 1


@pytest.mark.parametrize("error", [RemoteDenied, RemoteUnavailable])
@pytest.mark.parametrize("kind", ["roots", "pieces", "log"])
async def test_what_cannot_be_removed_keeps_nothing_from_being_put(
    kind: str, error: type[RemoteError], tmp_path: Path
) -> None:
    """One object under a retention lock: what could be recovered got older and older."""
    rig = PublishRig()
    publisher = await rig.start()
    locked: list[str] = []

    def refuse(call: str, key: str) -> None:
        if call == "delete" and key.startswith(kind):
            locked[:] = locked or [key]
            if key in locked:
                raise error(key)

    rig.backend.before = refuse
    for _ in range(4):
        rig.commit(12)
        await run(publisher)
        rig.take()
        rig.commit(12)
        await run(publisher)
    assert publisher.sequence == len(rig.log)
    root, end = await rig.recover(tmp_path / "file")
    assert (root.sequence, end) == (84, 96)
    assert locked
    assert locked[0] in rig.backend.objects
    kept = await rig.roots.names()
    assert publisher.kept_from == kept[-1].sequence == (0 if kind == "roots" else 60)
    assert len(kept) == (3 if kind == "roots" else 2), "others went"
    rig.backend.before = lambda _call, _key: None
    await run(publisher)
    assert locked[0] not in rig.backend.objects
    assert publisher.kept_from == 60


async def test_nothing_goes_while_a_newer_program_has_a_root_there(caplog: pytest.LogCaptureFixture) -> None:
    rig = PublishRig()
    for _ in range(3):
        rig.commit()
        rig.take()
        await run(await rig.start())
    oldest = (await rig.roots.names())[-1]
    packed = rig.backend.objects[oldest.key]
    head = packed[:4] + b"\x02\0" + packed[6:12]
    rig.backend.objects[oldest.key] = head + xxh3_64(head + packed[20:], 2).to_bytes(8, "little") + packed[20:]
    await run(await rig.start())
    publisher = await rig.start()
    await run(publisher)
    assert publisher.kept_from == 0
    assert rig.count("roots") == 4
    assert "newer" in caplog.text


async def test_a_root_that_is_rotten_is_not_among_those_kept() -> None:
    rig = PublishRig()
    for _ in range(3):
        rig.commit()
        rig.take()
        await run(await rig.start())
    newest, before = await rig.roots.names()
    rig.backend.objects[newest.key] = b"rot"
    await run(await rig.start())
    assert [name.epoch for name in await rig.roots.names()] == [newest.epoch + 1, before.epoch]


async def test_runs_of_a_start_that_came_later_stay() -> None:
    rig = PublishRig()
    rig.commit()
    rig.take()
    publisher = await rig.start()
    await publisher.work()
    later = Run(STORE, rig.epoch + 1, 1, 1, (Entry(b"", 1),))
    await rig.roots.put_run(later)
    await run(publisher)
    assert publisher.kept_from == 1
    assert await rig.roots.runs() == [later.name]


async def test_a_root_that_is_not_the_newest_removes_nothing() -> None:
    rig = PublishRig()
    rig.commit()
    rig.take()
    await run(await rig.start())
    before = dict(rig.backend.objects)
    with pytest.raises(Corrupt, match="newest"):
        await rig.roots.collect(RootName(STORE, 1, 1))
    assert rig.backend.objects == before
