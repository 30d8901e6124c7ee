"""How long what was looked up in the catalog may be kept. Pure.

Theory of operation. Who keeps a look-up keeps a number with it, and looks whether the number is still the same before
using it. Buckets, users and keys, directories, and segments have one number each. Objects, the bytes of
files and the places of extents have a table of slots, chosen by a hash: a change of one object drops that one, and the
few that share its slot.

The numbers lie in plain memory, so several processes may share them. They grow twice around a commit, so a row that was
read in between is kept under a number that does not last. Between the commit and the second time the commit is made
known (`io.sharedpage`): who sees a number of after it can see that its own transaction is older. A slot that readers
see is odd from the first time to the second: it stands for two states then, of before the commit and of after it.
"""

from typing import Final
from zlib import crc32

SLOTS_COUNT: Final = 1 << 16
_MASK: Final = SLOTS_COUNT - 1
_TREE, _NAMES, _SEGMENTS, _MOVES, _OPENED, _NUMBERS_COUNT = range(6)
NUMBERS_BYTES: Final = 8 * _NUMBERS_COUNT
MEMORY_BYTES: Final = NUMBERS_BYTES + 8 * SLOTS_COUNT


class Generations:
    """Numbers that change when one of what they stand for changes or goes.

    What is new changes none: that something is not there must not be kept. The one door through which look-ups are
    dropped. The writer's numbers grow as outcomes are applied; those that readers see follow when they are committed.
    None falls.
    """

    __slots__ = ("_numbers", "_touched", "slots")

    def __init__(self, memory: memoryview | None = None) -> None:
        """Over `MEMORY_BYTES` of zeroes that other processes may see too; None: over some of its own."""
        numbers = (memory if memory is not None else memoryview(bytearray(MEMORY_BYTES))).cast("B").cast("Q")
        self._numbers = numbers[:_NUMBERS_COUNT]
        self.slots = numbers[_NUMBERS_COUNT:]
        """By `slot_of_name`, `slot_of_file` and `slot_of_extent`: how often what is there was changed."""
        self._touched: set[int] = set()

    @property
    def numbers(self) -> memoryview:
        """All but the slots, `NUMBERS_BYTES`."""
        return self._numbers.cast("B")

    def share(self, memory: memoryview) -> None:
        """Go on in `MEMORY_BYTES` that other processes see, too."""
        shared = memory.cast("B").cast("Q")
        shared[:_NUMBERS_COUNT] = self._numbers
        shared[_NUMBERS_COUNT:] = self.slots
        self._numbers, self.slots = shared[:_NUMBERS_COUNT], shared[_NUMBERS_COUNT:]

    def is_current(self, changes: int = 0) -> bool:
        """Whether what is read now, in the transaction that is open, may be kept under these numbers; `changes`: of
        its slots, all bits that any of them has.
        """
        return True

    @property
    def tree(self) -> int:
        """Directories that moved or went."""
        return self._numbers[_TREE]

    @property
    def names(self) -> int:
        """Buckets, users and keys."""
        return self._numbers[_NAMES]

    @property
    def segments(self) -> int:
        """Segments, but for how much of them is in use."""
        return self._numbers[_SEGMENTS]

    @property
    def moves(self) -> int:
        """Extents that have another place."""
        return self._numbers[_MOVES]

    @property
    def opened(self) -> int:
        """Connections that readers had: another one may lead to a catalog that was made anew. Not followed."""
        return self._numbers[_OPENED]

    def stamp_of_names(self) -> int:
        """Changes with buckets, users and keys, or the connection. Cheaper than to compare one by one: none falls."""
        numbers = self._numbers
        return numbers[_NAMES] + numbers[_OPENED]

    def stamp_of_paths(self) -> int:
        """Changes with whatever a path leads through: buckets, directories, the connection."""
        numbers = self._numbers
        return numbers[_NAMES] + numbers[_OPENED] + numbers[_TREE]

    def stamp_of_places(self) -> int:
        """Changes with the place of any extent, or the connection."""
        numbers = self._numbers
        return numbers[_MOVES] + numbers[_OPENED]

    def change_tree(self) -> None:
        self._numbers[_TREE] += 1

    def change_names(self) -> None:
        self._numbers[_NAMES] += 1

    def change_segments(self) -> None:
        self._numbers[_SEGMENTS] += 1

    def change_object(self, directory: int, name: bytes) -> None:
        """The live object of that name is another one, or none."""
        self._touch(slot_of_name(directory, name))

    def change_file(self, inode: int) -> None:
        """A file is made of other bytes, or is gone."""
        self._touch(slot_of_file(inode))

    def change_place(self, extent: int) -> None:
        self._numbers[_MOVES] += 1
        self._touch(slot_of_extent(extent))

    def open(self) -> None:
        """Readers have another connection."""
        self._numbers[_OPENED] += 1

    def _touch(self, slot: int) -> None:
        self.slots[slot] += 1
        self._touched.add(slot)

    def follow(self, other: "Generations") -> None:
        """Change as the other did since it was settled. Twice around a commit; slots are odd in between."""
        self._numbers[: _MOVES + 1] = other._numbers[: _MOVES + 1]
        slots = self.slots
        for slot in other._touched:
            slots[slot] += 1

    def settle(self) -> None:
        """What was changed so far has been followed, or was taken back."""
        self._touched.clear()


def slot_of_name(directory: int, name: bytes) -> int:
    """The slot of an object: the same in all processes, unlike Python's hashes."""
    return crc32(name, directory & 0xFFFFFFFF) & _MASK


def slot_of_file(inode: int) -> int:
    """The slot of what a file is made of."""
    return inode & _MASK


def slot_of_extent(extent: int) -> int:
    """The slot of an extent's place. Extents of neighbouring ids have different ones."""
    return extent & _MASK
