"""A page of a listing from the tree of keys. A page costs what the page costs."""

from couchestord.io.catalog.read import CatalogReader, EntryRow
from couchestord.io.catalog.tree import EmptyDirectory, Found, ListRow
from couchestord.io.keys import prefix_range
from couchestord.model import LIST_KEYS_MAX, ListEntry, ListPage
from couchestord.store.values import etag_text, object_of_directory

DIRECTORIES_MAX = 5000
"""A page that had to go through so many directories ends, however few it found: a key may have 512 of its own."""
KEYS_BYTES_MAX = 4 << 20
"""A page with keys of so many bytes ends: what a mount has made may lie under one of a megabyte."""


def list_page(
    reader: CatalogReader, root: int, *, prefix: bytes, delimiter: bytes, start_after: bytes, max_keys: int
) -> ListPage:
    """One page, keys and common prefixes after `start_after`. Synchronous, within the caller's read transaction."""
    page = _Page(reader, root, prefix, delimiter, start_after, min(max(max_keys, 0), LIST_KEYS_MAX))
    if page.room:
        page.fill()
    return ListPage(tuple(page.entries), tuple(page.prefixes), page.last if page.truncated else None)


class _Page:
    def __init__(
        self, reader: CatalogReader, root: int, prefix: bytes, delimiter: bytes, start_after: bytes, room: int
    ) -> None:
        self._reader = reader
        self._root = root
        self._prefix = prefix
        self._delimiter = delimiter
        self.room = room
        self.entries: list[ListEntry] = []
        self.prefixes: list[bytes] = []
        self.last = b""
        self.truncated = False
        self._directories = 0
        self._keys_bytes = 0
        self._is_over = False
        self._low = start_after + b"\0" if start_after else b""
        if start_after and self._common(start_after) == start_after:
            # a page ended with this common prefix: nothing below it comes again
            self._pass_over(start_after)

    def _common(self, key: bytes) -> bytes | None:
        """The common prefix that a key falls under."""
        if not self._delimiter or not key.startswith(self._prefix):
            return None
        at = key.find(self._delimiter, len(self._prefix))
        return key[: at + len(self._delimiter)] if at >= 0 else None

    def _pass_over(self, common: bytes) -> None:
        low = prefix_range(common)[1]
        self._is_over = low is None
        self._low = low or b""

    def fill(self) -> None:
        walk = self._reader.walk(self._root, self._low, self._prefix)
        wish: bool | bytes | None = None
        try:
            while not (self._is_over or self.truncated):
                wish = self._take(*walk.send(wish))
        except StopIteration:
            return
        finally:
            walk.close()

    def _take(self, path: bytes, row: Found) -> bool | bytes | None:
        """What the walk came to. Answers what to send it: see there."""
        if isinstance(row, int):
            self._directories += 1
            if self._directories > DIRECTORIES_MAX and self.last:
                self.truncated = True
                return None
            # with `/` for a delimiter a directory is a common prefix, or lies in one: no need to go in
            if self._delimiter != b"/" or self._low.startswith(path):
                return None
            depth = self._reader.key_depth(row)
            self._directories += depth
            if not depth:
                return True
        common = self._common(path)
        if common is not None:
            self._add_prefix(common)
            if common != path or not isinstance(row, int):
                self._pass_over(common)
                return self._low
        elif not isinstance(row, int):
            self._add_key(path, object_of_directory(row) if isinstance(row, EmptyDirectory) else row)
        return True

    def _full(self) -> bool:
        if len(self.entries) + len(self.prefixes) >= self.room or self._keys_bytes >= KEYS_BYTES_MAX:
            self.truncated = True
        return self.truncated

    def _add_key(self, key: bytes, row: ListRow | EntryRow) -> None:
        if not self._full():
            self.entries.append(ListEntry(key, row.size, etag_text(row.etag), row.modified_ns))
            self._note(key)

    def _add_prefix(self, common: bytes) -> None:
        if not self._full():
            self.prefixes.append(common)
            self._note(common)

    def _note(self, last: bytes) -> None:
        self.last = last
        self._keys_bytes += len(last)
