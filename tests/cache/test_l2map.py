"""The map of the second cache that processes share.

Seen to fail with: a map that is not shared; a place written before the slot was emptied; any slot of a set replaced; a
head whose sum is not compared, or that is of any opening; a sequence that does not grow.
"""

import os
import random
import struct
from collections.abc import Iterable

import pytest

from couchestord.cache.l2format import ID_MAX
from couchestord.cache.l2map import SLOTS_MAX, SLOTS_MIN, WAYS, L2Map
from couchestord.cache.l2reading import Records

RECORDS = Records(7, 3, (ID_MAX, 500, 20))
PLACE = 1 << 12


def of_one_set(shared: L2Map, count: int) -> list[int]:
    """Keys that have the same slots to choose from."""
    keys = (key for key in range(1, 1 << 20) if shared._set(key) == shared._set(1))
    return [next(keys) for _ in range(count)]


def place(shared: L2Map, key: int) -> int:
    at = shared.find(key)
    return shared.place(at) if at >= 0 else 0


def test_what_is_put_is_found_until_it_is_removed() -> None:
    shared, places = L2Map(1 << 20), dict[int, int]()
    rng = random.Random(1)
    for key in range(1, 300):
        places[key] = rng.randrange(2, 1 << 60) & ~1
        shared.put(key, places[key])
    assert {key: place(shared, key) for key in places} == places
    for key in range(1, 300, 2):
        shared.remove(key)
        shared.remove(key)
        places[key] = 0
    assert {key: place(shared, key) for key in places} == places
    shared.put(2, PLACE)
    assert place(shared, 2) == PLACE
    assert place(shared, 12345) == 0


def test_a_key_without_room_takes_that_of_one_that_nobody_read() -> None:
    shared = L2Map(1 << 20)
    *keys, late, later = of_one_set(shared, WAYS + 2)
    for key in keys:
        shared.put(key, PLACE)
    for key in keys[1:]:
        shared.mark(shared.find(key))
    shared.put(late, PLACE)
    assert [place(shared, key) for key in (*keys, late)] == [0, *[PLACE] * WAYS]
    assert not shared.was_read(late), "that the one before was read says nothing of it"
    shared.mark(shared.find(late))
    shared.put(later, PLACE)
    assert place(shared, later) == PLACE
    assert sum(place(shared, key) > 0 for key in (*keys, late)) == WAYS - 1


def test_that_a_chunk_was_read_is_remembered_until_it_is_written_again() -> None:
    shared = L2Map(1 << 20)
    shared.put(1, PLACE)
    shared.put(2, PLACE | 1)  # it was, before
    assert (shared.was_read(1), shared.was_read(2), shared.was_read(3)) == (False, True, False)
    shared.mark(shared.find(1))
    assert shared.was_read(1)
    shared.put(1, 2 * PLACE)
    assert not shared.was_read(1)


class Written(list[int]):
    """Notes what is written, in order."""

    def __init__(self, words: Iterable[int]) -> None:
        super().__init__(words)
        self.writes: list[tuple[int, int]] = []

    def __setitem__(self, at: object, value: object) -> None:
        assert isinstance(at, int)
        assert isinstance(value, int)
        self.writes.append((at, value))
        super().__setitem__(at, value)


def test_no_key_is_ever_seen_with_the_place_of_another() -> None:
    shared = L2Map(1 << 20)
    keys = of_one_set(shared, WAYS + 1)
    for key in keys[:-1]:
        shared.put(key, 2 * key)
    slots = Written(shared._slots)
    shared._slots = slots  # type: ignore[assignment]
    seen = Written(slots)
    shared.put(keys[-1], 2 * keys[-1])
    for at, value in slots.writes:
        seen[at] = value
        first = shared._set(1)
        pairs = zip(seen[first : first + WAYS], seen[first + WAYS : first + 2 * WAYS], strict=True)
        assert all(found in (0, 2 * key) or not key for key, found in pairs)


def test_the_head_is_of_one_opening_and_of_the_time_that_it_is_on() -> None:
    shared = L2Map(1 << 20)
    assert shared.records(shared.opening) is None
    shared.begin()
    first = shared.opening
    sequences = [shared.sequence]
    for records in (RECORDS, Records((1 << 64) - 1, 1 << 40, (ID_MAX, *range(256)))):
        shared.open(records)
        sequences.append(shared.sequence)
        assert shared.records(first) == records
        assert shared.records(first + 1) is None
    shared.close()
    sequences.append(shared.sequence)
    assert shared.records(first) is None
    shared.open(RECORDS)
    shared.begin()
    sequences.append(shared.sequence)
    assert shared.opening == first + 1
    assert shared.records(first) is None
    assert shared.records(first + 1) is None
    assert len(set(sequences)) == len(sequences)


@pytest.mark.parametrize("at", [24, 32, 40, 56, 64, 79])
def test_a_head_that_is_torn_is_none(at: int) -> None:
    shared = L2Map(1 << 20)
    shared.begin()
    shared.open(RECORDS)
    before = shared._memory[at]
    shared._memory[at] = before ^ 1
    assert shared.records(shared.opening) is None
    shared._memory[at] = before
    assert shared.records(shared.opening) == RECORDS


def test_one_that_was_killed_while_it_wrote_the_head_is_followed_by_another() -> None:
    shared = L2Map(1 << 20)
    shared.begin()
    shared.open(RECORDS)
    (sequence,) = struct.unpack_from("<Q", shared._memory)
    struct.pack_into("<Q", shared._memory, 0, sequence | 1)
    assert shared.sequence != sequence
    for _ in range(2):
        before = shared.sequence
        shared.begin()
        assert shared.sequence > before
        assert not shared.sequence % 2
    shared.open(RECORDS)
    assert shared.records(shared.opening) == RECORDS


async def test_clear_forgets_all_and_gives_the_memory_back() -> None:
    shared = L2Map(1 << 30)
    shared.begin()
    for key in range(1, 2000):
        shared.put(key, PLACE | 1)
    await shared.clear()
    assert not any(shared.find(key) >= 0 or shared.was_read(key) for key in range(1, 2000))
    assert not any(shared._memory[4096:])
    shared.open(RECORDS)
    shared.put(1, PLACE)
    assert (place(shared, 1), shared.records(1)) == (PLACE, RECORDS)


def test_its_size_goes_by_that_of_the_cache_and_is_bounded() -> None:
    counts = [len(L2Map(size)._marks) for size in (5 << 20, 1 << 30, 200 << 30, 1 << 50)]
    assert counts[1:] == [pytest.approx(1 << bits, abs=4096) for bits in (17, 24, 24)]
    assert SLOTS_MIN <= counts[0] < SLOTS_MIN + 4096
    assert counts[3] < SLOTS_MAX + 4096


def test_a_process_that_is_forked_sees_what_the_other_does() -> None:
    shared = L2Map(1 << 20)
    child = os.fork()
    if not child:
        shared.begin()
        shared.put(1, PLACE)
        shared.open(RECORDS)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (place(shared, 1), shared.records(1)) == (PLACE, RECORDS)
