from collections import Counter

import pytest

from couchestord.ec.placement import choose_disks
from couchestord.errors import NoSpace, TooFewDisks

EQUAL = dict.fromkeys(range(6), 100)


def choose(free: dict[int, int], turn: int = 0, least: int = 4, good: int = 6, shards: int = 6) -> tuple[int, ...]:
    return choose_disks(free, shards_count=shards, least_count=least, good_count=good, turn=turn)


def test_every_disk_holds_one_shard() -> None:
    for turn in range(20):
        assert sorted(choose(EQUAL, turn)) == [0, 1, 2, 3, 4, 5]


def test_parity_rotates_over_all_disks() -> None:
    parity = Counter(disk for turn in range(60) for disk in choose(EQUAL, turn)[4:])
    assert parity == dict.fromkeys(range(6), 20)


def test_missing_disks_leave_parity_without_a_place() -> None:
    free = {0: 5, 2: 5, 3: 5, 5: 5}
    for turn in range(8):
        chosen = choose(free, turn)
        assert sorted(chosen[:4]) == [0, 2, 3, 5]
        assert chosen[4:] == (-1, -1)


def test_of_many_disks_those_with_more_room_are_taken_more_often() -> None:
    free = {disk: 100 for disk in range(9)} | {9: 400, 10: 0}
    taken: Counter[int] = Counter()
    for turn in range(400):
        chosen = choose(free, turn, shards=3, good=11)
        assert len(set(chosen)) == 3
        taken.update(chosen)
    assert taken[9] > 2 * max(taken[disk] for disk in range(9))
    assert min(taken[disk] for disk in range(9)) > 50
    assert taken[10] < 20


def test_the_same_turn_gives_the_same_disks() -> None:
    free = {disk: 100 + disk for disk in range(12)}
    assert choose(free, 5) == choose(dict(reversed(free.items())), 5)
    assert len({choose(free, turn) for turn in range(20)}) > 10


def test_too_few_disks_and_too_little_room_are_told_apart() -> None:
    with pytest.raises(NoSpace):
        choose({0: 1, 1: 1, 2: 1}, good=4)
    with pytest.raises(TooFewDisks):
        choose({0: 1, 1: 1, 2: 1}, good=3)
    with pytest.raises(NoSpace):
        choose({}, good=4)
