"""What the processes of one daemon tell each other without a word: numbers in shared memory.

One process writes the catalog; the others read it and keep what they read. After each commit, and before anybody hears
of it, the writer says here what may be kept no longer, and then counts the change. Each reader has a word that says
which changes it is sure to see, so that nothing is freed under it, and one that grows as long as its loop turns.

Words of processes that were forked are in the page: who forked them clears them once they are dead. Any other process
may go on after it was given up, stopped for a while say, and write then. So each has words in memory of its own, which
is looked at as long as it is let in: what it writes later is read by nobody, and is in no other reader's way.

All numbers are words of 64 bits, written whole. Each has one writer. That the count is written last is seen by others
as x86-64 promises it; a processor that may show it earlier would need a barrier in `publish` and `read`.
"""

import os
import struct
from mmap import mmap
from typing import Final

from couchestord.io.catalog.generations import MEMORY_BYTES, NUMBERS_BYTES, Generations

READERS_MAX: Final = 64
"""Processes that were forked to read, at a time."""
ALONE: Final = 0
"""The number of a reader whose words are in memory of its own."""
NOBODY: Final = (1 << 64) - 1
"""In the place of a reader that is not there: it sees everything."""
_VERSION, _SHUT, _SEQUENCE = range(3)
_NUMBERS: Final = 64
_READERS: Final = 512
_BEATS: Final = _READERS + 8 * READERS_MAX
_GENERATIONS: Final = _BEATS + 8 * READERS_MAX


class SharedPage:
    """Made before the processes that share it are forked; others get the descriptors of one that was made `apart`."""

    def __init__(self, descriptor: int | None = None, words: int | None = None) -> None:
        """`descriptor`: that of a page which another process has made; `words`: that of memory for readers' words which
        are not in the page. They become this one's.
        """
        size_bytes = _GENERATIONS + MEMORY_BYTES
        is_new = descriptor is None
        self.descriptor = _memory(size_bytes) if descriptor is None else descriptor
        self.words = words
        whole = memoryview(mmap(self.descriptor, size_bytes))
        said = whole if words is None else memoryview(mmap(words, _GENERATIONS))
        self._words = whole[:_NUMBERS].cast("Q")
        self._numbers = whole[_NUMBERS : _NUMBERS + NUMBERS_BYTES]
        self._readers = said[_READERS:_BEATS].cast("Q")
        self._beats = said[_BEATS:_GENERATIONS].cast("Q")
        self.generations = whole[_GENERATIONS:]
        """Memory for the `Generations` of the one process that writes."""
        self.let_in: set[SharedPage] = set()
        """The same page, made `apart`, as those have it whom this process has let in, until it gives them up."""
        if is_new:
            self._clear_all()

    def apart(self) -> "SharedPage":
        """The same page for a reader that was not forked, number `ALONE` there. Raises OSError."""
        words = _memory(_GENERATIONS)
        try:
            made = SharedPage(os.dup(self.descriptor), words)
        except OSError:
            os.close(words)
            raise
        made._clear_all()
        return made

    @property
    def descriptors(self) -> list[int]:
        """What another process makes the same page of."""
        return [self.descriptor] if self.words is None else [self.descriptor, self.words]

    def close(self) -> None:
        """The descriptors are given back; the memory stays as long as it is used."""
        for each in self.descriptors:
            os.close(each)

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
        """There is no such reader any more: the process is dead."""
        self._readers[reader] = NOBODY

    def _clear_all(self) -> None:
        for reader in range(READERS_MAX):
            self.clear(reader)

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
        """Every reader, whether it was forked or let in, sees everything up to this version."""
        oldest: int = min(struct.unpack(f"{READERS_MAX}Q", self._readers))
        return min([oldest, *(each.seen(ALONE) for each in self.let_in)])


def _memory(size_bytes: int) -> int:
    descriptor = os.memfd_create("couchestord-page")
    os.ftruncate(descriptor, size_bytes)
    return descriptor
