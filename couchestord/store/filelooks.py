"""Files at one look: how long they are and where their bytes lie, kept as long as nobody changes them."""

from bisect import bisect_right
from mmap import mmap
from typing import Final

from couchestord.ec.resident import RESIDENT_BYTES_MAX
from couchestord.errors import DataLost, StaleInode
from couchestord.io.catalog.generations import slot_of_file
from couchestord.store.athand import ReaderParts, lend_at_hand, look_again
from couchestord.store.parts import CatalogView
from couchestord.store.reader import ZEROES
from couchestord.store.runs import Run, Stretch, find_stretch

FILES_KEPT_MAX: Final = 1024
STRETCHES_KEPT_MAX: Final = 64
"""Of one file, some 350 bytes each."""
LENT_BYTES_MAX: Final = 1 << 20
"""No more is lent at a time."""


class FileLook:
    """A file as it was published last when it was looked at."""

    __slots__ = ("_content", "_id", "_starts", "_stretches", "changes", "places", "size", "version")

    def __init__(self, id_: int, size: int, content: int | None, changes: int, places: int, version: int) -> None:
        self._id = id_
        self._content = content
        self._starts: list[int] = []
        self._stretches: list[Stretch] = []
        self.size = size
        self.changes = changes
        self.places = places
        self.version = version

    def runs(self, looks: "FileLooks", first: int, length: int) -> list[Run]:
        """What makes up a range, which ends with the file at most. Raises DataLost."""
        runs = []
        at, end = first, first + length
        while at < end:
            stretch = self._stretch(looks, at)
            take = min(end, stretch.end) - at
            runs.append(Run(stretch.extent, stretch.offset + at - stretch.start, take))
            at += take
        return runs

    def _stretch(self, looks: "FileLooks", at: int) -> Stretch:
        index = bisect_right(self._starts, at)
        if index and at < (found := self._stretches[index - 1]).end:
            return found
        found = looks.ask(self._id, self._content, self.size, at)
        if len(self._starts) >= STRETCHES_KEPT_MAX:
            self._starts.clear()
            self._stretches.clear()
        index = bisect_right(self._starts, at)
        self._starts.insert(index, found.start)
        self._stretches.insert(index, found)
        return found


class FileLooks:
    """Looks at a store's files, by number. At most `FILES_KEPT_MAX` are kept, the oldest in use go first. Synchronous;
    belongs to the store's task context.
    """

    def __init__(self, catalog: CatalogView, parts: ReaderParts) -> None:
        self._catalog = catalog
        self._parts = parts
        self._young: dict[int, FileLook] = {}
        self._old: dict[int, FileLook] = {}
        self._has_asked = False
        # mapped, not filled: most processes read no files
        self._memory, self._joined = (memoryview(mmap(-1, size)) for size in (RESIDENT_BYTES_MAX, LENT_BYTES_MAX))

    def find(self, id_: int, first: int, length: int) -> tuple[FileLook, list[Run]]:
        """A file, and where at most `length` bytes of it lie, fewer at its end, as anybody was told of before; until
        something is awaited. Raises StaleInode, DataLost.
        """
        while True:
            look = self._look(id_)
            self._has_asked = False
            try:
                runs = look.runs(self, first, min(length, look.size - first))
            except DataLost:
                if self._is_one_state(id_, look):
                    raise
                continue
            if not self._has_asked or self._is_one_state(id_, look):
                return look, runs

    def ask(self, id_: int, content: int | None, size: int, at: int) -> Stretch:
        """See `find_stretch`."""
        self._has_asked = True
        self._catalog.refresh()
        return find_stretch(self._catalog.reading, id_, content, size, at)

    def _look(self, id_: int) -> FileLook:
        now = self._catalog.generations
        kept = self._young.get(id_)
        # without a question no transaction is begun, which costs more than the look
        if kept is not None and now.is_current() and self._holds(id_, kept):
            return kept
        self._catalog.refresh()
        if kept is None:
            kept = self._old.pop(id_, None)
            if kept is not None:
                self._keep(id_, kept)
        if kept is not None and self._holds(id_, kept):
            return kept
        changes = now.slots[slot_of_file(id_)]
        node = self._catalog.files.node(id_)
        if node is None:
            raise StaleInode(f"file {id_} is gone")
        look = FileLook(id_, node.size, node.content, changes, now.stamp_of_places(), self._catalog.version)
        # last, as in `KeptObjects`: a state of before a commit may not be kept under the numbers of after it
        if now.is_current(changes):
            self._keep(id_, look)
        return look

    def _holds(self, id_: int, look: FileLook) -> bool:
        now = self._catalog.generations
        return now.slots[slot_of_file(id_)] == look.changes and now.stamp_of_places() == look.places

    def _is_one_state(self, id_: int, look: FileLook) -> bool:
        """Whether what was asked of the catalog after a look is of the state that was looked at, not of a later one."""
        # a number that is odd is that of a commit under way, and does not change with it
        return self._holds(id_, look) and (not look.changes & 1 or look.version == self._catalog.version)

    def _keep(self, id_: int, look: FileLook) -> None:
        if len(self._young) >= FILES_KEPT_MAX // 2:
            self._young, self._old = {}, self._young
        self._young[id_] = look

    async def look_again(self, id_: int, first: int, length: int) -> bytes | memoryview | None:
        """As `lend`, of a range of which that has just found nothing; see `athand.look_again`. Raises StaleInode,
        DataLost.
        """

        def find() -> Run | None:
            runs = self.find(id_, first, length)[1]
            return runs[0] if len(runs) == 1 else None

        return await look_again(self._parts, find, self._memory)

    def lend(self, runs: list[Run]) -> bytes | memoryview | None:
        """The bytes of runs that were found just now, verified, when all of them are in memory; else None. They are
        good until others are lent, or something is awaited.
        """
        length = sum([run.length for run in runs])
        if length > LENT_BYTES_MAX:
            return None
        filled = 0
        for extent, offset, left in runs:
            while left:
                if extent is None:
                    piece: bytes | memoryview | None = memoryview(ZEROES)[:left]
                else:
                    piece = lend_at_hand(self._parts, extent, offset, left, self._memory)
                if piece is None:
                    return None
                count = len(piece)
                if count == length:
                    return piece
                self._joined[filled : filled + count] = piece
                filled, offset, left = filled + count, offset + count, left - count
        return self._joined[:filled]
