"""The tree of keys beside a flat table of keys, and where an entry keeps the place of its bytes: CPU and bytes.

    python -m bench.key_tree             # 10 thousand, 100 thousand, 1 million keys (docs/adr/0001-one-tree-of-keys.md)
    python -m bench.key_tree --large     # 10 million too
    python -m bench.key_tree --places    # docs/adr/0002-entry-names-its-content.md

Figures are medians over samples of the CPU time of this process (user and system), so they do not tell what a cold disk
or a sync costs. The databases lie in files (SQLite, WAL, synchronous=NORMAL, page cache of 64 MiB) below `--folder`, by
default the system's folder for temporary files: choose one on a disk. Keys come in random order, as they do in life.
Both files are in the kernel's page cache when they are measured; a line says so where they were not.
Both tables hold the same columns beside the key, and their answers are compared before they are measured.
"""

import argparse
import gc
import platform
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from bench.key_database import KEYS_PER_DIRECTORY, Database, Row, bulk_key, disk_reads_count, median_us, row_of
from bench.key_places import compare_places
from couchestord.io.keys import prefix_range, split_key

KEYS_COUNTS = (10_000, 100_000, 1_000_000)
KEYS_COUNT_LARGE = 10_000_000
SPARSE_COUNT = 20_000
PAGE_KEYS = 1000
GROUP_PUTS = 256
RENAME_FLAT_KEYS_MAX = 1_000_000
PLACES_KEYS_COUNT = 1_000_000
ROOT = 1

COLUMNS = "size integer, etag blob, modified integer, extent integer"
ROW = "size, etag, modified, extent"
# `child` is 0 for an object, and not null for a reason: SQLite takes a primary key for unique, in its plans, only if
# the first column after the key cannot be null either. Else it sorts each child directory whole to answer LIST_JOINED.
TREE_SCHEMA = f"""
create table entry(
  directory integer, name blob, child integer not null, {COLUMNS}, primary key(directory, name)
) without rowid;
create table directory(id integer primary key, parent integer, kept integer);
"""
FLAT_SCHEMA = f"create table object(bucket integer, key blob, {COLUMNS}, primary key(bucket, key)) without rowid;"

Listing = list[tuple[bytes, int, bytes, int]]


def sparse_key(index: int) -> bytes:
    return b"one/d%06d/f" % index


class Tree(Database):
    """Keys as entries (directory id, name)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, TREE_SCHEMA)
        self.paths: dict[bytes, int] = {}
        self._directory_last = ROOT

    def put(self, key: bytes, row: Row) -> None:
        """As the writer does: path from the cache, else from the table, missing directories made, the old row read."""
        end = key.rfind(b"/") + 1
        directory = self.paths.get(key[:end])
        if directory is None:
            directory = self._make_path(key)
        self.sql.execute("select extent from entry where directory=? and name=?", (directory, key[end:])).fetchone()
        self.sql.execute("insert or replace into entry values(?,?,0,?,?,?,?)", (directory, key[end:], *row))

    def _make_path(self, key: bytes) -> int:
        parts, _ = split_key(key)
        directory, path, exists = ROOT, b"", True
        for part in parts:
            path += part
            child = self.paths.get(path) or (self.find(directory, part) if exists else None)
            if child is None:
                exists = False
                self._directory_last = child = self._directory_last + 1
                self.sql.execute("insert into entry(directory, name, child) values(?,?,?)", (directory, part, child))
                self.sql.execute("insert into directory values(?,?,0)", (child, directory))
            self.paths[path] = directory = child
        return directory

    def find(self, directory: int, name: bytes) -> int | None:
        row = self.sql.execute("select child from entry where directory=? and name=?", (directory, name)).fetchone()
        return row[0] if row else None

    def resolve(self, path: bytes) -> int:
        directory = ROOT
        for part in split_key(path)[0]:
            child = self.find(directory, part)
            assert child is not None
            directory = child
        return directory

    def get(self, key: bytes) -> Row | None:
        end = key.rfind(b"/") + 1
        return self._row(self.paths[key[:end]], key[end:])

    def get_uncached(self, key: bytes) -> Row | None:
        return self._row(self.resolve(key), key[key.rfind(b"/") + 1 :])

    def _row(self, directory: int, name: bytes) -> Row | None:
        sql = f"select {ROW} from entry where directory=? and name=?"
        row: Row | None = self.sql.execute(sql, (directory, name)).fetchone()
        return row

    def delete(self, key: bytes) -> None:
        """Removes a key, and its directories for as long as they are empty then."""
        parts, name = split_key(key)
        self.sql.execute("delete from entry where directory=? and name=?", (self.paths[b"".join(parts)], name))
        for depth in range(len(parts), 0, -1):
            directory = self.paths[b"".join(parts[:depth])]
            if self.sql.execute("select 1 from entry where directory=? limit 1", (directory,)).fetchone():
                return
            parent = self.paths[b"".join(parts[: depth - 1])] if depth > 1 else ROOT
            self.sql.execute("delete from entry where directory=? and name=?", (parent, parts[depth - 1]))
            self.sql.execute("delete from directory where id=?", (directory,))
            del self.paths[b"".join(parts[:depth])]

    def list_directory(self, path: bytes) -> Listing:
        sql = "select name, size, etag, modified from entry where directory=? and name>=? order by name limit ?"
        rows = self.sql.execute(sql, (self.paths[path], b"", PAGE_KEYS)).fetchall()
        return [(path + name, size, etag, modified) for name, size, etag, modified in rows]

    def list_each(self, path: bytes, begin: bytes) -> Listing:
        """Keys of the directories of `path` from `begin` on, one query for each directory."""
        listing: Listing = []
        sql = "select name, child, size, etag, modified from entry where directory=? and name>=? order by name limit ?"
        for name, child, *_ in self.sql.execute(sql, (self.paths[path], begin, PAGE_KEYS)).fetchall():
            rows = self.sql.execute(sql, (child, b"", PAGE_KEYS - len(listing))).fetchall()
            listing += [(path + name + last, size, etag, modified) for last, _, size, etag, modified in rows]
            if len(listing) >= PAGE_KEYS:
                break
        return listing

    LIST_JOINED = """
        select a.name, a.size, a.etag, a.modified, b.name, b.child, b.size, b.etag, b.modified
        from entry a left join entry b on b.directory=a.child
        where a.directory=? and a.name>=? order by a.name, b.name limit ?"""

    def list_joined(self, path: bytes, begin: bytes) -> Listing:
        """The same by one query that looks one level ahead. Objects of the upper level come in their order between."""
        rows = self.sql.execute(self.LIST_JOINED, (self.paths[path], begin, PAGE_KEYS)).fetchall()
        return [
            (path + a_name, a_size, a_etag, a_modified)
            if name is None
            else (path + a_name + name, size, etag, modified)
            for a_name, a_size, a_etag, a_modified, name, _, size, etag, modified in rows
        ]

    def list_prefixes(self, path: bytes, begin: bytes) -> list[bytes]:
        sql = "select name, child, size, etag, modified from entry where directory=? and name>=? order by name limit ?"
        return [path + row[0] for row in self.sql.execute(sql, (self.paths[path], begin, PAGE_KEYS)).fetchall()]

    def rename(self, old: bytes, new: bytes) -> int:
        """Renames a directory of the root. Returns rows changed."""
        self.paths.clear()
        sql = "update entry set name=? where directory=? and name=?"
        return self.sql.execute(sql, (new, ROOT, old)).rowcount


class Flat(Database):
    """Keys whole, by (bucket id, key)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, FLAT_SCHEMA)

    def put(self, key: bytes, row: Row) -> None:
        self.sql.execute("select extent from object where bucket=1 and key=?", (key,)).fetchone()
        self.sql.execute("insert or replace into object values(1,?,?,?,?,?)", (key, *row))

    def get(self, key: bytes) -> Row | None:
        row: Row | None = self.sql.execute(f"select {ROW} from object where bucket=1 and key=?", (key,)).fetchone()
        return row

    def delete(self, key: bytes) -> None:
        self.sql.execute("delete from object where bucket=1 and key=?", (key,))

    def list_keys(self, begin: bytes, prefix: bytes) -> Listing:
        sql = "select key, size, etag, modified from object where bucket=1 and key>=? and key<? order by key limit ?"
        return self.sql.execute(sql, (begin, prefix_range(prefix)[1], PAGE_KEYS)).fetchall()

    def list_prefixes(self, path: bytes, begin: bytes) -> list[bytes]:
        """One seek for each common prefix: the first key, then the first one past its prefix."""
        high = prefix_range(path)[1]
        low: bytes | None = path + begin
        found: list[bytes] = []
        sql = "select key from object where bucket=1 and key>=? and key<? order by key limit 1"
        while low is not None and len(found) < PAGE_KEYS:
            row = self.sql.execute(sql, (low, high)).fetchone()
            if row is None:
                break
            end = row[0].find(b"/", len(path)) + 1
            found.append(row[0][:end] if end else row[0])
            low = prefix_range(found[-1])[1] if end else row[0] + b"\0"
        return found

    def rename(self, old: bytes, new: bytes) -> int:
        sql = "update object set key=cast(? || substr(key, ?) as blob) where bucket=1 and key>=? and key<?"
        return self.sql.execute(sql, (new, len(old) + 1, *prefix_range(old))).rowcount


def report(what: str, tree: float, flat: float | None, unit: str = "us") -> None:
    digits = 1 if max(tree, flat or 0) < 1000 else 0
    right = "" if flat is None else f"{flat:,.{digits}f}"
    ratio = "" if not flat else f"{tree / flat:.3g}"
    print(f"| {what} | {tree:,.{digits}f} | {right} | {ratio} | {unit} |", flush=True)


def load_both(tree: Tree, flat: Flat, keys_count: int) -> None:
    order = list(range(keys_count))
    random.Random(7).shuffle(order)
    for database in (tree, flat):
        database.load(lambda i, put=database.put: put(bulk_key(i), row_of(i)), order)  # type: ignore[misc]
    bulk = tree.file_bytes(), flat.file_bytes()
    report("bytes per key, 1000 keys in a directory", bulk[0] / keys_count, bulk[1] / keys_count, "bytes")
    order = list(range(SPARSE_COUNT))
    random.Random(8).shuffle(order)
    for database in (tree, flat):
        database.load(lambda i, put=database.put: put(sparse_key(i), row_of(i)), order)  # type: ignore[misc]
    grown = [database.file_bytes() - size for database, size in zip((tree, flat), bulk, strict=True)]
    report("bytes per key, one key in a directory", grown[0] / SPARSE_COUNT, grown[1] / SPARSE_COUNT, "bytes")


def compare_answers(tree: Tree, flat: Flat, keys_count: int) -> None:
    """The three ways to list give one answer, and no plan sorts: a page costs what the page costs."""
    path = b"some/prefix/dir%06d/" % (keys_count // KEYS_PER_DIRECTORY // 2)
    keys = [row[0] for row in tree.list_directory(path)]
    assert len(keys) == PAGE_KEYS
    assert keys == [row[0] for row in flat.list_keys(path, path)]
    begin = b"d000123"
    sparse = [row[0] for row in flat.list_keys(b"one/" + begin, b"one/")]
    assert len(sparse) == PAGE_KEYS
    assert sparse == [row[0] for row in tree.list_each(b"one/", begin)]
    assert sparse == [row[0] for row in tree.list_joined(b"one/", begin)]
    assert tree.list_prefixes(b"one/", begin) == flat.list_prefixes(b"one/", begin)
    assert tree.list_prefixes(b"some/prefix/", b"") == flat.list_prefixes(b"some/prefix/", b"")
    plan = tree.sql.execute("explain query plan " + Tree.LIST_JOINED, (1, b"", 1)).fetchall()
    assert not any("TEMP B-TREE" in step[3] for step in plan), plan


def measure_reads(tree: Tree, flat: Flat, keys_count: int) -> None:
    rng = random.Random(1)

    def key() -> bytes:
        return bulk_key(rng.randrange(keys_count))

    def path() -> bytes:
        return b"some/prefix/dir%06d/" % rng.randrange(keys_count // KEYS_PER_DIRECTORY)

    def begin() -> bytes:
        return b"d%06d" % rng.randrange(SPARSE_COUNT - PAGE_KEYS)

    def flat_directory() -> Listing:
        prefix = path()
        return flat.list_keys(prefix, prefix)

    get_flat = median_us(lambda: flat.get(key()), 2000)
    report("GET, path of the directory cached", median_us(lambda: tree.get(key()), 2000), get_flat)
    report("GET, path of 3 directories not cached", median_us(lambda: tree.get_uncached(key()), 2000), get_flat)
    report(
        "LIST 1000 keys of one directory",
        median_us(lambda: tree.list_directory(path()), 20),
        median_us(flat_directory, 20),
    )
    ahead = median_us(lambda: tree.list_joined(path(), b""), 20)
    report("LIST the same, by a join that looks one level ahead", ahead, median_us(flat_directory, 20))
    sparse = median_us(lambda: flat.list_keys(b"one/" + begin(), b"one/"), 20)
    each = median_us(lambda: tree.list_each(b"one/", begin()), 5)
    report("LIST 1000 keys of 1000 directories, a query for each", each, sparse)
    report("LIST the same, by that join", median_us(lambda: tree.list_joined(b"one/", begin()), 20), sparse)
    one = median_us(lambda: tree.list_prefixes(b"one/", begin()), 20)
    report("LIST 1000 common prefixes, 1 key each", one, median_us(lambda: flat.list_prefixes(b"one/", begin()), 5))
    if keys_count >= KEYS_PER_DIRECTORY * PAGE_KEYS:
        many = median_us(lambda: tree.list_prefixes(b"some/prefix/", b""), 20)
        seeks = median_us(lambda: flat.list_prefixes(b"some/prefix/", b""), 5)
        report("LIST 1000 common prefixes, 1000 keys each", many, seeks)


def measure_renames(tree: Tree, flat: Flat, keys_count: int) -> None:
    names = [b"some/", b"renamed/"]

    def rename(database: Tree | Flat, samples: int) -> tuple[float, int, int]:
        figures, rows, log_bytes = [], 0, 0
        for _ in range(samples):
            database.checkpoint()
            begin = time.process_time_ns()
            database.sql.execute("begin immediate")
            rows = database.rename(names[0], names[1])
            database.sql.execute("commit")
            figures.append((time.process_time_ns() - begin) / 1000)
            log_bytes = database.log_bytes()
            names.reverse()
        return statistics.median(figures), rows, log_bytes

    tree_us, tree_rows, tree_bytes = rename(tree, 50)
    assert tree_rows == 1
    what = f"rename of a directory of {keys_count:,} keys"
    if keys_count > RENAME_FLAT_KEYS_MAX:
        return report(what, tree_us, None)
    flat_us, flat_rows, flat_bytes = rename(flat, 4)
    assert flat_rows == keys_count
    report(what, tree_us, flat_us)
    report(f"{what}: bytes written to the log", tree_bytes, flat_bytes, "bytes")


def measure_writes(tree: Tree, flat: Flat, keys_count: int) -> None:
    """PUT and DELETE in transactions of a group each, commit included; CPU of one PUT or DELETE."""

    def group(database: Tree | Flat, keys: list[bytes], delete: bool) -> float:
        database.checkpoint()
        row = row_of(0)
        begin = time.process_time_ns()
        database.sql.execute("begin immediate")
        for key in keys:
            database.delete(key) if delete else database.put(key, row)
        database.sql.execute("commit")
        return (time.process_time_ns() - begin) / 1000 / len(keys)

    rng = random.Random(2)
    for path in {bulk_key(i)[: -len(b"0000000000.dat")] for i in range(0, keys_count, KEYS_PER_DIRECTORY)}:
        tree.paths[path] = tree.resolve(path)
    for missing in (0, 1, 3, 6):
        groups = []
        for sample in range(16):
            base = range(sample * GROUP_PUTS, (sample + 1) * GROUP_PUTS)
            if missing:
                below = b"".join(b"level%d/" % level for level in range(missing - 1))
                groups.append([b"new%d/%08d/%sx.dat" % (missing, rng.randrange(10**8), below) for _ in base])
            else:
                groups.append([bulk_key(rng.randrange(keys_count)) + b".%d" % i for i in base])
        if missing:  # the directory that holds the new ones is there
            tree.put(b"new%d/there" % missing, row_of(0))
        for delete, verb in ((False, "PUT"), (True, "DELETE")):
            tree_us, flat_us = (statistics.median([group(d, g, delete) for g in groups][1:]) for d in (tree, flat))
            number = f"{missing} {'directory' if missing == 1 else 'directories'}"
            what = (
                f"{number} {'emptied' if delete else 'missing'}"
                if missing
                else "the directory is there before and after"
            )
            report(f"{verb}, {what}", tree_us, flat_us)


def compare_layouts(folder: Path, keys_counts: Iterable[int]) -> None:
    for keys_count in keys_counts:
        print(f"\n{keys_count:,} keys\n\n| | tree | flat | tree / flat | |\n|---|--:|--:|--:|---|", flush=True)
        tree, flat = Tree(folder / f"tree-{keys_count}.db"), Flat(folder / f"flat-{keys_count}.db")
        load_both(tree, flat, keys_count)
        compare_answers(tree, flat, keys_count)
        gc.collect()
        gc.freeze()
        # Renames last: they rewrite the flat table in the order of keys.
        for measure in (measure_reads, measure_writes, measure_renames):
            for database in (tree, flat):
                database.warm()
            before = disk_reads_count()
            measure(tree, flat, keys_count)
            if disk_reads_count() > before:
                print(
                    f"| {measure.__name__}: not valid, blocks came from a disk | {disk_reads_count() - before} | | | |"
                )
        for database in (tree, flat):
            database.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.key_tree")
    parser.add_argument("--large", action="store_true", help="10 million keys too")
    parser.add_argument("--keys", type=int, nargs="+", help="these counts of keys instead, multiples of 1000")
    parser.add_argument(
        "--places", action="store_true", help="where the place of an extent is kept, instead of the layouts"
    )
    parser.add_argument("--folder", type=Path, help="where the databases lie while they are measured")
    arguments = parser.parse_args()
    counts = arguments.keys or (*KEYS_COUNTS, *((KEYS_COUNT_LARGE,) if arguments.large else ()))
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.machine()}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.places:
            compare_places(Path(folder), (arguments.keys or [PLACES_KEYS_COUNT])[0])
        else:
            compare_layouts(Path(folder), counts)


if __name__ == "__main__":
    main()
