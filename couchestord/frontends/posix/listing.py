"""Open directories. A listing goes on behind an entry by the entry's own number, whatever came or went meanwhile."""

from array import array
from typing import Final, NamedTuple, Protocol

from couchestord.io.catalog.files import NodeRow
from couchestord.store.files import Shown

_PAGE_ENTRIES: Final = 128
_NUMBERS_MAX: Final = 4 * _PAGE_ENTRIES
"""Of one page: beyond that what is gone is forgotten."""
PAGES_KEPT_MAX: Final = 8192
SELF, PARENT, _FIRST = 1, 2, 3
"""Numbers of `.` and `..`; no entry of the store has so low a one."""


class Listed(NamedTuple):
    """`number`: where to go on behind it. `node` None: what the directory `id` lies in."""

    name: bytes
    id: int
    node: NodeRow | None
    number: int


class _Tree(Protocol):
    @property
    def version(self) -> int: ...

    def node(self, id_: int) -> NodeRow: ...

    def name_of(self, directory: int, number: int) -> bytes | None: ...

    def entries(self, directory: int, after: bytes | None, limit: int) -> list[Shown]: ...


class OpenDirectory:
    """One handle's. It keeps eight bytes for each entry of the pages that it has read last, a million entries or so,
    when it begins again as well: who goes back to the beginning may go on behind any number that it was given before.
    """

    def __init__(self, directory: int) -> None:
        self.directory = directory
        self._pages: dict[bytes | None, array[int]] = {}
        """By the name behind which a page begins the numbers of all that was shown in it, in that order; what is gone
        since is among them.
        """
        self._last: list[Shown] = []
        self._seen = -1
        """Of which version of the tree the last page is."""

    def read(self, tree: _Tree, after: int) -> list[Listed]:
        """Some entries behind that number, from the beginning with 0; none: that was all. Behind a number that tells
        nothing any more comes what comes behind `..`: rather twice than not at all. Raises NotADirectory.
        """
        found: list[Listed] = []
        if after < SELF:
            self._last = []
            found.append(Listed(b".", self.directory, tree.node(self.directory), SELF))
        if after < PARENT:
            found.append(Listed(b"..", self.directory, None, PARENT))
        rows = self._page(tree, None) if after < _FIRST else self._behind(tree, after)
        return [*found, *(Listed(name, row.node.id, row.node, row.cookie) for name, row in rows)]

    def _behind(self, tree: _Tree, after: int) -> list[Shown]:
        for index, (_, row) in enumerate(self._last):
            if row.cookie == after:
                rest = self._last[index + 1 :]
                # what was looked up before a change is not shown after it
                return rest if rest and tree.version == self._seen else self._page(tree, row.name)
        for low, numbers in reversed(self._pages.items()):  # the last knows best what was shown before that entry
            if after in numbers:
                return self._page(tree, low, numbers.index(after) + 1)
        return self._page(tree, tree.name_of(self.directory, after))

    def _page(self, tree: _Tree, low: bytes | None, passed: int = 0) -> list[Shown]:
        """Entries behind a name, and behind the first `passed` of those that its page has shown before."""
        self._seen = tree.version
        numbers = self._pages[low] = self._pages.pop(low, array("q"))
        if len(self._pages) > PAGES_KEPT_MAX:
            del self._pages[next(iter(self._pages))]
        rows = tree.entries(self.directory, low, _PAGE_ENTRIES + len(numbers))
        # the entry to go on behind may be gone: then the last one before it that is there says where that is
        order = {number: index for index, number in enumerate(numbers)}
        begin = end = 0
        for index, (_, row) in enumerate(rows, start=1):
            place = order.get(row.cookie)
            if place is not None and place >= passed:
                end = index
            elif place is not None and not end:
                begin = index
        if end:
            kept = _merged(numbers, rows[:end])
            if len(kept) > _NUMBERS_MAX:
                kept = array("q", [row.cookie for _, row in rows[:end]])
            self._pages[low] = kept
            self._last = rows[begin:end]
        elif begin:
            return self._page(tree, rows[begin - 1].row.name)
        else:
            self._last = rows[:_PAGE_ENTRIES]
            numbers.extend(row.cookie for _, row in self._last)
        return self._last


def _merged(numbers: "array[int]", rows: list[Shown]) -> "array[int]":
    """Numbers of a page and of the entries that it has now, in order; what is gone stays behind what it was behind."""
    found = array("q")
    order = {row.cookie: index for index, (_, row) in enumerate(rows)}
    at = 0
    for number in numbers:
        index = order.get(number)
        if index is None:
            found.append(number)
        elif index >= at:
            found.extend(row.cookie for _, row in rows[at : index + 1])
            at = index + 1
    return found
