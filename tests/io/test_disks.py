"""Superblocks, epochs and membership, on disks that crash and fail."""

import random

import pytest
import trio
from log_rig import STORE_ID, new_disks
from msgspec.structs import replace
from simdisk import SimDisk
from stripe_rig import make_disks

from couchestord.errors import (
    DiskFailed,
    DiskFull,
    ForeignDisk,
    NotAStore,
    StoreExists,
    TooFewDisks,
    UnknownFormat,
)
from couchestord.io import superblock as sb
from couchestord.io.disks import load_disks, read_superblock, replicas_needed
from couchestord.io.newdisk import create_store

ROOT = sb.SnapshotRoot(7, 1, 1000, 99, 5)


@pytest.mark.parametrize(
    ("k", "m", "count", "needed"),
    [(4, 2, 6, 4), (4, 2, 12, 7), (3, 2, 5, 3), (2, 4, 6, 2), (2, 2, 4, 2), (1, 5, 6, 1), (4, 0, 4, 3), (4, 2, 3, 2)],
)
async def test_who_may_write(k: int, m: int, count: int, needed: int) -> None:
    """More than half, but never more than are left when m are lost."""
    sims = [SimDisk(f"sim-{index}", random.Random(1)) for index in range(count)]
    disks = await make_disks(sims, k, m)
    assert disks.writers_needed == needed
    for index in range(count - needed):
        disks.fail(index, "as the test wants it")
    disks.check_writable()
    await disks.take_epoch()
    disks.fail(count - needed, "as the test wants it")
    with pytest.raises(TooFewDisks, match=f"{needed - 1} of {count} disks are good, a write needs {needed}"):
        disks.check_writable()
    assert replicas_needed(disks.m, count - needed) <= needed


async def test_a_policy_with_more_parity_lets_fewer_disks_write() -> None:
    disks = await load_disks(await new_disks(1))
    assert disks.writers_needed == 4
    assert await disks.set_m(4)
    assert (disks.writers_needed, replicas_needed(disks.m, 0), replicas_needed(disks.m, 4)) == (2, 5, 1)


async def test_epochs_grow_and_are_durable_on_every_good_disk() -> None:
    sims = await new_disks(1)
    disks = await load_disks(sims)
    for expected in range(1, 20):
        assert await disks.take_epoch() == disks.epoch == expected
        for sim in sims:
            assert (await read_superblock(sim.crash()))[1].epoch == expected


async def test_no_epoch_is_taken_twice_whatever_a_crash_leaves() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        sims = await new_disks(seed)
        last = 0
        for _ in range(5):
            disks = await load_disks(rng.sample(sims, rng.randint(4, 6)))
            taken = await disks.take_epoch()
            assert taken > last
            last = taken
            with trio.CancelScope() as scope:
                scope.cancel()
                await disks.take_epoch()
            sims = [sim.crash() for sim in sims]


async def test_a_torn_slot_leaves_the_other_one_from_the_first_write_on() -> None:
    """A disk that was away since the store was made and misses any number of slots, too."""
    for missed in range(4):
        sims = await new_disks(missed)
        disks = await load_disks(sims[1:])
        for _ in range(missed):
            await disks.take_epoch()
        offset, page = sb.pack_slot(sb.Slot(disks.slot.generation + 1, 9))
        await sims[0].write_at(sb.PATH, offset, [page[:20] + b"?" * 40], sync=True)
        assert (await read_superblock(sims[0]))[1].epoch == 0


async def test_two_power_cuts_in_a_row_tear_no_slot_that_is_the_only_one() -> None:
    """The first tears the slots that others took, the second those of the start after it, or of a return."""
    for call, returns in ((call, returns) for call in (1, 2) for returns in (False, True)):
        sims = await new_disks(call)
        disks = await load_disks(sims)
        await disks.take_epoch()
        offset, page = sb.pack_slot(sb.Slot(disks.slot.generation + 1, 2))
        await disks.take_epoch()
        await sims[0].write_at(sb.PATH, offset, [page[:20] + b"?" * 40], sync=True)
        again = [sim.crash() for sim in sims]
        disks = await load_disks(again[returns:])
        short = again[0]
        if returns:
            await read_superblock(short)
            short.fail_at(call + 2, DiskFailed("EIO"), short=True)
            with pytest.raises(DiskFailed):
                await disks.join(0, short)
        else:
            short.fail_at(call, DiskFailed("EIO"), short=True)
            await disks.take_epoch()
            assert 0 in disks.failures
        assert (await read_superblock(short.crash(keep_all=True)))[1].epoch >= 1


async def test_snapshot_and_epoch_written_side_by_side_are_never_torn_together() -> None:
    for seed in range(30):
        sims = await new_disks(seed)
        disks = await load_disks(sims)
        await disks.take_epoch()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(disks.take_epoch)
                nursery.start_soon(disks.set_snapshot, ROOT)
                for _ in range(seed % 6):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        for sim in sims:
            assert (await read_superblock(sim.crash()))[1].epoch >= 1


async def test_snapshot_roots_are_kept_across_epochs() -> None:
    sims = await new_disks(3)
    disks = await load_disks(sims)
    await disks.set_snapshot(ROOT)
    await disks.take_epoch()
    again = await load_disks([sim.crash() for sim in sims])
    assert again.slot.snapshot == ROOT
    assert again.epoch == 1


async def test_epochs_that_one_disk_took_alone_hide_no_snapshot() -> None:
    """Starts that fail leave it with an epoch of which the others, that go on without it, know nothing."""
    sims = await new_disks(5)
    await (await load_disks(sims)).set_snapshot(replace(ROOT, sequence=9))
    for _ in range(3):
        disks = await load_disks(sims)
        for sim in sims[1:]:
            sim.gone = True
        with pytest.raises(TooFewDisks):
            await disks.take_epoch()
        sims = [sims[0], *(sim.crash() for sim in sims[1:])]
    assert disks.epoch == 3
    disks = await load_disks(sims[1:])
    await disks.take_epoch()
    await disks.set_snapshot(ROOT)
    assert disks.epoch == 1
    disks = await load_disks(sims)
    assert (disks.epoch, disks.slot.snapshot) == (3, ROOT)


async def test_what_is_written_next_is_the_newest_everywhere() -> None:
    """A part that was read only has counted its returning disks, the other part has taken an epoch."""
    sims = await new_disks(6, count=4, k=2)
    for returns in (False, True):
        alone = await load_disks(sims[:1])
        for _ in range(5):
            await alone.join(1, sims[1])
            alone.fail(1, "unplugged")
        other = await load_disks(sims[2:])
        epoch = await other.take_epoch()
        again = [sim.crash() for sim in sims]
        if returns:
            del again[1]
            disks = await load_disks(again[1:])
            await disks.join(0, again[0])
        else:
            disks = await load_disks(again)
            epoch = await disks.take_epoch()
        assert {(await read_superblock(sim))[1].epoch for sim in again} == {epoch}


async def test_failing_disks_are_given_up_down_to_what_the_promise_needs() -> None:
    sims = await new_disks(4)
    disks = await load_disks(sims)
    for sim in sims[:2]:
        sim.fail_at(1, DiskFailed("EIO"))
    assert await disks.take_epoch() == 1
    assert disks.good() == [2, 3, 4, 5]
    assert disks.get(0) is None
    assert disks.missing_count() == 2
    for sim in sims[2:]:
        sim.fail_at(1, DiskFailed("EIO"))
    with pytest.raises(TooFewDisks):
        await disks.take_epoch()
    assert disks.epoch == 2, "the number is used up"


def test_replicas_count_the_missing_among_m() -> None:
    assert [replicas_needed(2, missing) for missing in range(5)] == [3, 2, 1, 3, 3]
    assert replicas_needed(0, 0) == 1


async def test_full_disks_are_good_but_not_roomy() -> None:
    sims = await new_disks(5)
    disks = await load_disks(sims)
    disks.fail(1, DiskFull("ENOSPC"))
    assert disks.good() == list(range(6))
    assert disks.roomy() == [0, 2, 3, 4, 5]
    assert disks.is_full(1)
    disks.room_again(1)
    assert disks.roomy() == list(range(6))


async def test_disks_are_known_by_identity_not_by_place() -> None:
    sims = await new_disks(6)
    disks = await load_disks([sims[3], sims[1], sims[5], sims[0], sims[2]])
    assert disks.missing_count() == 1
    assert disks.failures == {4: "missing"}
    for index in (0, 1, 2, 3, 5):
        assert disks.get(index) is sims[index]
    assert disks.is_used("sim-3")
    assert not disks.is_used("sim-4")


async def test_mixed_stores_and_copies_are_refused() -> None:
    sims = await new_disks(7)
    other = [SimDisk(f"other-{index}", random.Random(1)) for index in range(6)]
    await create_store(
        other, store_id=b"another store...", disk_ids=[bytes([i]) for i in range(6)], k=4, m=2, created_ns=1
    )
    with pytest.raises(ForeignDisk, match="different stores"):
        await load_disks([*sims[:5], other[5]])
    with pytest.raises(ForeignDisk, match="one is a copy"):
        await load_disks([*sims, sims[2].crash()])


async def test_a_disk_that_cannot_be_read_counts_as_missing() -> None:
    sims = await new_disks(8)
    sims[0].gone = True
    sims[1].rot(sb.PATH, 30)  # page 0
    for page in (1, 2):
        sims[2].rot(sb.PATH, page * sb.PAGE_BYTES + 21)
    sims[3].rot(sb.PATH, sb.PAGE_BYTES + 4)  # one version byte: rot, not a newer format
    empty = SimDisk("empty", random.Random(1))
    disks = await load_disks([*sims, empty])
    assert sorted(disks.failures) == [0, 1, 2]


async def test_no_store_and_newer_programs() -> None:
    with pytest.raises(NotAStore):
        await load_disks([SimDisk("empty", random.Random(1))])
    sims = await new_disks(9)
    newer = sb.Identity(STORE_ID, b"d", 5, 6, 4, 2, (), 1, min_writer=sb.FORMAT + 1)
    await sims[5].write_at(sb.PATH, 0, [sb.pack_identity(newer)])
    before = await sims[5].read(sb.PATH, 0, 1 << 20)
    with pytest.raises(UnknownFormat):
        await load_disks(sims)
    assert await sims[5].read(sb.PATH, 0, 1 << 20) == before


async def test_a_store_is_never_made_over_another() -> None:
    sims = await new_disks(10)
    before = [await sim.read(sb.PATH, 0, 1 << 20) for sim in sims]
    sims[0].rot(sb.PATH, 0)
    for disks in ([sims[1]], [SimDisk("empty", random.Random(1)), sims[2]], [sims[0]]):
        with pytest.raises(StoreExists):
            await create_store(disks, store_id=b"x", disk_ids=[b"y", b"z"], k=1, m=0, created_ns=1)
    sims[0].rot(sb.PATH, 0)
    assert [await sim.read(sb.PATH, 0, 1 << 20) for sim in sims] == before


async def test_a_new_store_survives_a_power_cut_at_once() -> None:
    sims = await new_disks(11)
    for _ in range(20):
        assert (await load_disks([sim.crash() for sim in sims])).missing_count() == 0


async def test_a_returning_disk_learns_the_epoch() -> None:
    sims = await new_disks(12)
    disks = await load_disks(sims[1:])
    for _ in range(3):
        await disks.take_epoch()
    await disks.join(0, sims[0])
    assert disks.missing_count() == 0
    assert disks.get(0) is sims[0]
    assert (await read_superblock(sims[0].crash()))[1].epoch == 3


async def test_a_disk_that_joins_while_an_epoch_is_taken_has_it() -> None:
    for steps in range(12):
        sims = await new_disks(13)
        disks = await load_disks(sims[1:])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disks.join, 0, sims[0])
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            await disks.take_epoch()
        assert (await read_superblock(sims[0]))[1].epoch == 1, f"after {steps} steps"


async def test_what_may_not_join() -> None:
    sims = await new_disks(14)
    strangers = await new_disks(15)
    disks = await load_disks(sims[2:])
    with pytest.raises(ForeignDisk):
        await disks.join(0, sims[1])
    assert 0 in disks.failures
    beside = await load_disks([sims[0], *strangers[3:]])
    await beside.take_epoch()
    with pytest.raises(ForeignDisk, match="restart"):
        await disks.join(0, sims[0])
    assert 0 in disks.failures


async def test_each_epoch_has_a_token_of_its_own_when_somebody_asks_for_them() -> None:
    sims = await new_disks(1)
    disks = await load_disks(sims)
    disks.random_bytes = random.Random(1).randbytes
    tokens = set()
    for _ in range(5):
        await disks.take_epoch()
        tokens.add(disks.slot.token)
        for sim in sims:
            assert (await read_superblock(sim.crash()))[1].token == disks.slot.token
        await disks.set_snapshot(ROOT)
        assert disks.slot.token in tokens
    assert len(tokens) == 5
    # who asks for none must not carry on that of before: another part may have taken this very number
    disks = await load_disks([sim.crash() for sim in sims])
    assert disks.slot.token in tokens
    await disks.take_epoch()
    assert disks.slot.token == b""
