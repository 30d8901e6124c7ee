"""The pure rules of keys and bucket names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couchestord.errors import InvalidArgument, InvalidBucketName, KeyTooLong
from couchestord.io.keys import check_bucket_name, check_key, prefix_range, split_key

NEAR_SLASH = st.lists(st.sampled_from([b"a", b"/", b".", b"0", b"\x00", b"\xfe", b"\xff"]), max_size=6).map(b"".join)


@pytest.mark.parametrize(
    ("key", "directories", "name"),
    [
        (b"", (), b""),
        (b"a", (), b"a"),
        (b"a/", (b"a/",), b""),
        (b"a/b", (b"a/",), b"b"),
        (b"a//b", (b"a/", b"/"), b"b"),
        (b"/", (b"/",), b""),
        (b"//", (b"/", b"/"), b""),
        (b"./../\xff", (b"./", b"../"), b"\xff"),
    ],
)
def test_a_key_is_cut_after_every_slash(key: bytes, directories: tuple[bytes, ...], name: bytes) -> None:
    assert split_key(key) == (directories, name)


@given(NEAR_SLASH | st.binary())
def test_parts_make_the_key_again_and_names_have_their_form(key: bytes) -> None:
    directories, name = split_key(key)
    assert b"".join(directories) + name == key
    assert b"/" not in name
    assert all(part.index(b"/") == len(part) - 1 for part in directories)


@pytest.mark.parametrize(
    ("prefix", "high"),
    [
        (b"", None),
        (b"\xff", None),
        (b"\xff\xff", None),
        (b"a", b"b"),
        (b"a\xff", b"b"),
        (b"a\xfe\xff\xff", b"a\xff"),
        (b"\x00", b"\x01"),
    ],
)
def test_successor_of_a_prefix(prefix: bytes, high: bytes | None) -> None:
    assert prefix_range(prefix) == (prefix, high)


@given(NEAR_SLASH, NEAR_SLASH)
def test_the_range_holds_what_begins_with_the_prefix_and_nothing_else(prefix: bytes, other: bytes) -> None:
    low, high = prefix_range(prefix)
    for text in (other, prefix + other):
        assert (low <= text and (high is None or text < high)) == text.startswith(prefix)


@pytest.mark.parametrize(
    "key", [b"a", b"/", b"\x00", b"a" * 1024, "\u00e9".encode() * 512, "\U0001f600".encode(), b"../x"]
)
def test_keys_that_may_be_created(key: bytes) -> None:
    check_key(key)


@pytest.mark.parametrize("key", [b"", b"\xff", b"a\x80", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xff" * 1024])
def test_empty_keys_and_other_encodings_are_refused(key: bytes) -> None:
    with pytest.raises(InvalidArgument):
        check_key(key)


@pytest.mark.parametrize("key", [b"a" * 1025, "\u00e9".encode() * 513, b"\xff" * 1025])
def test_length_is_counted_in_bytes(key: bytes) -> None:
    with pytest.raises(KeyTooLong):
        check_key(key)


@pytest.mark.parametrize(
    "name", ["abc", "a" * 63, "a.b-c", "0ab", "1.2.3", "1.2.3.4.5", "1.2.3.x", "a-.b", "my--bucket", "s3alias"]
)
def test_bucket_names_that_are_allowed(name: str) -> None:
    check_bucket_name(name)


@pytest.mark.parametrize("name", ["", "ab", "a" * 64])
def test_bucket_names_of_a_wrong_length(name: str) -> None:
    with pytest.raises(InvalidBucketName, match="3 to 63"):
        check_bucket_name(name)


@pytest.mark.parametrize("name", ["Abc", "a_b", "a b", "abc\n", "abc/", "\u00e9abc", "\u0661\u0662\u0663"])
def test_bucket_names_with_other_characters(name: str) -> None:
    with pytest.raises(InvalidBucketName):
        check_bucket_name(name)


@pytest.mark.parametrize("name", ["-abc", "abc-", ".abc", "abc.", "a..b", "192.168.5.4", "999.999.999.999"])
def test_bucket_names_of_a_wrong_form(name: str) -> None:
    with pytest.raises(InvalidBucketName):
        check_bucket_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "xn--abc",
        "sthree-abc",
        "amzn-s3-demo-abc",
        "abc-s3alias",
        "abc--ol-s3",
        "abc.mrap",
        "abc--x-s3",
        "abc--table-s3",
    ],
)
def test_bucket_names_that_are_reserved(name: str) -> None:
    with pytest.raises(InvalidBucketName, match="reserved"):
        check_bucket_name(name)
