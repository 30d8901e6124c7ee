"""Where each chunk lies: two words of 8 bytes for each, whatever the number. Pure.

Theory of operation. A key is the extent's id with the chunk's index behind it, a place the segment, offset and length
of a record with one bit behind them that says it was read since it was written. Both are looked up in open addressing
over arrays: a dict would take five times the memory. The whole is cut into many small tables that grow one by one, so
that no look-up waits for all of it to be copied.
"""

from array import array
from collections.abc import Iterator
from typing import Final

from couchestord.cache.l2format import ALIGNMENT_BYTES
from couchestord.cache.tier import EXTENT_BITS

_CHUNK_BITS: Final = 20
_UNITS_BITS: Final = 11
_OFFSET_BITS: Final = 24
_READ: Final = 1
SEGMENT_BYTES_MAX: Final = ALIGNMENT_BYTES << _OFFSET_BITS
RECORD_BYTES_MAX: Final = ALIGNMENT_BYTES * ((1 << _UNITS_BITS) - 1)

_TABLES_COUNT: Final = 4096
_SLOTS_MIN: Final = 8
_MIX: Final = 0x9E3779B97F4A7C15


def key_of(extent: int, chunk: int) -> int:
    """The key of a chunk; 0 for one that no key stands for: it is never cached."""
    if extent < 1 << EXTENT_BITS and chunk < 1 << _CHUNK_BITS:
        return extent << _CHUNK_BITS | chunk
    return 0


def extent_of(key: int) -> int:
    return key >> _CHUNK_BITS


def chunk_of(key: int) -> int:
    return key & ((1 << _CHUNK_BITS) - 1)


def place_of(segment: int, offset: int, length: int) -> int:
    """A place, not read yet. Offset and length are those of the whole record, multiples of ALIGNMENT_BYTES."""
    units = offset // ALIGNMENT_BYTES << _UNITS_BITS | length // ALIGNMENT_BYTES
    return (segment << _OFFSET_BITS + _UNITS_BITS | units) << 1


def segment_of(place: int) -> int:
    return place >> _OFFSET_BITS + _UNITS_BITS + 1


def range_of(place: int) -> tuple[int, int]:
    """(offset, length) of the record."""
    place >>= 1
    length = (place & ((1 << _UNITS_BITS) - 1)) * ALIGNMENT_BYTES
    return (place >> _UNITS_BITS & ((1 << _OFFSET_BITS) - 1)) * ALIGNMENT_BYTES, length


def was_read(place: int) -> bool:
    return bool(place & _READ)


def is_one_place(one: int, other: int) -> bool:
    """Whether they are the same, read or not."""
    return one | _READ == other | _READ


class _Table:
    """Open addressing with linear probing; a key of 0 is an empty slot. At most three quarters are in use."""

    __slots__ = ("count", "keys", "mask", "places")

    def __init__(self, slots_count: int) -> None:
        self.count = 0
        self.mask = slots_count - 1
        self.keys = array("Q", bytes(8 * slots_count))
        self.places = array("Q", bytes(8 * slots_count))

    def find(self, key: int, mixed: int) -> int:
        """The slot that holds the key, or the empty one that it would take."""
        keys, mask = self.keys, self.mask
        at = mixed & mask
        while (found := keys[at]) and found != key:
            at = (at + 1) & mask
        return at

    def remove(self, at: int) -> None:
        """Empty a slot, and move those behind it that it was in the way of."""
        keys, places, mask = self.keys, self.places, self.mask
        hole = at
        while True:
            at = (at + 1) & mask
            key = keys[at]
            if not key:
                break
            if (at - (_mixed(key) & mask)) & mask >= (at - hole) & mask:
                keys[hole], places[hole] = key, places[at]
                hole = at
        # a look-up of key 0, which no chunk has, ends in an empty slot
        keys[hole] = places[hole] = 0
        self.count -= 1


def _mixed(key: int) -> int:
    return key * _MIX >> 40 & 0xFFFFFF


class L2Index:
    """Places by key. The caller bounds how many there are."""

    def __init__(self) -> None:
        # of one slot that is never used: the first key makes a table grow out of it
        self._tables = [_Table(1)] * _TABLES_COUNT
        self.count = 0

    def get(self, key: int) -> int:
        """The place, 0 when there is none."""
        product = key * _MIX
        table = self._tables[product >> 28 & 0xFFF]
        keys, mask = table.keys, table.mask
        at = product >> 40 & mask
        while (found := keys[at]) != key:
            if not found:
                return 0
            at = (at + 1) & mask
        return table.places[at]

    def put(self, key: int, place: int) -> None:
        """Set the place of a key, not 0."""
        table = self._table(key)
        at = table.find(key, _mixed(key))
        if not table.keys[at]:
            if 4 * table.count >= 3 * table.mask:
                table = self._grow(key)
                at = table.find(key, _mixed(key))
            table.keys[at] = key
            table.count += 1
            self.count += 1
        table.places[at] = place

    def add(self, key: int, place: int) -> bool:
        """Set the place of a key that has none; False, and nothing is changed, when it has one."""
        before = self.count
        table = self._table(key)
        if not table.keys[table.find(key, _mixed(key))]:
            self.put(key, place)
        return self.count > before

    def mark(self, key: int) -> None:
        """Note that the chunk was read. It must be there."""
        table = self._table(key)
        table.places[table.find(key, _mixed(key))] |= _READ

    def remove(self, key: int) -> None:
        """Forget a key; nothing when it is not there."""
        table = self._table(key)
        at = table.find(key, _mixed(key))
        if table.keys[at]:
            table.remove(at)
            self.count -= 1

    def __iter__(self) -> Iterator[int]:
        for table in self._tables:
            yield from filter(None, table.keys)

    def _table(self, key: int) -> _Table:
        return self._tables[key * _MIX >> 28 & 0xFFF]

    def _grow(self, key: int) -> _Table:
        number = key * _MIX >> 28 & 0xFFF
        old = self._tables[number]
        table = self._tables[number] = _Table(max(_SLOTS_MIN, 2 * (old.mask + 1)))
        for found, place in zip(old.keys, old.places, strict=True):
            if found:
                at = table.find(found, _mixed(found))
                table.keys[at], table.places[at] = found, place
        table.count = old.count
        return table
