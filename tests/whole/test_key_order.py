"""The tree of keys keeps S3's order: docs/adr/0001-one-tree-of-keys.md rests on these properties.

The tree here is the smallest one that has the catalog's primary key, (directory id, name), in the catalog's engine; the
cutting of keys and the bounds of ranges are the product's.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

from hypothesis import example, given
from hypothesis import strategies as st

from couchestord.io.keys import prefix_range, split_key

ROOT = 1
SQL_CREATE = "create table entry(directory int, name blob, child int, primary key(directory, name)) without rowid"
SQL_CHILD = "select child from entry where directory = ? and name = ?"
SQL_INSERT = "insert into entry values(?, ?, ?)"
SQL_NAMES = "select name, child from entry where directory = ? and name >= ? order by name"
SQL_NAMES_BELOW = "select name, child from entry where directory = ? and name >= ? and name < ? order by name"

# Bytes that a wrong order trips over: the ends of the range, `/` (0x2f) and its neighbours `.` and `0`.
PIECES = st.sampled_from([b"a", b"b", b"/", b".", b"0", b"-", b"\x00", b"\xff", b"//", b"a/", b"a.", b"a0"])
KEYS = st.one_of(st.lists(PIECES, min_size=1, max_size=7).map(b"".join), st.binary(min_size=1, max_size=8))


class Tree:
    """A directory of entries by (directory id, name); `child` is None for an object."""

    def __init__(self, keys: set[bytes]) -> None:
        self._database = sqlite3.connect(":memory:")
        self._database.execute(SQL_CREATE)
        self._directory_last = ROOT
        for key in keys:
            self._insert(key)

    def close(self) -> None:
        self._database.close()

    def _insert(self, key: bytes) -> None:
        parts, name = split_key(key)
        directory = ROOT
        for part in parts:
            child = self._child(directory, part)
            if child is None:
                self._directory_last = child = self._directory_last + 1
                self._database.execute(SQL_INSERT, (directory, part, child))
            directory = child
        self._database.execute(SQL_INSERT, (directory, name, None))

    def _child(self, directory: int, name: bytes) -> int | None:
        row = self._database.execute(SQL_CHILD, (directory, name)).fetchone()
        return None if row is None else row[0]

    def names(self, directory: int, prefix: bytes) -> list[tuple[bytes, int | None]]:
        low, high = prefix_range(prefix)
        if high is None:
            return self._database.execute(SQL_NAMES, (directory, low)).fetchall()
        return self._database.execute(SQL_NAMES_BELOW, (directory, low, high)).fetchall()

    def find(self, prefix: bytes) -> tuple[int, bytes, bytes] | None:
        """The directory that a prefix leads into, its path, and where names begin there; None when there is none."""
        parts, begin = split_key(prefix)
        directory = ROOT
        for part in parts:
            child = self._child(directory, part)
            if child is None:
                return None
            directory = child
        return directory, b"".join(parts), begin

    def walk(self, prefix: bytes = b"") -> Iterator[bytes]:
        found = self.find(prefix)
        if found is None:
            return
        directory, path, begin = found
        yield from self._walk(directory, path, begin)

    def _walk(self, directory: int, path: bytes, begin: bytes) -> Iterator[bytes]:
        for name, child in self.names(directory, begin):
            if child is None:
                yield path + name
            else:
                yield from self._walk(child, path + name, b"")


@given(st.sets(KEYS, max_size=30))
@example({b"a", b"a/", b"a//b", b"a/b", b"a.", b"a0", b"a.b/c", b"a0/c"})
@example({b"a\x00", b"a/\x00", b"a/", b"a", b"a\xff", b"a/\xff/", b"/", b"//"})
def test_a_walk_in_depth_gives_keys_in_bytewise_order(keys: set[bytes]) -> None:
    with closing(Tree(keys)) as tree:
        assert list(tree.walk()) == sorted(keys)


@given(st.sets(KEYS, max_size=30), KEYS | st.just(b""))
@example({b"a/b", b"a.b", b"a0", b"a"}, b"a")
@example({b"a/\xff\xff", b"a/\xff", b"a/b", b"a0"}, b"a/\xff")
def test_a_walk_from_a_prefix_gives_the_keys_that_begin_with_it(keys: set[bytes], prefix: bytes) -> None:
    with closing(Tree(keys)) as tree:
        assert list(tree.walk(prefix)) == sorted(key for key in keys if key.startswith(prefix))


@given(st.sets(KEYS, max_size=30), KEYS | st.just(b""))
@example({b"a/b", b"a/c/d", b"a/c/e", b"a/c", b"a//"}, b"a/")
def test_one_range_of_one_directory_is_the_listing_with_delimiter(keys: set[bytes], prefix: bytes) -> None:
    expected = set()
    for key in keys:
        if key.startswith(prefix):
            end = key.find(b"/", len(prefix))
            expected.add(key if end < 0 else key[: end + 1])
    with closing(Tree(keys)) as tree:
        found = tree.find(prefix)
        rows = [] if found is None else [found[1] + name for name, _ in tree.names(found[0], found[2])]
    assert rows == sorted(expected)
