"""Pages of a listing against a sorted list of keys."""

import itertools
import random
import stat
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from decide_rig import DecideRig

from couchestord.io import filerequests as fr
from couchestord.io import requests as rq
from couchestord.io.keys import split_key
from couchestord.model import LIST_KEYS_MAX, ListPage
from couchestord.store.listing import list_page

ALPHABET = [b"a", b"b", b"/", b"/", b"-", b"\xc3\xbc", b"\x01", b"\xf4\x8f\xbf\xbf", b"\x7f", b"0"]
Item = tuple[bytes, bool]


def expected(keys: list[bytes], prefix: bytes, delimiter: bytes, start_after: bytes) -> list[Item]:
    """(key or common prefix, whether it is a prefix), by rolling up the sorted keys one by one."""
    found: list[Item] = []
    for key in sorted(keys):
        if key <= start_after or not key.startswith(prefix):
            continue
        at = key.find(delimiter, len(prefix)) if delimiter else -1
        item = (key[: at + len(delimiter)], True) if at >= 0 else (key, False)
        if item == (start_after, True) or item in found[-1:]:
            continue
        found.append(item)
    return found


def items(page: ListPage) -> list[Item]:
    return sorted([(entry.key, False) for entry in page.entries] + [(common, True) for common in page.prefixes])


class Bucket:
    def __init__(self, folder: Path, keys: list[bytes], versioning: str = "Enabled") -> None:
        self.rig = DecideRig(folder)
        self.rig.bucket()
        row = self.rig.catalog.reading.bucket("bucket")
        assert row is not None
        self.root = row.root
        for key in keys:
            self.rig.put(key)
        if versioning:
            self.rig.do(rq.SetVersioning("bucket", versioning))

    def keep(self, path: bytes) -> None:
        """As a mount keeps the directories that it touches; with what S3 put there they are made."""
        directory = self.rig.catalog.reading.directory(self.root, split_key(path)[0])
        assert directory is not None
        self.rig.do(fr.ChangeInode(directory, 0o40700))

    def page(self, prefix: bytes, delimiter: bytes, start_after: bytes, max_keys: int) -> ListPage:
        with self.rig.catalog.snapshot() as reader:
            return list_page(
                reader, self.root, prefix=prefix, delimiter=delimiter, start_after=start_after, max_keys=max_keys
            )

    def pages(self, prefix: bytes, delimiter: bytes, start_after: bytes, max_keys: int) -> Iterator[ListPage]:
        after: bytes | None = start_after
        while after is not None:
            page = self.page(prefix, delimiter, after, max_keys)
            yield page
            assert page.next_start is None or page.next_start > after
            after = page.next_start


def directories(keys: list[bytes]) -> set[bytes]:
    """Their paths."""
    return {key[: at + 1] for key in keys for at in range(len(key)) if key[at : at + 1] == b"/"}


@pytest.mark.parametrize("seed", range(12))
def test_pages_are_those_of_a_sorted_list(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    keys = sorted({b"".join(rng.choices(ALPHABET, k=rng.randint(1, 6))) for _ in range(40)})
    bucket = Bucket(tmp_path, keys, "")
    paths = sorted(directories(keys))
    kept = rng.sample(paths, len(paths) * 2 // 3)
    for path in kept:
        bucket.keep(path)
    gone = [key for key in rng.sample(keys, 20) if not key.endswith(b"/")]  # with that the directory would go
    for key in gone:
        bucket.rig.delete(key)
    bucket.rig.do(rq.SetVersioning("bucket", "Enabled"))
    hidden = rng.sample([key for key in keys if key not in gone], 10)
    for key in hidden:
        bucket.rig.delete(key)  # a marker stays: the directory too, and it lists as nothing
    there = {*kept, *(key for key in keys if key not in gone)}
    empty = [path for path in kept if path not in keys and not any(key.startswith(path) for key in there - {path})]
    assert empty
    keys = sorted([*empty, *(key for key in keys if key not in {*gone, *hidden})])
    parts = [key[:length] for key in keys for length in range(len(key) + 1)]
    prefixes = [b"", *rng.sample(parts, 7), b"/", b"nothing", b"\xff"]
    delimiters = (b"", b"/", b"-", "ü".encode(), b"//", b"a/")
    for prefix, delimiter in itertools.product(prefixes, delimiters):
        starts = [b"", rng.choice(parts), rng.choice(keys), prefix, prefix + b"\xff", rng.choice(keys) + b"\0"]
        for start_after in starts:
            wanted = expected(keys, prefix, delimiter, start_after)
            page = bucket.page(prefix, delimiter, start_after, 1000)
            assert items(page) == wanted, (prefix, delimiter, start_after)
            assert page.next_start is None
            assert [entry.key for entry in page.entries] == sorted(entry.key for entry in page.entries)
            assert list(page.prefixes) == sorted(page.prefixes)
        size = rng.choice((1, 2, 3, 7))
        chained = [items(page) for page in bucket.pages(prefix, delimiter, b"", size)]
        assert [item for page_ in chained for item in page_] == expected(keys, prefix, delimiter, b"")
        assert all(len(page_) == size for page_ in chained[:-1])
    bucket.rig.close()


def test_max_keys_bounds_the_page(tmp_path: Path) -> None:
    bucket = Bucket(tmp_path, [b"a", b"b"])
    assert bucket.page(b"", b"", b"", 0) == ListPage((), (), None)
    assert bucket.page(b"", b"", b"", -1) == ListPage((), (), None)
    assert bucket.page(b"", b"", b"", 1).next_start == b"a"
    assert bucket.page(b"", b"", b"", 2).next_start is None
    bucket.rig.close()


def test_a_page_has_at_most_a_thousand(tmp_path: Path) -> None:
    keys = [b"%04d" % number for number in range(LIST_KEYS_MAX + 5)]
    bucket = Bucket(tmp_path, keys)
    first, second = bucket.pages(b"", b"/", b"", 10**6)
    assert (len(first.entries), len(second.entries)) == (LIST_KEYS_MAX, 5)
    bucket.rig.close()


@pytest.mark.parametrize("delimiter", [b"", b"/", b"k"])
def test_a_page_ends_after_so_many_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delimiter: bytes
) -> None:
    """However few keys they hold: one that has many for itself must not make everybody wait for a thousand such."""
    monkeypatch.setattr("couchestord.store.listing.DIRECTORIES_MAX", 30)
    keys = [b"%d/%bkey" % (number, b"x/" * 20) for number in range(9)]
    bucket = Bucket(tmp_path, keys)
    pages = [items(page) for page in bucket.pages(b"", delimiter, b"", 1000)]
    assert [item for page in pages for item in page] == expected(keys, b"", delimiter, b"")
    assert max(map(len, pages)) <= 2
    bucket.rig.close()


def nested(bucket: Bucket, depth: int) -> int:
    """Directories of long names that a mount makes one in the other; answers the last."""
    at = bucket.root
    for _ in range(depth):
        at = bucket.rig.do(fr.MakeNode(at, b"n" * 255, stat.S_IFDIR | 0o755, 0, 0)).id
    return at


def test_the_way_down_takes_little_more_memory_than_the_path(tmp_path: Path) -> None:
    """Not that of each directory on it for itself: of 3000 they are a gigabyte."""
    bucket = Bucket(tmp_path, [], versioning="")
    bucket.rig.do(fr.MakeNode(nested(bucket, 300), b"file", stat.S_IFREG | 0o644, 0, 0))
    bucket.page(b"", b"", b"", 10)
    tracemalloc.start()
    try:
        [(key, _)] = items(bucket.page(b"", b"", b"", 10))
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(key) == 300 * 256 + 4
    assert most_bytes < 30 * len(key)  # rows and statements of each directory are half of it
    bucket.rig.close()


def test_a_page_ends_with_so_many_bytes_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("couchestord.store.listing.KEYS_BYTES_MAX", 8 * 256)
    bucket = Bucket(tmp_path, [], versioning="")
    at = nested(bucket, 4)
    for number in range(5):
        bucket.rig.do(fr.MakeNode(at, b"%d" % number, stat.S_IFREG | 0o644, 0, 0))
        bucket.rig.do(fr.MakeNode(at, b"d%d" % number, stat.S_IFDIR | 0o755, 0, 0))
    path = (b"n" * 255 + b"/") * 4
    keys = [path + b"%d" % number for number in range(5)] + [path + b"d%d/" % number for number in range(5)]
    for prefix, delimiter in ((b"", b""), (path, b"/")):
        pages = [items(page) for page in bucket.pages(prefix, delimiter, b"", 1000)]
        assert [item for page in pages for item in page] == expected(keys, prefix, delimiter, b"")
        assert [len(page) for page in pages] == [2, 2, 2, 2, 2]
    bucket.rig.close()


def test_a_directory_that_has_many_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(tmp_path, [b"a/%d/k" % number for number in range(100)])
    each, seen = bucket.rig.catalog.reading._each, list[object]()

    def counted(*question: object) -> Iterator[object]:
        for row in each(*question):
            seen.append(row)
            yield row

    monkeypatch.setattr(bucket.rig.catalog.reading, "_each", counted)
    assert items(bucket.page(b"", b"/", b"", 1000)) == [(b"a/", True)]
    assert 0 < len(seen) < 10
    bucket.rig.close()


@pytest.mark.parametrize("is_asked_for", [True, False])
def test_the_way_down_to_common_prefixes_is_gone_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_asked_for: bool
) -> None:
    deep = b"a/" * 100
    bucket = Bucket(tmp_path, [b"%b%02d-%d" % (deep, number, each) for number in range(50) for each in range(2)])
    each, questions = bucket.rig.catalog.reading._each, list[object]()

    def counted(*question: object) -> Iterator[object]:
        questions.append(question)
        return each(*question)

    monkeypatch.setattr(bucket.rig.catalog.reading, "_each", counted)
    prefix = deep if is_asked_for else b""
    assert items(bucket.page(prefix, b"-", b"", 1000)) == [(b"%b%02d-" % (deep, number), True) for number in range(50)]
    assert 50 < len(questions) < 200
    bucket.rig.close()


@pytest.mark.parametrize("key", [b"/" * 1024, b"a/" * 512])
def test_the_deepest_key_lists(tmp_path: Path, key: bytes) -> None:
    bucket = Bucket(tmp_path, [key, b"z"])
    assert items(bucket.page(b"", b"", b"", 1000)) == [(key, False), (b"z", False)]
    assert items(bucket.page(b"", b"/", b"", 1000)) == [(key[: key.index(b"/") + 1], True), (b"z", False)]
    assert items(bucket.page(key[:1000], b"", b"", 1000)) == [(key, False)]
    bucket.rig.delete(key)
    assert items(bucket.page(b"", b"/", b"", 1000)) == [(b"z", False)]
    bucket.rig.close()


def test_entries_say_what_the_object_is(tmp_path: Path) -> None:
    bucket = Bucket(tmp_path, [])
    info = bucket.rig.put(b"a/b", b"hello")
    (entry,) = bucket.page(b"a", b"", b"", 10).entries
    assert (entry.key, entry.size_bytes, entry.etag, entry.modified_ns) == (b"a/b", 5, info.etag, info.modified_ns)
    bucket.rig.close()


def test_a_bucket_does_not_see_its_neighbour(tmp_path: Path) -> None:
    bucket = Bucket(tmp_path, [b"mine"])
    bucket.rig.do(rq.MakeBucket("other", ""))
    bucket.rig.put(b"theirs", bucket="other")
    assert items(bucket.page(b"", b"", b"", 10)) == [(b"mine", False)]
    bucket.rig.close()


def test_an_empty_directory_lists_as_a_key_of_its_path(tmp_path: Path) -> None:
    bucket = Bucket(tmp_path, [b"a/b/c", b"a/x/y", b"d/e", b"f"], "")
    for path in (b"a/", b"a/b/", b"a/x/", b"d/"):
        bucket.keep(path)
    assert items(bucket.page(b"", b"", b"", 10)) == [(key, False) for key in (b"a/b/c", b"a/x/y", b"d/e", b"f")]
    for key in (b"a/b/c", b"d/e", b"f"):
        bucket.rig.delete(key)
    assert items(bucket.page(b"", b"", b"", 10)) == [(b"a/b/", False), (b"a/x/y", False), (b"d/", False)]
    assert items(bucket.page(b"", b"/", b"", 10)) == [(b"a/", True), (b"d/", True)]
    assert items(bucket.page(b"a/", b"/", b"", 10)) == [(b"a/b/", True), (b"a/x/", True)]
    for delimiter in (b"", b"/"):
        assert items(bucket.page(b"a/b/", delimiter, b"", 10)) == [(b"a/b/", False)]
        assert items(bucket.page(b"a/b/", delimiter, b"a/b", 10)) == [(b"a/b/", False)]
        assert items(bucket.page(b"a/b/", delimiter, b"a/b/", 10)) == []
        assert items(bucket.page(b"a/b/c", delimiter, b"", 10)) == []
    assert items(bucket.page(b"d", b"", b"d", 10)) == [(b"d/", False)]
    assert items(bucket.page(b"", b"", b"d/", 10)) == []
    bucket.rig.close()


def test_an_empty_directory_says_when_it_was_changed(tmp_path: Path) -> None:
    bucket = Bucket(tmp_path, [], "")
    node = bucket.rig.do(fr.MakeNode(bucket.root, b"d", 0o40755, 0, 0))
    (made,) = bucket.page(b"", b"", b"", 10).entries
    assert (made.key, made.size_bytes, made.modified_ns) == (b"d/", 0, node.published_ns)
    assert made.etag.endswith("-1")
    bucket.rig.do(fr.MakeNode(node.id, b"f", 0o100644, 0, 0))
    bucket.rig.do(fr.UnlinkNode(node.id, b"f"))
    (changed,) = bucket.page(b"", b"", b"", 10).entries
    assert changed.modified_ns == bucket.rig.clock.now > made.modified_ns
    assert changed.etag != made.etag
    bucket.rig.close()


def test_empty_directories_come_in_pages(tmp_path: Path) -> None:
    bucket = Bucket(tmp_path, [b"z"], "")
    for number in range(LIST_KEYS_MAX + 5):
        bucket.rig.do(fr.MakeNode(bucket.root, b"%04d" % number, 0o40755, 0, 0))
    for delimiter in (b"", b"/"):
        first, second = bucket.pages(b"", delimiter, b"", 10**6)
        expected = [(b"%04d/" % number, bool(delimiter)) for number in range(LIST_KEYS_MAX + 5)] + [(b"z", False)]
        assert items(first) + items(second) == expected
        assert (len(items(first)), len(items(second))) == (LIST_KEYS_MAX, 6)
    bucket.rig.close()
