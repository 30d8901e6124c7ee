"""Where chunks of the second cache lie, for all processes of a daemon: a map in memory that they share.

Theory of operation. One process has the folder, its ring and its index; it writes here what the others need to read
chunks by themselves. Nothing of it has to be right: a record in a segment says itself whose it is and is summed, so
whoever follows a slot that is torn, out of date or not there misses, and never finds a wrong byte. That is why the map
may be of a fixed size, without locks: a key has four slots to choose from, and takes that of another when none is free.

Which records count (`Records`) stands in the head, with a sum of its own, and behind a number that grows whenever it
changes. The head also says of which opening of the store it is. Who has another one open finds nothing: after a start
that found the log cut short, ids stand for other bytes, and neither side is to meet records of the other.
"""

import struct
from mmap import MADV_REMOVE, PAGESIZE, mmap
from typing import Final

import trio

from couchestord.cache.l2index import was_read
from couchestord.cache.l2reading import Records
from couchestord.io.checksum import xxh3_64

SLOT_BYTES: Final = 16 << 10
"""There is a slot for so many bytes of the cache, or for half of it."""
SLOTS_MIN: Final = 1 << 10
SLOTS_MAX: Final = 1 << 24
WAYS: Final = 4
_SET_WORDS: Final = 2 * WAYS
"""The keys of a set's slots, then their places: one line of the processor's cache."""
_MIX: Final = 0x9E3779B97F4A7C15
_CLEARED_BYTES: Final = 4 << 20
"""At once: a millisecond or two."""

_SEQUENCE, _OPENING = range(2)
_WORDS: Final = struct.Struct("<QQ")
_SUM: Final = struct.Struct("<Q")
_FIXED: Final = struct.Struct("<QQQQ")
"""Opening, salt, session, how many limits follow; of those, 0 while the cache is off."""
_HEAD_BYTES: Final = 4096
_FIXED_AT: Final = _WORDS.size + _SUM.size
_LIMITS_AT: Final = _FIXED_AT + _FIXED.size
_LIMITS_MAX: Final = (_HEAD_BYTES - _LIMITS_AT) // 8


class L2Map:
    """Made before the processes that share it are forked, for a cache of `size_bytes`.

    It takes 17 bytes a slot, which the system gives when they are written for the first time.
    """

    def __init__(self, size_bytes: int) -> None:
        slots_count = min(SLOTS_MAX, max(SLOTS_MIN, 1 << (size_bytes // SLOT_BYTES).bit_length()))
        self._mask = slots_count // WAYS - 1
        slots_end = _HEAD_BYTES + 16 * slots_count
        self._end = -(-(slots_end + slots_count) // PAGESIZE) * PAGESIZE
        self._memory = mmap(-1, self._end)
        whole = memoryview(self._memory)
        self._words = whole[: _WORDS.size].cast("Q")
        self._slots = whole[_HEAD_BYTES:slots_end].cast("Q")
        self._marks = whole[slots_end:]
        """By slot: not 0 when the chunk was read since it was written."""

    # -- by the process that has the folder ----------------------------------------------------------------------------

    @property
    def opening(self) -> int:
        """The number of the store's opening that it is of."""
        return self._words[_OPENING]

    def begin(self) -> None:
        """A store is opened: whoever reads for an earlier opening finds nothing any more."""
        self._words[_OPENING] += 1
        self.close()

    def open(self, records: Records) -> None:
        """The cache is on: chunks are found from now on."""
        self._write(records)

    def close(self) -> None:
        """The cache is off: nothing is found."""
        self._write(Records(0, 0, ()))

    def _write(self, records: Records) -> None:
        limits = records.limits
        assert len(limits) <= _LIMITS_MAX
        head = _FIXED.pack(self.opening, records.salt, records.session, len(limits))
        head += struct.pack(f"<{len(limits)}Q", *limits)
        # odd while it is being written, by one that was killed at it, too
        self._words[_SEQUENCE] |= 1
        self._memory[_WORDS.size : _FIXED_AT + len(head)] = _SUM.pack(xxh3_64(head)) + head
        self._words[_SEQUENCE] += 1

    async def clear(self) -> None:
        """Forget all slots, and give their memory back. To be called while it is closed."""
        for start in range(_HEAD_BYTES, self._end, _CLEARED_BYTES):
            self._memory.madvise(MADV_REMOVE, start, min(_CLEARED_BYTES, self._end - start))
            await trio.lowlevel.checkpoint()

    def put(self, key: int, place: int) -> None:
        """Set the place of a key, perhaps instead of another key's."""
        slots, at = self._slots, self.find(key)
        if at < 0:
            at = self._free(key)
            # first: who finds a key must not find the place of the one before
            slots[at] = 0
        slots[at + WAYS] = place
        self._marks[_slot(at)] = was_read(place)
        slots[at] = key

    def _free(self, key: int) -> int:
        """Where a key goes that has no slot: an empty one, else one that nobody has read, else any."""
        first = self._set(key)
        ways = range(first, first + WAYS)
        for at in ways:
            if not self._slots[at]:
                return at
        chosen = first + (key * _MIX >> 36) % WAYS
        unread = (at for at in ways if not self._marks[_slot(at)])
        return chosen if not self._marks[_slot(chosen)] else next(unread, chosen)

    def remove(self, key: int) -> None:
        """Forget a key; nothing when it has no slot."""
        at = self.find(key)
        if at >= 0:
            self._slots[at] = 0

    def was_read(self, key: int) -> bool:
        """Whether another process has read the chunk since it was put here. A hint: it may be forgotten."""
        at = self.find(key)
        return at >= 0 and bool(self._marks[_slot(at)])

    # -- by those that read beside it ----------------------------------------------------------------------------------

    @property
    def sequence(self) -> int:
        """A number that is another one when the head is."""
        return self._words[_SEQUENCE]

    def records(self, opening: int) -> Records | None:
        """Which records count for who reads for that opening of the store; None: none do, for now."""
        head = bytes(self._memory[_WORDS.size : _HEAD_BYTES])
        found, salt, session, count = _FIXED.unpack_from(head, _SUM.size)
        if found != opening or not 0 < count <= _LIMITS_MAX:
            return None
        end = _SUM.size + _FIXED.size + 8 * count
        if xxh3_64(head[_SUM.size : end]) != _SUM.unpack_from(head)[0]:
            return None  # it is being written
        return Records(salt, session, struct.unpack_from(f"<{count}Q", head, _SUM.size + _FIXED.size))

    def find(self, key: int) -> int:
        """The number of a key's slot; less than 0 when it has none."""
        slots, at = self._slots, self._set(key)
        if slots[at] == key:
            return at
        if slots[at + 1] == key:
            return at + 1
        if slots[at + 2] == key:
            return at + 2
        return at + 3 if slots[at + 3] == key else -1

    def place(self, at: int) -> int:
        """What the slot of that number says; perhaps of another key by now."""
        return self._slots[at + WAYS]

    def mark(self, at: int) -> None:
        """Note that the chunk of that slot was read."""
        mark = _slot(at)
        if not self._marks[mark]:
            self._marks[mark] = 1

    def _set(self, key: int) -> int:
        """The number of the first slot that a key may have."""
        return (key * _MIX >> 40 & self._mask) * _SET_WORDS


def _slot(at: int) -> int:
    """Slots counted without their places."""
    return at // _SET_WORDS * WAYS + at % _SET_WORDS
