"""Headers in and out."""

from email.utils import formatdate

import pytest

from couchestord.errors import NotSupported
from couchestord.frontends.s3 import fields
from couchestord.frontends.s3.routes import Query
from couchestord.model import Attributes, ByteRange, Conditions, ObjectInfo


def test_attributes() -> None:
    found = fields.attributes_of(
        {b"content-type": b"a/b", b"content-encoding": b"aws-chunked", b"x-amz-meta-a": "ü".encode(), b"x-other": b"c"}
    )
    assert (found.headers, found.metadata) == ({"content-type": "a/b"}, {"a": "ü"})


def test_conditions() -> None:
    assert fields.read_conditions({}) == Conditions()
    found = fields.read_conditions(
        {
            b"if-match": b'"a", W/"b",c',
            b"if-none-match": b"*",
            b"if-modified-since": b"Thu, 01 Jan 1970 00:00:01 GMT",
            b"if-unmodified-since": b"whenever",
        }
    )
    assert found == Conditions(("a", "b", "c"), ("*",), 1_000_000_000, None)
    assert fields.write_conditions({b"if-none-match": b"*"}).if_none_match == ("*",)
    assert fields.write_conditions({}, "ann") == Conditions(bucket_owner="ann")
    assert fields.write_conditions({b"if-match": b'"a"'}, "ann") == Conditions(("a",), bucket_owner="ann")
    assert fields.write_conditions({}).bucket_owner is None
    for wrong in ({b"if-none-match": b'"a"'}, {b"if-unmodified-since": b"x"}):
        with pytest.raises(NotSupported):
            fields.write_conditions(wrong)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"bytes=0-1", ByteRange(0, 1)),
        (b"bytes=5-", ByteRange(5, None)),
        (b"bytes=-5", ByteRange(None, 5)),
        (b"bytes=2-1", None),
        (b"bytes=-", None),
        (b"bytes=0-1,2-3", None),
        (b"bytes=a-b", None),
        (b"lines=0-1", None),
        (b"bytes=5-9223372036854775806", ByteRange(5, (1 << 63) - 2)),  # all from 5 on, as some SDKs say it
        (b"bytes=-" + b"9" * 30, ByteRange(None, 10**30 - 1)),
        (b"bytes=0-" + b"9" * 5000, None),
        (b" bytes = 5 - 9 ", ByteRange(5, 9)),
        (b"bytes=" + b" " * 200 + b"0-1", None),
        (None, None),
    ],
)
def test_ranges(value: bytes | None, found: ByteRange | None) -> None:
    assert fields.byte_range(value) == found


def test_times() -> None:
    assert fields.http_time(784111777_999_999_999) == b"Sun, 06 Nov 1994 08:49:37 GMT"
    assert fields.iso_time(784111777_120_000_000) == "1994-11-06T08:49:37.120Z"
    for day in range(400):
        second = day * 86_401
        assert fields.http_time(second * 1_000_000_000).decode() == formatdate(second, usegmt=True)


def test_what_the_mount_stored_cannot_split_a_header() -> None:
    attributes = Attributes({"content-type": "a\r\nb: c"}, {"ok": "ü", "bad": "a\nb", "na me": "x", "": "y"})
    info = ObjectInfo("b", b"k", 1, "e", 0, attributes)
    headers = dict(fields.object_headers(info, Query(()), checksums=True))
    assert not any(b"\n" in name + value for name, value in headers.items())
    assert headers[b"x-amz-meta-ok"] == "ü".encode()
    assert headers[b"x-amz-missing-meta"] == b"3"


def test_what_would_be_ignored_is_refused() -> None:
    fields.refuse_unsupported({b"x-amz-acl": b"private", b"x-amz-storage-class": b"STANDARD", b"x-amz-meta-a": b"b"})
    for name, value in [
        (b"x-amz-acl", b"public-read"),
        (b"x-amz-storage-class", b"GLACIER"),
        (b"x-amz-server-side-encryption", b"AES256"),
        (b"x-amz-object-lock-mode", b"COMPLIANCE"),
        (b"x-amz-grant-read", b"id=x"),
        (b"x-amz-tagging", b"a=b"),
    ]:
        with pytest.raises(NotSupported):
            fields.refuse_unsupported({name: value})
