"""XML written and read."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couchestord.elements import read
from couchestord.errors import MalformedXML
from couchestord.frontends.s3.xml import document, element, key_text, read_complete, read_delete, read_location

NS = "{http://s3.amazonaws.com/doc/2006-03-01/}"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff")))
def test_what_is_written_can_be_read(text: str) -> None:
    root = ElementTree.fromstring(document("A", [element("B", text)]))
    assert (root[0].tag, root[0].text or "") == (NS + "B", text)
    assert read(document("A", [element("B", text)]), "A").child("B") == text


def test_keys() -> None:
    assert key_text(b"a/b +&\xff", url=True) == "a/b%20%2B%26%FF"
    assert key_text(b"a<\x01\r\xff", url=False) == "a&lt;&#x1;&#xD;\ufffd"


def test_complete() -> None:
    body = (
        b'<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Part><ETag>"a"</ETag>'
        b"<PartNumber>1</PartNumber><ChecksumCRC32>x</ChecksumCRC32></Part></CompleteMultipartUpload>"
    )
    assert [(part.number, part.etag, part.checksums) for part in read_complete(body, 10)] == [
        (1, "a", (("crc32", "x"),))
    ]


def test_ten_thousand_parts_with_checksums_fit() -> None:
    part = "<Part><PartNumber>{}</PartNumber><ETag>e</ETag><ChecksumCRC32>x</ChecksumCRC32></Part>"
    body = "".join(part.format(number) for number in range(1, 10_001))
    assert len(read_complete(f"<CompleteMultipartUpload>{body}</CompleteMultipartUpload>".encode(), 10_000)) == 10_000


def test_delete_and_location() -> None:
    body = b"<Delete><Object><Key>a&#x1F600;&lt;</Key><VersionId>v</VersionId></Object><Quiet>true</Quiet></Delete>"
    (key,), quiet = read_delete(body, 1)
    assert (key.key, key.version_id, quiet) == ("a\U0001f600<".encode(), "v", True)
    assert read_location(b"") == ""
    body = b"<CreateBucketConfiguration><LocationConstraint>eu</LocationConstraint></CreateBucketConfiguration>"
    assert read_location(body) == "eu"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<",
        b"<Delete>",
        b"<Other/>",
        b"<Delete/>",
        b"<Delete><Object/></Delete>",
        b"<Delete><Object><Key/></Object></Delete>",
        b"<Delete><Object><Key>a</Key><Key>b</Key></Object></Delete>",
        b"<Delete><Object><Key>a</Key><Size>1</Size></Object></Delete>",
        b"<Delete><Object><Key>a</Key></Object><Object><Key>b</Key></Object></Delete>",
        b'<!DOCTYPE Delete [<!ENTITY a "b">]><Delete><Object><Key>&a;</Key></Object></Delete>',
        b"<!DOCTYPE Delete><Delete><Object><Key>a</Key></Object></Delete>",
        b'<!DOCTYPE Delete SYSTEM "file:///etc/passwd"><Delete><Object><Key>a</Key></Object></Delete>',
        b"<Delete><Object><Key>&a;</Key></Object></Delete>",
        b"<?php x?><Delete><Object><Key>a</Key></Object></Delete>",
        b'<?xml version="1.0" encoding="nonsense"?><Delete><Object><Key>a</Key></Object></Delete>',
        b"<Delete>" + b"<Object>" * 200_000,
        b"<Delete><Object><Key>a</Key></Object>" + b"<Quiet/>" * 200_000 + b"</Delete>",
        b"<Delete><Object><Key>a</Key></Object><Quiet>" + b"<a>" * 9 + b"</a>" * 9 + b"</Quiet></Delete>",
        b"<Delete><Object><Key>\xff</Key></Object></Delete>",
    ],
)
def test_hostile_documents_are_refused(body: bytes) -> None:
    with pytest.raises(MalformedXML):
        read_delete(body, 1)


def test_an_empty_etag_of_a_key_to_be_deleted_is_a_condition() -> None:
    (key, other), _ = read_delete(
        b"<Delete><Object><Key>a</Key><ETag/></Object><Object><Key>b</Key></Object></Delete>", 2
    )
    assert (key.etag, other.etag) == ("", None)


@pytest.mark.parametrize("part", ["", "<PartNumber>1</PartNumber>", "<PartNumber>x</PartNumber><ETag>e</ETag>"])
def test_incomplete_parts_are_refused(part: str) -> None:
    with pytest.raises(MalformedXML):
        read_complete(f"<CompleteMultipartUpload><Part>{part}</Part></CompleteMultipartUpload>".encode(), 10)
