"""Extended attributes by the names of S3's headers."""

import pytest

from couchestord.io.catalog.files import ObjectRow
from couchestord.model import Attributes
from couchestord.store.values import encode_attributes, pack_etag
from couchestord.store.xattrs import ETAG, is_of_s3, xattrs_of

MD5 = bytes(range(16))


def kept(headers: dict[str, str], metadata: dict[str, str], checksums: dict[str, str]) -> dict[bytes, bytes]:
    """All but the etag."""
    found = shown(Attributes(headers, metadata, checksums))
    assert found.pop(ETAG) == MD5.hex().encode()
    return found


def shown(attributes: Attributes, etag: bytes = MD5) -> dict[bytes, bytes]:
    return xattrs_of(ObjectRow(etag, encode_attributes(attributes) or None))


def test_an_object_that_has_nothing_else_has_an_etag() -> None:
    assert shown(Attributes()) == {b"user.s3.etag": MD5.hex().encode()}
    assert shown(Attributes(), pack_etag(MD5, 7)) == {b"user.s3.etag": MD5.hex().encode() + b"-7"}


def test_names_are_those_of_headers() -> None:
    headers = {"content-type": "text/plain", "cache-control": "no-store", "expires": "0"}
    assert kept(headers, {"mode": "0644", "": "nameless"}, {"sha256": "sum", "type": "COMPOSITE"}) == {
        b"user.s3.content-type": b"text/plain",
        b"user.s3.cache-control": b"no-store",
        b"user.s3.expires": b"0",
        b"user.s3.checksum-sha256": b"sum",
        b"user.s3.checksum-type": b"COMPOSITE",
        b"user.s3.meta.mode": b"0644",
        b"user.s3.meta.": b"nameless",
    }


def test_metadata_takes_the_place_of_nothing() -> None:
    assert kept({"content-type": "a"}, {"etag": "mine", "content-type": "b", "checksum-md5": "c"}, {}) == {
        b"user.s3.content-type": b"a",
        b"user.s3.meta.etag": b"mine",
        b"user.s3.meta.content-type": b"b",
        b"user.s3.meta.checksum-md5": b"c",
    }


def test_values_are_in_utf_8() -> None:
    assert list(kept({}, {"a": "\u00fc \u20ac", "b": ""}, {}).values()) == ["\u00fc \u20ac".encode(), b""]


def test_names_that_no_kernel_asks_for_are_left_out() -> None:
    longest = 255 - len(b"user.s3.meta.")
    assert list(kept({}, {"n" * longest: "there", "m" * (longest + 1): "not there"}, {}).values()) == [b"there"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"user.s3.etag", True),
        (b"user.s3.", True),
        (b"user.s3.meta.x", True),
        (b"user.s3", False),
        (b"user.s3x", False),
        (b"trusted.s3.etag", False),
        (b"user.S3.etag", False),
    ],
)
def test_what_is_below_the_prefix(name: bytes, expected: bool) -> None:
    assert is_of_s3(name) == expected
