"""Values in rows and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couchestord.errors import NoSuchVersion
from couchestord.io.catalog.apply import ENTRY_VERSIONED, VERSION_MARKER
from couchestord.io.catalog.read import BucketRow, EntryRow
from couchestord.model import Attributes
from couchestord.store import values

TEXTS = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3)


@given(TEXTS, TEXTS, TEXTS)
def test_attributes_come_back(headers: dict[str, str], metadata: dict[str, str], checksums: dict[str, str]) -> None:
    attributes = Attributes(headers, metadata, checksums)
    assert values.decode_attributes(values.encode_attributes(attributes)) == attributes
    assert values.decode_mapping(values.encode_mapping(headers)) == headers


def test_nothing_takes_no_bytes() -> None:
    assert values.encode_attributes(Attributes()) == b""
    assert values.decode_attributes(None) == Attributes()
    assert values.encode_mapping({}) == b""
    assert values.decode_mapping(None) == {}


@given(st.binary(min_size=16, max_size=16), st.integers(0, 10_000))
def test_etags_come_back(md5: bytes, parts: int) -> None:
    packed = values.pack_etag(md5, parts)
    assert values.etag_text(packed) == (f"{md5.hex()}-{parts}" if parts else md5.hex())
    assert values.parts_count(packed) == (parts or None)


@pytest.mark.parametrize(
    "text", ["", "nul", "0x00000000000010", "+000000000000010", "000000000000000G", "0" * 15 + "A", "0" * 17]
)
def test_what_is_no_version_id(text: str) -> None:
    with pytest.raises(NoSuchVersion):
        values.parse_version_id(text)


def test_version_ids() -> None:
    row = EntryRow(255, 255, 3, bytes(16), 9, ENTRY_VERSIONED, None)
    assert values.version_id(row, "Enabled") == "00000000000000ff"
    assert values.parse_version_id("00000000000000ff") == 255
    assert values.parse_version_id("null") is None
    null = row._replace(flags=0)
    assert [values.version_id(null, state) for state in ("", "Enabled", "Suspended")] == [None, "null", "null"]
    assert values.is_marker(row._replace(flags=VERSION_MARKER))
    assert not values.is_marker(row)


def test_infos() -> None:
    bucket = BucketRow("bucket", 1, "ann", 5, "Enabled")
    row = EntryRow(255, 255, 3, values.pack_etag(bytes(16), 2), 9, 1, values.encode_attributes(Attributes({"a": "b"})))
    info = values.object_info(bucket, b"key", row)
    assert (info.bucket, info.key, info.size_bytes, info.modified_ns) == ("bucket", b"key", 3, 9)
    assert (info.etag, info.parts_count, info.version_id) == ("0" * 32 + "-2", 2, "00000000000000ff")
    assert (info.attributes.headers, info.delete_marker) == ({"a": "b"}, False)
    assert values.bucket_info(bucket, "cold").versioning == "Enabled"
    assert values.bucket_info(bucket, "cold").policy == "cold"
