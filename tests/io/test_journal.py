"""The journal with recovery, on disks that crash and fail.

Seen to fail with: the sync of one replica left out; `sync_dir` left out of a new file; `append` back before the sync;
epochs ignored in `chain`; a sequence used again under the same epoch after a failed group; a renewed tail that voids
what it does not hold yet; a block of an index that names more than was appended.
"""

import random
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise

import pytest
import trio
from log_rig import (
    NO_PREALLOCATION,
    SMALL_FILES,
    Log,
    eager_indexer,
    entry,
    group,
    new_disks,
    open_log,
    renew,
    restarted,
)
from log_rig import start_log as start
from simdisk import SimDisk

from couchestord.errors import DataLost, DiskFailed, DiskFull, NoSpace, TooFewDisks
from couchestord.io.journalfile import Entry, JournalOptions

OPTIONS = [SMALL_FILES, NO_PREALLOCATION]
Contents = dict[int, tuple[bytes, bytes]]


def as_contents(first: int, entries: list[Entry]) -> Contents:
    return {first + number: (it.meta, bytes(it.body)) for number, it in enumerate(entries)}


async def fill(log: Log, first: int, count: int, body: bytes = b"x" * 2000) -> Contents:
    """Groups of one record each; returns what they hold."""
    held: Contents = {}
    for sequence in range(first, first + count):
        entries = [entry(b"meta %d" % sequence, body)]
        await log.journal.append(sequence, entries)
        held |= as_contents(sequence, entries)
    return held


# -- a randomised model ------------------------------------------------------------------------------------------------


class Model:
    """What must be found after a crash: every acknowledged record, then a prefix of one group that was not."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.options = self.rng.choice(OPTIONS)
        self.held: Contents = {}
        self.end = 1
        self.tried: list[list[Entry]] = []
        self.trimmed = 0
        self.groups = 0

    def check(self, log: Log, found: Contents) -> None:
        assert all(high <= self.trimmed for _, high in log.chain.damage), log.chain.damage
        end = max(found, default=0) + 1
        assert end >= self.end, f"records {end} to {self.end - 1} are lost"
        for sequence in range(max(1, self.trimmed), self.end):
            assert found[sequence] == self.held[sequence]
        tail = [found[sequence] for sequence in range(self.end, end)]
        if tail:
            groups = [list(as_contents(0, tried).values()) for tried in self.tried]
            assert any(tail == tried[: len(tail)] for tried in groups), "a tail of no group, or of two"

    def settle(self, found: Contents) -> None:
        """A start renewed the tail: it stays."""
        for sequence in range(self.end, max(found, default=0) + 1):
            self.held[sequence] = found[sequence]
        self.end = max(self.end, max(found, default=0) + 1)
        self.tried = []

    async def append(self, log: Log, steps: int | None) -> bool:
        """One group; cut off after that many steps of the scheduler. False when it was."""
        self.groups += 1
        entries = group(self.rng, f"g{self.groups}")
        self.tried.append(entries)
        if not await cut_off(lambda: log.journal.append(self.end, entries), steps):
            return False
        self.held |= as_contents(self.end, entries)
        self.end += len(entries)
        self.tried = []
        return True

    async def life(self, sims: list[SimDisk]) -> list[SimDisk]:
        """A start, appends under faults, a crash. Returns all disks as the crash leaves them."""
        away = self.rng.sample(range(len(sims)), self.rng.choice((0, 0, 1, 2)))
        alive = [sim for index, sim in enumerate(sims) if index not in away]
        log = await open_log(alive, self.options)
        found = await log.contents()
        self.check(log, found)
        if await cut_off(lambda: renew(log), self.rng.choice((None, None, self.rng.randrange(40)))):
            self.settle(found)
            await self.work(log, alive, 2 - len(away))
        return [sim.crash() for sim in sims]

    async def work(self, log: Log, alive: list[SimDisk], faults: int) -> None:
        for _ in range(self.rng.randrange(12)):
            if faults and self.rng.random() < 0.2:
                faults -= 1
                error = self.rng.choice((DiskFailed("EIO"), DiskFull("ENOSPC")))
                self.rng.choice(alive).fail_at(self.rng.randint(1, 4), error, short=self.rng.random() < 0.5)
            if self.rng.random() < 0.1:
                self.trimmed = max(self.trimmed, self.rng.randrange(self.end + 1))
                await log.journal.trim(self.trimmed)
            if self.rng.random() < 0.1:
                log.journal.roll()
            if self.rng.random() < 0.3:
                await eager_indexer(log).work()
            if self.rng.random() < 0.2:
                await log.journal.spares.work()
            if not await self.append(log, self.rng.randrange(30) if self.rng.random() < 0.1 else None):
                return


async def cut_off(call: Callable[[], Awaitable[None]], steps: int | None) -> bool:
    """Run `call`; with `steps`, cancel it after so many. True when it came to its end."""
    done = False

    async def cancel(scope: trio.CancelScope) -> None:
        for _ in range(steps or 0):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        if steps is not None:
            nursery.start_soon(cancel, nursery.cancel_scope)
        await call()
        done = True
        nursery.cancel_scope.cancel()
    return done


@pytest.mark.parametrize("seeds", range(10))
async def test_acknowledged_groups_survive_crashes_failures_and_disks_that_go_and_come(seeds: int) -> None:
    for seed in range(seeds * 20, seeds * 20 + 20):
        model = Model(seed)
        sims = await new_disks(seed)
        for _ in range(5):
            sims = await model.life(sims)
        log = await open_log(sims, model.options)
        model.check(log, await log.contents())


# -- crashes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
async def test_a_renewal_cut_off_anywhere_loses_nothing(options: JournalOptions) -> None:
    """The renewed tail takes the old one's place only when it is whole."""
    sims = await new_disks(1)
    log = await start(sims, options)
    entries = group(random.Random(1), "acknowledged", 4)
    await log.journal.append(1, entries)
    for steps in range(40):
        again = restarted(sims)
        found = await open_log(again, options)
        await cut_off(partial(renew, found), steps)
        after = await open_log([sim.crash() for sim in again], options)
        assert await after.contents() == as_contents(1, entries), f"cut off after {steps} steps"


async def test_a_tail_that_a_start_did_not_see_never_comes_back() -> None:
    """A record lies on one disk only, which was away when the log went on without it."""
    sims = await new_disks(2)
    log = await start(sims)
    held = await fill(log, 1, 3)
    _, replicas = log.journal.replicas(3)
    for index in replicas[1:]:
        sims[index].gone = True
    others = [index for index in range(6) if index not in replicas]
    for index in others:
        sims[index].gone = True
    with pytest.raises(TooFewDisks):
        await log.journal.append(4, [entry(b"nobody was told")])
    for sim in sims:
        sim.gone = False
    without = restarted(sims, [replicas[0]])
    lone = sims[replicas[0]].crash(keep_all=True)
    log = await start(without)
    assert await log.contents() == held
    log = await open_log([*restarted(without), lone])
    assert await log.contents() == held


@pytest.mark.parametrize("verb", ["write", "sync"])
async def test_a_replica_that_fails_puts_the_group_under_a_new_epoch(verb: str) -> None:
    sims = await new_disks(3)
    log = await start(sims)
    held = await fill(log, 1, 2)
    epoch = log.disks.epoch
    _, replicas = log.journal.replicas(2)
    victim = sims[replicas[0]]
    victim.fail_at(1, DiskFailed("EIO"), short=verb == "write")
    held |= await fill(log, 3, 2)
    assert log.disks.epoch == epoch + 1
    assert log.disks.failures.keys() == {replicas[0]}, "a failed sync is not retried on the same disk"
    path, chosen = log.journal.replicas(3)
    assert path == f"journal/{epoch + 1:016x}-{3:016x}"
    assert replicas[0] not in chosen
    assert len(chosen) == 3
    for seed in range(20):
        after = await open_log(restarted(sims, random.Random(seed).sample(range(6), 2)))
        assert await after.contents() == held


async def test_what_a_disk_holds_of_a_failed_group_is_void_when_it_comes_back() -> None:
    sims = await new_disks(4)
    log = await start(sims)
    held = await fill(log, 1, 2)
    _, replicas = log.journal.replicas(2)
    sims[replicas[0]].fail_at(1, DiskFailed("EIO"))
    for index in range(6):
        if index not in replicas[:1]:
            sims[index].fail_at(2, DiskFull("ENOSPC"))  # the superblock is written, the new file is not
    with pytest.raises((NoSpace, TooFewDisks)):
        await log.journal.append(3, [entry(b"refused")])
    for index in range(6):
        sims[index]._faults.clear()
        log.disks.room_again(index)
    held |= await fill(log, 3, 1)
    assert held[3][0] == b"meta 3"
    for _ in range(20):
        assert await (await open_log(restarted(sims))).contents() == held


@pytest.mark.parametrize("steps", range(12))
async def test_nothing_more_is_written_to_a_file_whose_making_was_cut_off(steps: int) -> None:
    sims = await new_disks(6)
    log = await start(sims)
    if not await cut_off(lambda: log.journal.append(1, [entry(b"lost")]), steps):
        names = {name for sim in sims for name in await sim.list("journal")}
        await fill(log, 1, 1)
        assert log.journal.replicas(1)[0].removeprefix("journal/") not in names


async def test_torn_tail_is_cut_and_is_no_damage() -> None:
    sims = await new_disks(5)
    log = await start(sims, NO_PREALLOCATION)
    held = await fill(log, 1, 3)
    path, replicas = log.journal.replicas(3)
    offset = log.journal.size_bytes
    for index in replicas:
        await sims[index].write_at(path, offset, [b"\xff" * 3000])
    after = await open_log(restarted(sims))
    assert await after.contents() == held
    assert after.chain.damage == ()


# -- rot ---------------------------------------------------------------------------------------------------------------


async def test_rot_on_one_replica_is_read_from_another_and_counted() -> None:
    sims = await new_disks(6)
    log = await start(sims)
    held = await fill(log, 1, 3)
    path, replicas = log.journal.replicas(2)
    at = (await sims[replicas[0]].read(path, 0, 1 << 20)).index(b"meta 2")
    sims[replicas[0]].rot(path, at + 100)
    assert bytes(await log.journal.read(2, 5, 10)) == b"x" * 10
    assert log.journal.degraded_reads_count == 1
    assert log.journal.damaged == {(path, replicas[0])}
    after = await open_log(sims)
    assert await after.contents() == held
    assert after.chain.damage == ()


async def test_a_copy_on_a_disk_that_died_is_not_damaged() -> None:
    sims = await new_disks(6)
    log = await start(sims)
    held = await fill(log, 1, 3)
    _, replicas = log.journal.replicas(2)
    sims[replicas[0]].suspect("no answer")
    assert await log.contents() == held
    assert list(log.disks.failures) == [replicas[0]]
    assert log.journal.damaged == set()


async def test_a_read_without_a_wait_gives_what_is_resident_and_right() -> None:
    sims = await new_disks(6)
    log = await start(sims)
    await fill(log, 1, 3)
    path, replicas = log.journal.replicas(2)
    for sim in sims:
        sim.resident_ratio = 1.0
    found = log.journal.read_nowait(2, 5, 10)
    assert found is not None
    assert bytes(found) == b"x" * 10
    sims[replicas[0]].resident_ratio = 0.0
    assert log.journal.read_nowait(2, 5, 10) is None
    sims[replicas[0]].resident_ratio = 1.0
    at = (await sims[replicas[0]].read(path, 0, 1 << 20)).index(b"meta 2")
    sims[replicas[0]].rot(path, at + 100)
    assert log.journal.read_nowait(2, 5, 10) is None
    assert log.journal.damaged == set()
    assert bytes(await log.journal.read(2, 5, 10)) == b"x" * 10
    assert log.journal.damaged == {(path, replicas[0])}
    log.disks.fail(replicas[0], "pulled")
    assert log.journal.read_nowait(2, 5, 10) is None
    with pytest.raises(DataLost):
        log.journal.read_nowait(99, 0, 1)


async def test_rot_of_different_records_on_all_replicas_is_bridged() -> None:
    sims = await new_disks(7)
    log = await start(sims)
    held = await fill(log, 1, 6)
    path, replicas = log.journal.replicas(1)
    for number, index in enumerate(replicas):
        at = (await sims[index].read(path, 0, 1 << 20)).index(b"meta %d" % (2 * number + 1))
        sims[index].rot(path, at)
    after = await open_log(sims)
    assert await after.contents() == held


async def test_rot_in_the_middle_of_all_replicas_is_damage() -> None:
    """The records behind prove that it was durable: it must not pass for a torn tail."""
    sims = await new_disks(8)
    log = await start(sims)
    await fill(log, 1, 5)
    path, replicas = log.journal.replicas(3)
    for index in replicas:
        sims[index].rot(path, (await sims[index].read(path, 0, 1 << 20)).index(b"meta 3"))
    with pytest.raises(DataLost):
        await log.journal.read(3, 0, 1)
    after = await open_log(sims)
    assert after.chain.damage == ((3, 5),)


async def test_a_whole_file_lost_between_others_is_damage() -> None:
    sims = await new_disks(9)
    log = await start(sims)
    await fill(log, 1, 2)
    log.journal.roll()
    await fill(log, 3, 2)
    log.journal.roll()
    await fill(log, 5, 1)
    path, replicas = log.journal.replicas(3)
    for index in replicas:
        await sims[index].unlink(path)
    assert (await open_log(sims)).chain.damage == ((3, 5),)


async def test_a_copy_of_another_stores_journal_file_counts_for_nothing() -> None:
    sims = await new_disks(10)
    log = await start(sims)
    held = await fill(log, 1, 2)
    path, replicas = log.journal.replicas(1)
    data = await sims[replicas[0]].read(path, 0, 1 << 20)
    stranger = next(index for index in range(6) if index not in replicas)
    name = f"journal/{99:016x}-{1:016x}"
    await sims[stranger].write_at(name, 0, [data])
    after = await open_log(sims)
    assert await after.contents() == held


# -- space -------------------------------------------------------------------------------------------------------------


async def test_zeroes_are_written_ahead_as_the_file_grows() -> None:
    """A file that holds little takes little."""
    sims = await new_disks(31)
    options = JournalOptions(size_bytes=1 << 20, file_bytes=256 << 10, preallocate_bytes=64 << 10)
    log = await start(sims, options)
    sizes = []
    for sequence in range(1, 100):
        await log.journal.append(sequence, [entry(b"meta", b"x" * 1900)])
        path, replicas = log.journal.replicas(sequence)
        [file] = log.journal.files()
        size = (await sims[replicas[0]].list("journal"))[path.removeprefix("journal/")]
        sizes.append((file.end_offset, size))
    assert sizes[0][1] <= 16 << 10
    assert all(end < size <= max(3 * end, end + (8 << 10)) for end, size in sizes)
    assert max(size - end for end, size in sizes) > 48 << 10


@pytest.mark.parametrize("options", OPTIONS)
async def test_rolls_to_new_files_and_trims_all_but_the_last(options: JournalOptions) -> None:
    sims = await new_disks(11)
    log = await start(sims, options)
    held = await fill(log, 1, 30)
    names = {name for sim in sims for name in await sim.list("journal")}
    assert len(names) >= 3
    for index in range(6):
        for name, size in (await sims[index].list("journal")).items():
            assert size < 40 << 10, name
    before = log.journal.size_bytes
    assert await log.journal.trim(15) >= 1
    assert log.journal.size_bytes < before
    assert log.journal.holds(15)
    assert not log.journal.holds(1)
    with pytest.raises(DataLost):
        await log.journal.read(1, 0, 1)
    await log.journal.trim(1000)
    left = {name for sim in sims for name in await sim.list("journal")}
    assert len(left) == 1, "the last file tells where the log ends"
    after = await open_log(restarted(sims), options)
    assert after.end == 31
    assert (await after.contents())[30] == held[30]


async def test_what_is_trimmed_stays_away() -> None:
    sims = await new_disks(12)
    log = await start(sims)
    for sequence in range(1, 20):
        log.journal.roll()
        await fill(log, sequence, 1)
    assert await log.journal.trim(15) > 9
    left = [set(await sim.list("journal")) for sim in sims]
    for _ in range(20):
        assert [set(await sim.list("journal")) for sim in restarted(sims)] == left


async def test_full_disks_refuse_and_the_next_group_is_under_a_new_epoch() -> None:
    sims = await new_disks(13)
    log = await start(sims, NO_PREALLOCATION)
    held = await fill(log, 1, 1)
    epoch = log.disks.epoch
    for sim in sims:
        sim.capacity_bytes = 0
    with pytest.raises(NoSpace):
        await log.journal.append(2, [entry(b"refused", b"y" * 5000)])
    for index, sim in enumerate(sims):
        sim.capacity_bytes = 1 << 40
        log.disks.room_again(index)
    held |= await fill(log, 2, 1)
    assert log.disks.epoch > epoch
    assert not log.disks.failures, "a full disk is not given up"
    assert await (await open_log(restarted(sims))).contents() == held


@pytest.mark.parametrize("preallocates", [True, False])
async def test_what_is_appended_is_accounted_for(preallocates: bool) -> None:
    """To the byte, so that writers are refused before the reserve is touched."""
    sims = await new_disks(16)
    log = await start(sims) if preallocates else await start(sims, NO_PREALLOCATION)
    await fill(log, 1, 1)

    async def used() -> list[int]:
        return [sum((await sim.list("journal")).values()) for sim in sims]

    before = await used()
    left = [1 << 30] * 6
    log.disks.account.note({index: index for index in range(6)}, dict(enumerate(left)))
    await fill(log, 2, 40)
    for index, (now, then) in enumerate(zip(await used(), before, strict=True)):
        assert log.disks.spend(index, (1 << 30) - (now - then))
        assert not log.disks.spend(index, 1)


async def test_one_full_disk_is_passed_over() -> None:
    sims = await new_disks(14)
    log = await start(sims)
    held = await fill(log, 1, 1)
    _, replicas = log.journal.replicas(1)
    sims[replicas[0]].capacity_bytes = 0
    held |= await fill(log, 2, 8)
    assert replicas[0] not in log.journal.replicas(9)[1]
    assert await (await open_log(restarted(sims))).contents() == held


async def test_too_few_disks_refuse_and_nothing_of_it_is_answered() -> None:
    sims = await new_disks(15)
    log = await start(sims)
    await fill(log, 1, 1)
    for sim in sims[:4]:
        sim.gone = True
    with pytest.raises(TooFewDisks):
        await log.journal.append(2, [entry(b"refused")])


async def test_a_minority_is_not_written_though_it_is_enough_for_the_copies() -> None:
    sims = await new_disks(15)
    log = await start(sims)
    held = await fill(log, 1, 1)
    _, replicas = log.journal.replicas(1)
    others = [index for index in range(6) if index not in replicas]
    for index in others[:2]:
        log.disks.fail(index, "pulled")
    held |= await fill(log, 2, 1)
    log.disks.fail(others[2], "pulled")
    with pytest.raises(TooFewDisks, match="3 of 6 disks are good, a write needs 4"):
        await log.journal.append(3, [entry(b"refused")])
    await log.disks.join(others[2], sims[others[2]].crash(keep_all=True))
    held |= await fill(log, 3, 1)
    assert await (await open_log(restarted(sims))).contents() == held


async def test_a_majority_is_written_with_more_than_m_disks_gone() -> None:
    sims = await new_disks(15, count=12)
    log = await start(sims)
    held = await fill(log, 1, 1)
    for index in (0, 2, 4, 6, 8):
        log.disks.fail(index, "pulled")
    log.journal.roll()
    held |= await fill(log, 2, 2)
    assert len(log.journal.replicas(3)[1]) == 3
    log.disks.fail(10, "pulled")
    with pytest.raises(TooFewDisks):
        await fill(log, 4, 1)
    assert await (await open_log(restarted(sims))).contents() == held


async def test_an_append_that_ends_in_a_surprise_is_never_written_over() -> None:
    """Cancelled or broken half way: the next group must not land on its bytes in the same epoch."""
    sims = await new_disks(16)
    log = await start(sims)
    held = await fill(log, 1, 1)
    epoch = log.disks.epoch
    assert not await cut_off(lambda: log.journal.append(2, [entry(b"first", b"1" * 9000)]), 0)
    await log.journal.append(2, [entry(b"second")])
    assert log.disks.epoch == epoch + 1
    assert (await (await open_log(restarted(sims))).contents()) == held | {2: (b"second", b"")}


async def test_writes_go_on_with_m_disks_gone() -> None:
    sims = await new_disks(17)
    log = await start(sims[2:])
    held = await fill(log, 1, 3)
    assert len(log.journal.replicas(1)[1]) == 3
    assert await (await open_log(restarted(sims))).contents() == held


async def test_files_spread_over_the_disks() -> None:
    sims = await new_disks(18)
    log = await start(sims)
    used: set[int] = set()
    for sequence in range(1, 400, 64):
        log.journal.roll()
        await fill(log, sequence, 64, b"")
        used |= set(log.journal.replicas(sequence)[1])
    assert used == set(range(6))
    ends = [(file.first, file.end) for file in log.journal._files]
    assert all(before[1] == after[0] for before, after in pairwise(ends))
