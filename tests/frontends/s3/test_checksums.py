"""Checksums against published check values of "123456789"."""

import sys

import pytest

from couchestord.errors import BadDigest, InvalidDigest, InvalidRequest, NotSupported
from couchestord.frontends.s3.checksums import BodyChecksums, decode_value, new_checksum

CHECK = {
    "crc32": "cbf43926",
    "crc32c": "e3069283",
    "crc64nvme": "ae8b14860a799888",
    "sha1": "f7c3bc1d808e04732adf679965ccc34ca7ae3441",
    "sha256": "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
}


@pytest.mark.parametrize("algorithm", CHECK)
def test_check_values_in_pieces(algorithm: str) -> None:
    checksum = new_checksum(algorithm)
    for piece in (b"1234", b"", b"56789"):
        checksum.update(piece)
    assert checksum.digest().hex() == CHECK[algorithm]


def test_crc64nvme_without_its_library_is_refused_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "awscrt.checksums", None)
    with pytest.raises(NotSupported):
        new_checksum("crc64nvme")


def test_values() -> None:
    assert decode_value("AAAAAA==", 4) == bytes(4)
    for wrong in ("", "AAAA", "AAAAAA", "AAAAAA==\n", "????????", "ü"):
        with pytest.raises(InvalidDigest):
            decode_value(wrong, 4)


def test_a_body_against_header_and_trailer() -> None:
    by_header = BodyChecksums({b"x-amz-checksum-crc32": b"y/Q5Jg==", b"content-md5": b"JfnnlDI7RTiF9RgfG2JNCw=="})
    by_trailer = BodyChecksums({b"x-amz-trailer": b"X-Amz-Checksum-Crc32"})
    for checksums, trailers in [(by_header, {}), (by_trailer, {"x-amz-checksum-crc32": "y/Q5Jg=="})]:
        checksums.update(b"123456789")
        checksums.verify(trailers)
        assert checksums.values() == {"crc32": "y/Q5Jg=="}
        checksums.update(b"!")
        with pytest.raises(BadDigest):
            checksums.verify(trailers)
    with pytest.raises(InvalidDigest):
        by_trailer.verify({})


def test_a_wrong_md5_is_refused_beside_a_right_crc() -> None:
    checksums = BodyChecksums({b"x-amz-checksum-crc32": b"y/Q5Jg==", b"content-md5": b"AAAAAAAAAAAAAAAAAAAAAA=="})
    checksums.update(b"123456789")
    with pytest.raises(BadDigest, match="MD5"):
        checksums.verify({})


@pytest.mark.parametrize(
    "headers",
    [
        {b"x-amz-checksum-crc32": b"y/Q5Jg==", b"x-amz-trailer": b"x-amz-checksum-crc32"},
        {b"x-amz-trailer": b"x-amz-checksum-md4"},
        {b"x-amz-trailer": b"x-amz-checksum-crc32, x-amz-checksum-sha1"},
        {b"x-amz-sdk-checksum-algorithm": b"SHA1", b"x-amz-checksum-crc32": b"y/Q5Jg=="},
    ],
)
def test_claims_that_contradict_each_other(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(InvalidRequest):
        BodyChecksums(headers)
