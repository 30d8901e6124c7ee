import random

from simdisk import SimDisk
from stripe_rig import make_disks

from couchestord.errors import DiskFailed
from couchestord.io.room import Room, ask_room

MIB = 1 << 20


async def test_folders_on_one_file_system_share_its_room_and_one_reserve() -> None:
    rng = random.Random(1)
    sims = [SimDisk(f"sim-{index}", rng, capacity_bytes=12 * MIB) for index in range(6)]
    for index in (2, 3, 4):
        sims[index].share(sims[1])
    disks = await make_disks(sims, 4, 2)
    used = [sum([size for folder in ("", "journal") for size in (await sim.list(folder)).values()]) for sim in sims]
    disks.kept_bytes = lambda _: 4 * MIB
    found = await ask_room(disks)
    assert found[0] == Room(12 * MIB, 12 * MIB - used[0], 8 * MIB - used[0], 1)
    free_bytes = 12 * MIB - sum(used[1:5])
    for index in (1, 2, 3, 4):
        assert found[index] == Room(3 * MIB, free_bytes // 4, (free_bytes - 4 * MIB) // 4, 4)


async def test_what_is_spent_between_two_looks_is_spent_for_all_on_the_file_system() -> None:
    rng = random.Random(1)
    sims = [SimDisk(f"sim-{index}", rng, capacity_bytes=12 * MIB) for index in range(4)]
    for sim in sims[1:3]:
        sim.share(sims[0])
    disks = await make_disks(sims, 2, 2)
    assert disks.spend(0, 99 * MIB), "nobody has asked yet"
    left_bytes = 3 * (await ask_room(disks))[0].left_bytes
    assert disks.spend(0, left_bytes // 2)
    assert disks.spend(1, left_bytes // 2 - 9)
    assert disks.roomy() == [0, 1, 2, 3]
    assert not disks.spend(2, MIB)
    assert disks.roomy() == [3]
    assert disks.spend(3, 11 * MIB)
    await ask_room(disks)
    assert disks.spend(2, MIB), "it was not written after all"


async def test_a_disk_that_does_not_answer_is_given_up_and_its_share_goes_to_the_others() -> None:
    rng = random.Random(1)
    sims = [SimDisk(f"sim-{index}", rng, capacity_bytes=12 * MIB) for index in range(4)]
    for sim in sims[1:]:
        sim.share(sims[0])
    disks = await make_disks(sims, 2, 2)
    sims[2].fail_at(1, DiskFailed("EIO"))
    assert sorted(await ask_room(disks)) == [0, 1, 3]
    assert 2 in disks.failures
    assert {room.sharers_count for room in (await ask_room(disks)).values()} == {3}
