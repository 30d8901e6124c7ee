"""Pages of a listing against a sorted list of keys."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from decide_rig import DecideRig

from couchestord.io import requests as rq
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
    def __init__(self, folder: Path, keys: list[bytes]) -> None:
        self.rig = DecideRig(folder)
        self.rig.bucket("bucket", "Enabled")
        for key in keys:
            self.rig.put(key)
        row = self.rig.catalog.reading.bucket("bucket")
        assert row is not None
        self.root = row.root

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


@pytest.mark.parametrize("seed", range(12))
def test_pages_are_those_of_a_sorted_list(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    keys = list({b"".join(rng.choices(ALPHABET, k=rng.randint(1, 6))) for _ in range(40)})
    bucket = Bucket(tmp_path, keys)
    gone = rng.sample(keys, 10)
    for key in gone:
        bucket.rig.delete(key)  # a marker stays: the directory too, and it lists as nothing
    keys = [key for key in keys if key not in gone]
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
