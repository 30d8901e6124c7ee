"""Checksums of objects of parts, by a real client.

Seen to fail with: parts combined in another order; what the client says of the object not compared; a complete that
names checksums refused when it is repeated; a type that the upload was not begun for taken; a range of a source cut to
what the source has.
"""

import base64
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError
from s3_clients import MIB, body_of, code_of, connect

from couchestord.frontends.s3.checksums import new_checksum


@pytest.fixture
def s3(live: Any) -> Any:
    client = connect(live)
    yield client
    client.close()


def digest_of(algorithm: str, data: bytes) -> bytes:
    found = new_checksum(algorithm.lower())
    found.update(data)
    return found.digest()


def upload_parts(s3: Any, algorithm: str, parts: list[bytes], **place: Any) -> list[dict[str, Any]]:
    made = []
    for number, body in enumerate(parts, 1):
        part = s3.upload_part(**place, PartNumber=number, Body=body, ChecksumAlgorithm=algorithm)
        assert part[f"Checksum{algorithm}"] == base64.b64encode(digest_of(algorithm, body)).decode()
        made.append({"PartNumber": number, "ETag": part["ETag"], f"Checksum{algorithm}": part[f"Checksum{algorithm}"]})
    return made


@pytest.mark.parametrize(
    ("algorithm", "type_"),
    [(name, "COMPOSITE") for name in ("CRC32", "CRC32C", "SHA1", "SHA256")]
    + [(name, "FULL_OBJECT") for name in ("CRC32", "CRC32C", "CRC64NVME")],
)
def test_checksum_of_an_object_of_parts(s3: Any, bucket: str, algorithm: str, type_: str) -> None:
    name = f"Checksum{algorithm}"
    parts = [body_of(5 * MIB), body_of(5 * MIB + 777), b"the end"]
    digest = digest_of(algorithm, b"".join(parts))
    if type_ == "COMPOSITE":
        digest = digest_of(algorithm, b"".join(digest_of(algorithm, part) for part in parts))
    value = base64.b64encode(digest).decode() + ("-3" if type_ == "COMPOSITE" else "")
    begun = s3.create_multipart_upload(Bucket=bucket, Key="m", ChecksumAlgorithm=algorithm, ChecksumType=type_)
    assert (begun["ChecksumAlgorithm"], begun["ChecksumType"]) == (algorithm, type_)
    place = {"Bucket": bucket, "Key": "m", "UploadId": begun["UploadId"]}
    listed = {"Parts": upload_parts(s3, algorithm, parts, **place)}
    other = "SHA1" if algorithm != "SHA1" else "CRC32"
    refusals: list[tuple[dict[str, str], str]] = [
        ({name: base64.b64encode(bytes(len(digest))).decode()}, "BadDigest"),
        ({f"Checksum{other}": base64.b64encode(digest_of(other, b"")).decode()}, "InvalidRequest"),
        ({"ChecksumType": "FULL_OBJECT" if type_ == "COMPOSITE" else "COMPOSITE"}, "InvalidRequest"),
    ]
    for wrong, code in refusals:
        with pytest.raises(ClientError) as raised:
            s3.complete_multipart_upload(**place, MultipartUpload=listed, **wrong)
        assert code_of(raised) == (code, 400), wrong
    with pytest.raises(ClientError) as raised:
        s3.upload_part(**place, PartNumber=4, Body=b"x", ChecksumAlgorithm=other)
    assert code_of(raised) == ("InvalidRequest", 400)
    for claim in ({name: value, "ChecksumType": type_}, {}):
        # the second is the same complete once more
        answer = s3.complete_multipart_upload(**place, MultipartUpload=listed, **claim)
        assert (answer[name], answer["ChecksumType"]) == (value, type_)
    assert name not in s3.head_object(Bucket=bucket, Key="m")
    head = s3.head_object(Bucket=bucket, Key="m", ChecksumMode="ENABLED")
    assert (head[name], head["ChecksumType"]) == (value, type_)
    got = s3.get_object(Bucket=bucket, Key="m", ChecksumMode="ENABLED")
    assert (got[name], got["ChecksumType"], got["Body"].read()) == (value, type_, b"".join(parts))
    ranged = s3.get_object(Bucket=bucket, Key="m", ChecksumMode="ENABLED", Range="bytes=0-9")
    assert (name in ranged, ranged["Body"].read()) == (False, parts[0][:10])


def test_a_checksum_of_the_object_is_never_believed_unseen(s3: Any, bucket: str) -> None:
    """Without one in the upload it is told from the parts' own, if all have one; else a claim is refused."""
    with pytest.raises(ClientError) as raised:
        s3.create_multipart_upload(Bucket=bucket, Key="m", ChecksumAlgorithm="SHA256", ChecksumType="FULL_OBJECT")
    assert code_of(raised) == ("InvalidRequest", 400)
    place = {"Bucket": bucket, "Key": "m", "UploadId": s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]}
    listed = {"Parts": upload_parts(s3, "CRC32", [body := body_of(5 * MIB), b"end"], **place)}
    value = base64.b64encode(digest_of("CRC32", body + b"end")).decode()
    s3.put_object(Bucket=bucket, Key="source", Body=b"copied")
    copied = s3.upload_part_copy(**place, PartNumber=3, CopySource=f"{bucket}/source")["CopyPartResult"]["ETag"]
    with pytest.raises(ClientError) as raised:  # 304 is for who reads
        s3.upload_part_copy(**place, PartNumber=3, CopySource=f"{bucket}/source", CopySourceIfNoneMatch=copied)
    assert code_of(raised) == ("PreconditionFailed", 412)
    more = {"Parts": [{"PartNumber": 1, "ETag": listed["Parts"][0]["ETag"]}, {"PartNumber": 3, "ETag": copied}]}
    with pytest.raises(ClientError) as raised:
        s3.complete_multipart_upload(**place, MultipartUpload=more, ChecksumCRC32=value, ChecksumType="FULL_OBJECT")
    assert code_of(raised) == ("InvalidRequest", 400)
    s3.complete_multipart_upload(**place, MultipartUpload=listed, ChecksumCRC32=value, ChecksumType="FULL_OBJECT")
    head = s3.head_object(Bucket=bucket, Key="m", ChecksumMode="ENABLED")
    assert (head["ChecksumCRC32"], head["ChecksumType"]) == (value, "FULL_OBJECT")


def test_a_part_is_never_shorter_than_the_range_it_is_copied_from(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="source", Body=b"0123456789")
    place = {"Bucket": bucket, "Key": "m", "UploadId": s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]}
    for asked in ("bytes=0-10", "bytes=9-21", "bytes=10-11"):
        with pytest.raises(ClientError) as raised:
            s3.upload_part_copy(**place, PartNumber=1, CopySource=f"{bucket}/source", CopySourceRange=asked)
        assert code_of(raised) == ("InvalidRange", 416)
    assert "Parts" not in s3.list_parts(**place)
    s3.upload_part_copy(**place, PartNumber=1, CopySource=f"{bucket}/source", CopySourceRange="bytes=5-9")
    assert s3.list_parts(**place)["Parts"][0]["Size"] == 5


def test_an_upload_is_not_aborted_under_a_condition_that_is_not_looked_at(s3: Any, bucket: str) -> None:
    place = {"Bucket": bucket, "Key": "m", "UploadId": s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]}
    with pytest.raises(ClientError) as raised:
        s3.abort_multipart_upload(**place, IfMatchInitiatedTime=datetime(2000, 1, 1, tzinfo=UTC))
    assert code_of(raised) == ("NotImplemented", 501)
    assert "Parts" not in s3.list_parts(**place)
    s3.abort_multipart_upload(**place)
