"""Disks without a free byte: the journal goes on in the files that are kept for that."""

import random
from dataclasses import replace

import pytest
from log_rig import NO_PREALLOCATION, SMALL_FILES, entry, new_disks, open_log, renew, restarted, start_log
from simdisk import SimDisk

from couchestord.errors import DiskFailed, DiskFull, NoSpace
from couchestord.io.disks import replicas_needed
from couchestord.io.journalfile import JournalOptions
from couchestord.io.newdisk import replace_member
from couchestord.io.spare import NAME, PATH

ENTRY = entry(b"a delete, say")


async def kept(sims: list[SimDisk]) -> set[int]:
    """Disks that have the file."""
    return {index for index, sim in enumerate(sims) if NAME in await sim.list("journal")}


def fill(sims: list[SimDisk]) -> None:
    """Nothing more fits; what is there may be written over."""
    for sim in sims:
        sim.capacity_bytes = sum(len(file.data) for file in sim._names.values())


def empty(sims: list[SimDisk]) -> None:
    for sim in sims:
        sim.capacity_bytes = 1 << 40


@pytest.mark.parametrize("options", [SMALL_FILES, NO_PREALLOCATION], ids=["zeroes", "none"])
async def test_starts_and_appends_without_a_free_byte(options: JournalOptions) -> None:
    sims = await new_disks(1)
    log = await start_log(sims, options)
    await log.journal.append(1, [ENTRY])
    await log.journal.spares.work()
    assert await kept(sims) == set(range(6))
    held = await log.contents()
    for _ in range(2):  # three files of six each time
        fill(sims)
        sims = restarted(sims)
        log = await open_log(sims, options)
        for index in range(6):
            log.disks.set_tight(index, True)
        await renew(log)
        path, replicas = log.journal.replicas(log.end - 1)
        assert await log.contents() == held
        for number in range(5):
            await log.journal.append(log.end, [ENTRY, entry(b"%d" % number)])
        assert log.journal.replicas(log.end - 1) == (path, replicas)
        assert len(replicas) == 3
        assert not log.disks.failures
        assert not set(replicas).intersection(log.disks.roomy()), "no new data goes where this was needed"
        held = await log.contents()
    assert await kept(sims) == set()
    sims = restarted(sims)
    log = await open_log(sims, options)
    assert await log.contents() == held
    with pytest.raises(NoSpace):
        await renew(log)
    assert await (await open_log(restarted(sims), options)).contents() == held


async def test_a_disk_with_plenty_of_room_keeps_none_yet() -> None:
    sims = await new_disks(3)
    log = await start_log(sims, replace(SMALL_FILES, spare_below_bytes=1 << 30))
    await log.journal.spares.work()
    assert await kept(sims) == set()
    sims[2].capacity_bytes = 1 << 30
    await log.journal.spares.work()
    assert await kept(sims) == {2}
    empty(sims)
    await log.journal.spares.work()
    assert await kept(sims) == {2}


async def test_one_full_disk_is_passed_over_and_keeps_its_file() -> None:
    sims = await new_disks(2)
    log = await start_log(sims)
    await log.journal.append(1, [ENTRY])
    await log.journal.spares.work()
    log.disks.fail(0, DiskFull("ENOSPC"))
    for sequence in range(2, 8):
        log.journal.roll()
        await log.journal.append(sequence, [ENTRY])
        assert 0 not in log.journal.replicas(sequence)[1]
    assert await kept(sims) == set(range(6))


async def test_what_is_kept_from_new_data_is_there_for_records() -> None:
    """Deletes go on where nothing but the reserve is left, on disks that have no such file too."""
    sims = await new_disks(8)
    log = await start_log(sims)
    for index in range(6):
        log.disks.set_tight(index, True)
    log.disks.fail(0, DiskFull("ENOSPC"))
    for sequence in range(1, 8):
        log.journal.roll()
        await log.journal.append(sequence, [ENTRY])
        replicas = log.journal.replicas(sequence)[1]
        assert len(replicas) == 3
        assert 0 not in replicas
    assert len(await (await open_log(restarted(sims))).contents()) == 7


async def test_record_that_does_not_fit_is_refused_and_the_next_one_is_not() -> None:
    sims = await new_disks(3)
    log = await start_log(sims, NO_PREALLOCATION)
    await log.journal.spares.work()
    fill(sims)
    with pytest.raises(NoSpace):
        await log.journal.append(1, [entry(b"large", bytes(20 << 10))])
    assert await kept(sims) == set(), "it was tried on all of them"
    empty(sims)
    for index in range(6):
        log.disks.room_again(index)
    await log.journal.append(1, [ENTRY])
    assert list(await (await open_log(restarted(sims))).contents()) == [1]


async def test_is_made_again_when_there_is_room() -> None:
    sims = await new_disks(4)
    log = await start_log(sims)
    spares = log.journal.spares
    await spares.work()
    await spares.work()
    assert await kept(sims) == set(range(6))
    fill(sims)
    log.journal.roll()
    await log.journal.append(1, [ENTRY])
    used = set(log.journal.replicas(1)[1])
    assert await kept(sims) == set(range(6)) - used
    await spares.work()
    assert await kept(sims) == set(range(6)) - used
    empty(sims)
    await spares.work()
    assert await kept(sims) == set(range(6))
    for sim in restarted(sims):
        assert (await sim.list("journal"))[NAME] == SMALL_FILES.spare_bytes


async def test_one_that_was_cut_short_is_made_anew() -> None:
    sims = await new_disks(5)
    await sims[0].write_at(PATH, 0, [bytes(100)])
    log = await start_log(sims)
    assert not log.journal.spares.has(0)
    await log.journal.spares.work()
    assert log.journal.spares.has(0)
    assert (await sims[0].list("journal"))[NAME] == SMALL_FILES.spare_bytes


@pytest.mark.parametrize("is_full", [False, True])
async def test_a_disk_in_the_place_of_another_gets_one_of_its_own(is_full: bool) -> None:
    sims = await new_disks(8)
    log = await start_log(sims)
    spares = log.journal.spares
    await spares.work()
    assert await kept(sims) == set(range(6))
    log.disks.fail(2, DiskFailed("it is broken"))
    sims[2] = SimDisk("another", random.Random(8))
    await replace_member(log.disks, 2, sims[2], b"another disk's id")
    await log.disks.join(2, sims[2])
    assert [spares.has(index) for index in range(6)] == [True, True, False, True, True, True]
    if is_full:
        fill([sims[2]])
        await spares.work()
        assert not spares.has(2)
        assert await spares.take(2, sims[2], "journal/next", bytes(4096)) == 0
    empty(sims)
    await spares.work()
    assert spares.has(2)
    assert (await sims[2].list("journal"))[NAME] == SMALL_FILES.spare_bytes


@pytest.mark.parametrize("is_gone", [False, True])
async def test_one_that_somebody_took_or_cut_meanwhile_is_not_counted_on(is_gone: bool) -> None:
    sims = await new_disks(8)
    log = await start_log(sims)
    spares, page = log.journal.spares, bytes(4096)
    await spares.work()
    await sims[0].unlink(PATH)
    if not is_gone:
        await sims[0].write_at(PATH, 0, [page])
    assert await spares.take(0, sims[0], "journal/next", page) == 0
    assert "next" not in await sims[0].list("journal")
    await spares.work()
    assert await spares.take(0, sims[0], "journal/next", page) == SMALL_FILES.spare_bytes
    assert (await sims[0].list("journal"))["next"] == SMALL_FILES.spare_bytes


async def test_no_room_for_zeroes_ahead_fails_no_group() -> None:
    sims = await new_disks(6)
    log = await start_log(sims)
    body = bytes(500)
    await log.journal.append(1, [entry(b"first", body)])
    path, epoch = log.journal.replicas(1)[0], log.disks.epoch
    fill(sims)
    sequence = 1
    while not log.disks.is_full(log.journal.replicas(1)[1][0]):
        sequence += 1
        await log.journal.append(sequence, [entry(b"next", body)])
    assert (log.journal.replicas(sequence)[0], log.disks.epoch) == (path, epoch)
    assert len(await (await open_log(restarted(sims))).contents()) == sequence


async def test_disk_that_fails_meanwhile_is_given_up_and_another_is_taken() -> None:
    sims = await new_disks(7)
    log = await start_log(sims)
    await log.journal.append(1, [ENTRY])
    await log.journal.spares.work()
    fill(sims)
    log.journal.roll()
    target = (await open_log(restarted(sims))).journal._choose(2)[0]
    sims[target].fail_at(2, DiskFailed("EIO"))
    await log.journal.append(2, [ENTRY])
    replicas = log.journal.replicas(2)[1]
    assert set(log.disks.failures) == {target}
    assert target not in replicas
    assert len(replicas) >= replicas_needed(2, 1)
    assert sorted(await (await open_log(restarted(sims))).contents()) == [1, 2]
