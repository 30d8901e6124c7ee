"""Objects that were looked up, kept as long as nobody changed them."""

from collections.abc import Callable
from typing import Generic, TypeVar

from couchestord.io.catalog.generations import Generations, slot_of_extent, slot_of_name

OBJECTS_KEPT_MAX = 16_384
"""Some 700 bytes each, and what they have of attributes."""

Row = TypeVar("Row")
Place = tuple[int, bytes]
"""(directory, name)."""
Reading = Callable[[Place], tuple[Row, int | None] | None]


class KeptObjects(Generic[Row]):
    """Rows of live objects by (directory, name). At most `OBJECTS_KEPT_MAX`, the oldest in use go first."""

    __slots__ = ("_now", "_old", "_young")

    def __init__(self, now: Generations) -> None:
        self._now = now
        self._young: dict[Place, tuple[Row, int, int, int, int]] = {}
        self._old: dict[Place, tuple[Row, int, int, int, int]] = {}

    def get(self, place: Place) -> Row | None:
        """What is kept of the object at (directory, name), None when nothing is, or it may have changed."""
        kept = self._young.get(place)
        if kept is None:
            kept = self._old.pop(place, None)
            if kept is None:
                return None
            self._add(place, kept)
        row, slot, changes, place_slot, moves = kept
        slots = self._now.slots
        return row if slots[slot] == changes and slots[place_slot] == moves else None

    def look_up(self, place: Place, read: Reading[Row]) -> Row | None:
        """What `read` finds, which is kept: a row, and the extent whose place it names, 0 for none; None for a row that
        is too large for that.
        """
        slots, slot = self._now.slots, slot_of_name(*place)
        changes = slots[slot]
        found = read(place)
        if found is None:
            return None
        row, extent = found
        if extent is None:
            return row
        place_slot = slot_of_extent(extent)
        moves = slots[place_slot]
        # last: numbers of after a commit, of which a row of before must not be kept, come only behind its being told
        if self._now.is_current(changes | moves):
            self._add(place, (row, slot, changes, place_slot, moves))
        return row

    def _add(self, place: Place, kept: tuple[Row, int, int, int, int]) -> None:
        if len(self._young) >= OBJECTS_KEPT_MAX // 2:
            self._young, self._old = {}, self._young
        self._young[place] = kept

    def clear(self) -> None:
        self._young.clear()
        self._old.clear()
