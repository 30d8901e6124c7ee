"""Checksums combined from those of parts are those of the whole.

Seen to fail with: parts taken in another order; a size that is not looked at.
"""

import base64
import hashlib
import random
import zlib

import google_crc32c
import pytest

from couchestord.store.objectsums import COMPOSITE, FULL_OBJECT, checksum_of_parts, types_of

CHECK = b"123456789"


def text(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def digest(algorithm: str, data: bytes) -> bytes:
    match algorithm:
        case "crc32":
            return zlib.crc32(data).to_bytes(4, "big")
        case "crc32c":
            return int(google_crc32c.value(data)).to_bytes(4, "big")
    return hashlib.new(algorithm, data).digest()


@pytest.mark.parametrize("algorithm", ["crc32", "crc32c"])
@pytest.mark.parametrize("seed", range(20))
def test_full_object(algorithm: str, seed: int) -> None:
    rng = random.Random(seed)
    parts = [rng.randbytes(rng.choice((0, 1, 7, 5000, rng.randrange(70_000)))) for _ in range(rng.randint(1, 9))]
    sums = [(text(digest(algorithm, part)), len(part)) for part in parts]
    assert checksum_of_parts(algorithm, FULL_OBJECT, sums) == text(digest(algorithm, b"".join(parts)))


@pytest.mark.parametrize("algorithm", ["crc32", "crc32c", "sha1", "sha256"])
def test_composite(algorithm: str) -> None:
    digests = [digest(algorithm, b"%d" % number) for number in range(12)]
    found = checksum_of_parts(algorithm, COMPOSITE, [(text(one), 1) for one in digests])
    assert found == text(digest(algorithm, b"".join(digests))) + "-12"


def test_crc64nvme_of_parts() -> None:
    """The check value of the catalogue of CRCs, and one byte added to the empty object again and again."""
    whole = "rosUhgp5mIg="  # 0xAE8B14860A799888
    crc64 = pytest.importorskip("awscrt.checksums").crc64nvme
    assert text(crc64(CHECK).to_bytes(8, "big")) == whole
    single = [(text(crc64(CHECK[at : at + 1]).to_bytes(8, "big")), 1) for at in range(len(CHECK))]
    assert checksum_of_parts("crc64nvme", FULL_OBJECT, single) == whole
    assert types_of("crc64nvme") == (FULL_OBJECT,)
