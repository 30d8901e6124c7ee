"""What the processes of one daemon tell each other without a word: numbers in shared memory.

One process writes the catalog; the others read it and keep what they read. After each commit, and before anybody hears
of it, the writer says here what may be kept no longer, and then counts the change. Each reader has a word that says
which changes it is sure to see, so that nothing is freed under it, and one that grows as long as its loop turns.

All numbers are words of 64 bits, written whole. Each has one writer. That the count is written last is seen by others
as x86-64 promises it; a processor that may show it earlier would need a barrier in `publish` and `read`.
"""

import os
import struct
from mmap import mmap
from typing import Final

from couchestord.io.catalog.generations import MEMORY_BYTES, NUMBERS_BYTES, Generations

WORKERS_READERS_MAX: Final = 64
"""Processes that the daemon forks to read, at a time: their numbers are below."""
READERS_MAX: Final = 128
"""Processes that read, at a time."""
NOBODY: Final = (1 << 64) - 1
"""In the place of a reader that is not there: it sees everything."""
_VERSION, _SHUT, _SEQUENCE = range(3)
_NUMBERS: Final = 64
_READERS: Final = 512
_BEATS: Final = _READERS + 8 * READERS_MAX
_GENERATIONS: Final = _BEATS + 8 * READERS_MAX


class SharedPage:
    """Made before the processes that share it are forked; others get its `descriptor`."""

    def __init__(self, descriptor: int | None = None) -> None:
        """`descriptor`: that of a page which another process has made. It becomes this one's."""
        size_bytes = _GENERATIONS + MEMORY_BYTES
        is_new = descriptor is None
        if descriptor is None:
            descriptor = os.memfd_create("couchestord-page")
            os.ftruncate(descriptor, size_bytes)
        self.descriptor = descriptor
        self._memory = mmap(descriptor, size_bytes)
        whole = memoryview(self._memory)
        self._words = whole[:_NUMBERS].cast("Q")
        self._numbers = whole[_NUMBERS : _NUMBERS + NUMBERS_BYTES]
        self._readers = whole[_READERS:_BEATS].cast("Q")
        self._beats = whole[_BEATS:_GENERATIONS].cast("Q")
        self.generations = whole[_GENERATIONS:]
        """Memory for the `Generations` of the one process that writes."""
        for reader in range(READERS_MAX if is_new else 0):
            self.clear(reader)

    def close(self) -> None:
        """The descriptor is given back; the memory stays as long as it is used."""
        os.close(self.descriptor)

    # -- changes -----------------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """How many changes were published."""
        return self._words[_VERSION]

    @property
    def is_shut(self) -> bool:
        """True while nobody may read the catalog."""
        return bool(self._words[_SHUT])

    @property
    def sequence(self) -> int:
        """Of a record that was committed."""
        return self._words[_SEQUENCE]

    def publish(self, now: Generations, *, sequence: int, is_shut: bool) -> None:
        """A change was committed, or may have been, behind the record of that sequence. By the one process that
        writes.
        """
        self._numbers[:] = now.numbers
        self._words[_SEQUENCE] = sequence
        self._words[_SHUT] = is_shut
        # last: who sees the count sees what was counted
        self._words[_VERSION] += 1

    def read(self, into: Generations) -> int:
        """Takes the numbers, but for slots; returns the version they are of, or were of before. A read transaction that
        is begun after this sees all of it.
        """
        version = self.version
        into.numbers[:] = self._numbers
        return version

    # -- readers -----------------------------------------------------------------------------------------------------

    def see(self, reader: int, version: int) -> None:
        """Reader number `reader` sees everything up to that version in whatever it does from now on."""
        self._readers[reader] = version

    def clear(self, reader: int) -> None:
        """There is no such reader any more."""
        self._readers[reader] = NOBODY

    def beat(self, reader: int) -> None:
        """Reader number `reader` goes on."""
        self._beats[reader] += 1

    def beats(self, reader: int) -> int:
        """How often readers of that number have said that they go on."""
        return self._beats[reader]

    def seen(self, reader: int) -> int:
        """What it said last; NOBODY when it is not there."""
        return self._readers[reader]

    def seen_by_all(self) -> int:
        """Every reader sees everything up to this version."""
        oldest: int = min(struct.unpack(f"{READERS_MAX}Q", self._readers))
        return oldest
