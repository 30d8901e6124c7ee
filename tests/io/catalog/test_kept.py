"""Objects that are kept: never older than what was changed, and not too many."""

from collections.abc import Callable

import pytest

from couchestord.io.catalog import kept
from couchestord.io.catalog.generations import MEMORY_BYTES, Generations
from couchestord.io.catalog.kept import KeptObjects, Place

PLACE = (7, b"key")


def test_what_changed_or_moved_is_read_again_and_nothing_else() -> None:
    now = Generations()
    objects: KeptObjects[str] = KeptObjects(now)
    assert objects.get(PLACE) is None
    assert objects.look_up(PLACE, lambda _: ("one", 5)) == "one"
    assert objects.get(PLACE) == "one"
    now.change_object(7, b"other")
    now.change_object(8, b"key")
    now.change_place(6)
    assert objects.get(PLACE) == "one"
    now.change_object(7, b"key")
    assert objects.get(PLACE) is None
    assert objects.look_up(PLACE, lambda _: ("two", 5)) == "two"
    assert objects.get(PLACE) == "two"
    now.change_place(5)
    assert objects.get(PLACE) is None
    assert objects.look_up(PLACE, lambda _: None) is None
    assert objects.get(PLACE) is None
    assert objects.look_up(PLACE, lambda _: ("too large", None)) == "too large"
    assert objects.get(PLACE) is None


@pytest.mark.parametrize("change", [lambda it: it.change_object(*PLACE), lambda it: it.change_place(5)])
def test_a_row_that_changes_while_it_is_read_is_not_kept_for_long(change: Callable[[Generations], None]) -> None:
    """Another process commits just then: its numbers lie in memory that both see."""
    memory = memoryview(bytearray(MEMORY_BYTES))
    writing, seen = Generations(), Generations(memory)
    objects: KeptObjects[str] = KeptObjects(Generations(memory))

    def commit(_: Place) -> tuple[str, int]:
        change(writing)
        seen.follow(writing)
        return "old", 5

    assert objects.look_up(PLACE, commit) == "old"
    seen.follow(writing)
    assert objects.get(PLACE) is None


def test_a_row_is_not_kept_when_a_commit_was_told_while_it_was_read() -> None:
    class Told(Generations):
        def is_current(self, changes: int = 0) -> bool:
            return False

    objects: KeptObjects[str] = KeptObjects(Told())
    assert objects.look_up(PLACE, lambda _: ("old", 5)) == "old"
    assert objects.get(PLACE) is None


def test_readers_follow_what_was_committed_and_not_what_was_taken_back() -> None:
    writing, seen = Generations(), Generations()
    objects: KeptObjects[str] = KeptObjects(seen)
    objects.look_up(PLACE, lambda _: ("one", 5))
    writing.change_object(*PLACE)
    assert objects.get(PLACE) == "one"
    writing.settle()
    seen.follow(writing)
    assert objects.get(PLACE) == "one"
    writing.change_object(*PLACE)
    seen.follow(writing)
    assert objects.get(PLACE) is None
    objects.look_up(PLACE, lambda _: ("read before the commit", 5))
    seen.follow(writing)
    writing.settle()
    assert objects.get(PLACE) is None
    objects.look_up(PLACE, lambda _: ("two", 5))
    seen.follow(writing)
    assert objects.get(PLACE) == "two"


def test_those_used_longest_ago_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    objects: KeptObjects[int] = KeptObjects(Generations())
    count = 100
    monkeypatch.setattr(kept, "OBJECTS_KEPT_MAX", count)
    for number in range(5 * count):
        objects.look_up((1, b"%d" % number), lambda place: (int(place[1]), 0))
        assert objects.get((1, b"0")) == 0
    there = [number for number in range(5 * count) if objects.get((1, b"%d" % number)) is not None]
    assert there[0] == 0
    assert there[-1] == 5 * count - 1
    assert count // 2 <= len(there) <= count
    objects.clear()
    assert objects.get((1, b"0")) is None
