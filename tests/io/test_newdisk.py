"""An empty disk made a member, and what others make of it."""

import random

import pytest
from log_rig import new_disks
from simdisk import SimDisk

from couchestord.errors import DiskFailed, ForeignDisk, NotAStore, StoreExists, TooFewDisks
from couchestord.io import superblock as sb
from couchestord.io.disks import Disks, load_disks, read_superblock
from couchestord.io.newdisk import NEW_PATH, create_store, replace_member


def empty(name: str = "new") -> SimDisk:
    return SimDisk(name, random.Random(1))


async def make(sims: list[SimDisk], store_id: bytes) -> None:
    ids = [bytes([index]) for index in range(len(sims))]
    await create_store(sims, store_id=store_id, disk_ids=ids, k=2, m=1, created_ns=1)


@pytest.mark.parametrize("keep_all", [False, True])
@pytest.mark.parametrize("index", range(3))
async def test_making_that_is_cut_off_is_done_again(index: int, keep_all: bool) -> None:
    """Whatever call fails or is the last one before a power cut: then there is a store of one attempt."""
    outcomes: list[bool] = []
    for call in range(1, 9):
        sims = [empty(str(number)) for number in range(3)]
        sims[index].fail_at(call, DiskFailed("EIO"))
        try:
            await make(sims, b"first")
            outcomes.append(True)
        except DiskFailed:
            outcomes.append(False)
        left = [sim.crash(keep_all=keep_all) for sim in sims]
        try:
            await make(left, b"again")
            made = b"again"
        except StoreExists:
            made = b"first"
        assert made == b"again" or outcomes[-1] or index == 2, "there is one only with the last disk's"
        assert made == b"first" or not outcomes[-1]
        disks = await load_disks(left)
        assert (disks.store_id, disks.failures) == (made, {})
        with pytest.raises(StoreExists):
            await make(left, b"once more")
    assert set(outcomes) == {False, True}


async def test_store_that_was_written_is_not_made_again() -> None:
    for missing in range(3):
        sims = [empty(str(index)) for index in range(3)]
        await make(sims, b"store")
        await (await load_disks([sim for sim in sims if sim != sims[missing]])).take_epoch()
        sims[missing] = empty("new")
        before = [await sim.read(sb.PATH, 0, 1 << 20) for sim in sims if sim != sims[missing]]
        with pytest.raises(StoreExists):
            await make(sims, b"other")
        assert [await sim.read(sb.PATH, 0, 1 << 20) for sim in sims if sim != sims[missing]] == before


async def without(sims: list[SimDisk], index: int) -> Disks:
    """The store, running without one of its disks, in an epoch of its own."""
    disks = await load_disks([sim for number, sim in enumerate(sims) if number != index])
    await disks.take_epoch()
    return disks


async def test_says_what_the_others_say_but_for_who_it_is() -> None:
    sims, new = await new_disks(1), empty()
    await replace_member(await without(sims, 2), 2, new, b"new")
    identity, slot = await read_superblock(new.crash())
    [other, _] = await read_superblock(sims[0])
    assert (identity.disk_id, identity.index) == (b"new", 2)
    assert slot == sb.Slot(1, 0)
    names = [name for name in sb.Identity.__struct_fields__ if name not in ("disk_id", "index")]
    assert [getattr(identity, name) for name in names] == [getattr(other, name) for name in names]


async def test_is_there_whole_or_not_at_all() -> None:
    """Whatever call fails or is the last one before a power cut; what a failed sync left is not written again."""
    sims = await new_disks(2)
    disks = await without(sims, 2)
    for call in range(1, 8):
        new = empty()
        await new.write_at(NEW_PATH, 0, [b"left over" * 2000], sync=True)
        new.fail_at(call, DiskFailed("EIO"))
        try:
            await replace_member(disks, 2, new, b"new")
            is_done = True
        except DiskFailed:
            is_done = False
        for keep_all in (False, True):
            left = new.crash(keep_all=keep_all)
            try:
                identity, slot = await read_superblock(left)
            except NotAStore:
                assert not is_done
                await replace_member(disks, 2, left, b"again")
            else:
                assert (identity.index, slot.epoch) == (2, 0)
    assert is_done


async def test_takes_no_other_disks_place() -> None:
    sims, strangers = await new_disks(3), await new_disks(4)
    disks = await without(sims, 2)
    sims[3].rot(sb.PATH, 30)
    for sim in (sims[2], sims[3], strangers[0]):
        before = await sim.read(sb.PATH, 0, 1 << 20)
        with pytest.raises(StoreExists):
            await replace_member(disks, 2, sim, b"new")
        assert await sim.read(sb.PATH, 0, 1 << 20) == before


async def test_is_stale_until_it_is_told_of_the_epoch() -> None:
    sims, new = await new_disks(5), empty()
    disks = await without(sims, 2)
    await replace_member(disks, 2, new, b"new")
    again = await load_disks([*sims[:2], *sims[3:], new.crash()])
    assert (list(again.stale), again.failures, again.epoch) == ([2], {}, 1)
    await disks.join(2, new)
    assert (await read_superblock(new.crash()))[1].epoch == disks.epoch == 1
    assert disks.ids[2] == b"new"


async def test_other_disk_in_a_place_begins_an_epoch_that_the_one_before_does_not_know() -> None:
    sims, new = await new_disks(6), empty()
    disks = await load_disks(sims)
    await disks.take_epoch()
    for epoch, sim, away in ((2, new, sims[2]), (3, sims[2], new), (4, new, sims[2])):
        disks.fail(2, "lost")
        if epoch == 2:
            await replace_member(disks, 2, new, b"new")
        await disks.join(2, sim)
        assert disks.epoch == epoch
        for each in [*sims[:2], sim, *sims[3:]]:
            assert (await read_superblock(each.crash()))[1].epoch == epoch
        assert [disks.epoch_known(index) for index in range(6)] == [epoch] * 6
        assert list((await load_disks([*sims[:2], *sims[3:], away.crash()])).stale) == [2]
    disks.fail(2, "unplugged")
    await disks.join(2, new.crash(keep_all=True))
    assert disks.epoch == 4, "the same one again"


async def test_an_empty_disk_makes_no_majority() -> None:
    """It says nothing of what the disks that are missing may have written without these."""
    sims, new = await new_disks(7), empty()
    disks = await without(sims, 2)
    await replace_member(disks, 2, new, b"new")
    for index in (0, 1):
        disks.fail(index, "lost")
    with pytest.raises(TooFewDisks, match="3 of 6 disks are good, a write needs 4"):
        await disks.join(2, new)
    assert disks.good() == [3, 4, 5]
    assert (await read_superblock(new))[1].epoch == 0
    await disks.join(1, sims[1])
    await disks.join(2, new)
    assert disks.good() == [1, 2, 3, 4, 5]


async def test_both_at_a_start_are_told_apart() -> None:
    sims, new = await new_disks(8), empty()
    disks = await without(sims, 2)
    await replace_member(disks, 2, new, b"new")
    await disks.join(2, new)
    for order in ([*sims, new], [new, *sims]):
        with pytest.raises(ForeignDisk, match="disk 2; one took the place of the other; take sim-2 away"):
            await load_disks(order)
