"""Walks through the tree of keys: the part of `CatalogReader` that listings ask."""

from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple


class ListRow(NamedTuple):
    size: int
    etag: bytes
    modified_ns: int
    inode: int


class EmptyDirectory(NamedTuple):
    """One that holds nothing, no version either: somebody has asked to keep it."""

    id: int
    changed_ns: int


Found = int | ListRow | EmptyDirectory


class TreeReader:
    """Asks through the connection of whoever is derived from it. Synchronous."""

    _row: Callable[..., Any]
    _each: Callable[..., Iterator[Any]]

    def empty_directory(self, id_: int) -> EmptyDirectory | None:
        """The directory of that number when it is empty, and not the root of a bucket."""
        row = self._row(
            "select id, changed_ns from directory d where id=? and parent<>0 "
            "and not exists (select 1 from entry where directory=d.id) "
            "and not exists (select 1 from version where directory=d.id)",
            (id_,),
        )
        return EmptyDirectory(*row) if row else None

    def walk(self, root: int, low: bytes, prefix: bytes) -> Generator[tuple[bytes, Found], bool | bytes | None, None]:
        """Keys and directories below a root from key `low` on, in S3's order, within `prefix`.

        Yields (path, id) before it goes into a directory whose path is longer than the prefix: send True to pass it
        over. Yields (key, row) for an object, and for a directory in which it found nothing (key: its path). Send a
        later key to go on from there: the directories that lead to both are not gone through again. Stays inside one
        read transaction: take a page, then close it.
        """
        low = max(low, prefix)
        # the path to where it is, and the directories on the way down: (length of the path, id, whether no row was
        # seen, rows not yet seen). A stack of our own: a key may have 1024 directories, and below a mount any number
        path = b""
        stack = [(0, root, False, self._names_from(root, b"", low))]
        while stack:
            length, directory, is_fresh, rows = stack[-1]
            path = path[:length]
            name, wish = None, None
            for name, child, *row in rows:
                key = path + name
                if not key.startswith(prefix) and not prefix.startswith(key):
                    if key > prefix:
                        return
                    continue
                if child:
                    wish = (yield key, child) if len(key) > len(prefix) else None
                    if not wish:
                        stack[-1] = length, directory, False, rows
                        stack.append((len(key), child, True, self._names_from(child, key, low)))
                        path = key
                        break
                elif key.startswith(prefix):
                    wish = yield key, ListRow(*row)
                if isinstance(wish, bytes):
                    break
            else:
                stack.pop()
                if is_fresh and name is None and path >= low:
                    empty = self.empty_directory(directory)
                    if empty is not None:
                        wish = yield path, empty
            if isinstance(wish, bytes):
                low = wish
                while not low.startswith(path[: stack[-1][0]]):
                    stack.pop()
                length, directory, *_ = stack.pop()
                stack.append((length, directory, False, self._names_from(directory, path[:length], low)))

    def _names_from(self, directory: int, path: bytes, low: bytes) -> Iterator[Any]:
        """Rows of a directory at `path`, without those whose keys all come before `low`."""
        part, slash, _ = low[len(path) :].partition(b"/") if low.startswith(path) else (b"", b"", b"")
        return self._each(
            "select name, child, size, etag, modified_ns, inode from entry where directory=? and name>=? order by name",
            (directory, part + slash),
        )

    def key_depth(self, directory: int) -> int:
        """In how many directories, one in the other, the first key lies that is found, of a live object or an empty
        directory; 0: there is none.
        """
        question = "select child from entry where directory=?"
        # one row at a time: the first directory of a hundred thousand mostly has one
        stack = [self._each(question, (directory,))]
        fresh = directory
        while stack:
            row = next(stack[-1], None)
            if row is None:
                if fresh and self.empty_directory(fresh):
                    return len(stack)
                stack.pop()
                fresh = 0
            elif row[0]:
                fresh = row[0]
                stack.append(self._each(question, (fresh,)))
            else:
                return len(stack)
        return 0
