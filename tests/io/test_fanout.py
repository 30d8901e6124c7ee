import random
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from simdisk import SimDisk
from stripe_rig import make_disks

from couchestord.io.disk import Disk
from couchestord.io.disks import Disks
from couchestord.io.fanout import call_all, write_all
from couchestord.io.room import ask_room
from couchestord.io.spare import Spares

INDEXES = [0, 1, 2, 3]
BYTES = [b"what all get"]


async def call(disks: Disks) -> bool:
    async def write(_: int, disk: Disk) -> None:
        await disk.write_at("file", 0, BYTES, sync=True)

    return await call_all(disks, INDEXES, write)


async def write(disks: Disks) -> bool:
    return await write_all(disks, INDEXES, "file", 0, BYTES)


async def room(disks: Disks) -> bool:
    return list(await ask_room(disks)) == INDEXES


async def epoch(disks: Disks) -> bool:
    await disks.take_epoch()
    return disks.good() == INDEXES


async def spare(disks: Disks) -> bool:
    await Spares(disks, 1 << 20, 1 << 21).look()
    return disks.good() == INDEXES


@pytest.mark.parametrize("returned", [False, True])
@pytest.mark.parametrize("run", [call, write, room, epoch, spare], ids=lambda run: run.__name__)
async def test_the_disk_that_failed_is_given_up_and_not_the_one_in_its_place(
    run: Callable[[Disks], Awaitable[bool]], returned: bool
) -> None:
    rng = random.Random(1)
    sims = [SimDisk(f"sim-{index}", rng) for index in INDEXES]
    disks = await make_disks(sims, 2, 2)
    assert await run(disks)
    sims[2].frozen = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, disks)
        await trio.testing.wait_all_tasks_blocked()
        sims[2].gone = True
        if returned:
            disks.fail(2, "pulled")
            disks.take(2, sims[2].crash(keep_all=True))
        sims[2].frozen = False
    assert (2 in disks.failures) == (not returned)
    assert await run(disks) == returned


async def test_a_disk_that_is_away_makes_it_fail_and_no_other_is_given_up() -> None:
    rng = random.Random(1)
    disks = await make_disks([SimDisk(f"sim-{index}", rng) for index in INDEXES], 2, 2)
    disks.fail(2, "pulled")
    assert not await call(disks)
    assert not await write(disks)
    assert disks.failures == {2: "pulled"}
