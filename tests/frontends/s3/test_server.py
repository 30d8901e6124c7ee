"""Real clients against a live server over the real store."""

import base64
import contextlib
import hashlib
import http.client
import io
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError
from s3_clients import MIB, body_of, code_of, connect


@pytest.fixture
def s3(live: Any) -> Any:
    client = connect(live)
    yield client
    client.close()


@pytest.mark.parametrize("size", [0, 1, 4096, 128 << 10, (128 << 10) + 1, 3 * MIB + 7])
def test_put_get_head_delete(s3: Any, bucket: str, size: int) -> None:
    body = body_of(size)
    put = s3.put_object(
        Bucket=bucket, Key="dir/a +ü%.bin", Body=body, ContentType="text/plain", Metadata={"empty": "", "a": "b c"}
    )
    assert put["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
    got = s3.get_object(Bucket=bucket, Key="dir/a +ü%.bin", ChecksumMode="ENABLED")
    assert got["Body"].read() == body
    assert got["ETag"] == put["ETag"]
    assert got["ContentType"] == "text/plain"
    assert got["Metadata"] == {"empty": "", "a": "b c"}
    assert got["ChecksumCRC32"] == put["ChecksumCRC32"]
    assert got["ChecksumType"] == "FULL_OBJECT"
    head = s3.head_object(Bucket=bucket, Key="dir/a +ü%.bin")
    assert (head["ContentLength"], head["ETag"]) == (size, put["ETag"])
    assert "ChecksumCRC32" not in head
    assert len(head["ResponseMetadata"]["HTTPHeaders"]["x-amz-request-id"]) == 16
    s3.delete_object(Bucket=bucket, Key="dir/a +ü%.bin")
    with pytest.raises(ClientError) as raised:
        s3.get_object(Bucket=bucket, Key="dir/a +ü%.bin")
    assert code_of(raised) == ("NoSuchKey", 404)


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_checksums_are_verified_stored_and_echoed(s3: Any, bucket: str, algorithm: str) -> None:
    body = body_of(200_000)
    put = s3.put_object(Bucket=bucket, Key="k", Body=body, ChecksumAlgorithm=algorithm)
    value = put[f"Checksum{algorithm}"]
    got = s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert (got[f"Checksum{algorithm}"], got["Body"].read()) == (value, body)
    with pytest.raises(ClientError) as raised:
        s3.put_object(Bucket=bucket, Key="k", Body=body[:-1] + b"!", **{f"Checksum{algorithm}": value})
    assert code_of(raised) == ("BadDigest", 400)
    part = s3.get_object(Bucket=bucket, Key="k", Range="bytes=0-9", ChecksumMode="ENABLED")
    assert part["Body"].read() == body[:10]
    assert f"Checksum{algorithm}" not in part
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == body


@pytest.mark.parametrize("size", [100, 300_000])
@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=0-0", 0, 0), ("bytes=10-", 10, None), ("bytes=-5", -5, None), ("bytes=90-999999999", 90, None)],
)
def test_ranges(s3: Any, bucket: str, size: int, asked: str, first: int, last: int | None) -> None:
    body = body_of(size)
    s3.put_object(Bucket=bucket, Key="k", Body=body)
    got = s3.get_object(Bucket=bucket, Key="k", Range=asked)
    wanted = body[first : None if last is None else last + 1]
    assert got["Body"].read() == wanted
    assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
    begin = first % size if first < 0 else first
    assert got["ContentRange"] == f"bytes {begin}-{begin + len(wanted) - 1}/{size}"
    head = s3.head_object(Bucket=bucket, Key="k", Range=asked)
    assert (head["ContentRange"], head["ContentLength"]) == (got["ContentRange"], len(wanted))


def test_odd_ranges(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"0123456789")
    for asked in ("bytes=5-2", "bytes=0-1,3-4", "items=0-1", "bytes=-"):
        got = s3.get_object(Bucket=bucket, Key="k", Range=asked)
        assert (got["ResponseMetadata"]["HTTPStatusCode"], got["Body"].read()) == (200, b"0123456789")
    with pytest.raises(ClientError) as raised:
        s3.get_object(Bucket=bucket, Key="k", Range="bytes=10-")
    assert code_of(raised) == ("InvalidRange", 416)
    assert raised.value.response["ResponseMetadata"]["HTTPHeaders"]["content-range"] == "bytes */10"
    whole = s3.get_object(Bucket=bucket, Key="k", Range="bytes=0-99")
    assert (whole["ResponseMetadata"]["HTTPStatusCode"], whole["Body"].read()) == (206, b"0123456789")
    # some SDKs say "from 5 on" so; who was sent the whole would take its first bytes for those
    rest = s3.get_object(Bucket=bucket, Key="k", Range=f"bytes=5-{(1 << 63) - 2}")
    assert (rest["ResponseMetadata"]["HTTPStatusCode"], rest["Body"].read()) == (206, b"56789")


def test_conditions(s3: Any, bucket: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"one", IfNoneMatch="*")["ETag"]
    modified = s3.head_object(Bucket=bucket, Key="k")["LastModified"]
    refused: list[tuple[Any, dict[str, Any], tuple[str, int]]] = [
        (s3.put_object, {"Body": b"two", "IfNoneMatch": "*"}, ("PreconditionFailed", 412)),
        (s3.put_object, {"Body": b"two", "IfMatch": '"0"'}, ("PreconditionFailed", 412)),
        (s3.put_object, {"Body": b"two", "IfNoneMatch": '"x"'}, ("NotImplemented", 501)),
        (s3.put_object, {"Body": b"two", "IfMatch": etag, "Key": "none"}, ("NoSuchKey", 404)),
        (s3.put_object, {"Body": b"two", "IfMatch": ","}, ("PreconditionFailed", 412)),
        (s3.delete_object, {"IfMatch": ","}, ("PreconditionFailed", 412)),
        (s3.get_object, {"IfMatch": '"0"'}, ("PreconditionFailed", 412)),
        (s3.get_object, {"IfNoneMatch": etag}, ("304", 304)),
        (s3.head_object, {"IfNoneMatch": etag.strip('"')}, ("304", 304)),
        (s3.get_object, {"IfNoneMatch": f'"0", {etag}'}, ("304", 304)),
        (s3.get_object, {"IfModifiedSince": modified}, ("304", 304)),
    ]
    for call, arguments, answer in refused:
        with pytest.raises(ClientError) as raised:
            call(**{"Bucket": bucket, "Key": "k", **arguments})
        assert code_of(raised) == answer, arguments
        if answer[1] == 304:
            assert raised.value.response["ResponseMetadata"]["HTTPHeaders"]["etag"] == etag
    assert s3.get_object(Bucket=bucket, Key="k", IfMatch=etag)["Body"].read() == b"one"
    s3.put_object(Bucket=bucket, Key="k", Body=b"two", IfMatch=etag)


def test_content_type_default_overrides_and_encoding(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", ContentEncoding="aws-chunked,gzip")
    got = s3.get_object(
        Bucket=bucket, Key="k", ResponseContentType="text/x", ResponseCacheControl="no-store", ResponseExpires="0"
    )
    got["Body"].close()
    assert (got["ContentType"], got["CacheControl"], got["ContentEncoding"]) == ("text/x", "no-store", "gzip")
    assert s3.head_object(Bucket=bucket, Key="k")["ContentType"] == "binary/octet-stream"


def test_metadata_limit(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", Metadata={"a": "b" * 2047})
    with pytest.raises(ClientError) as raised:
        s3.put_object(Bucket=bucket, Key="k", Body=b"x", Metadata={"a": "b" * 2048})
    assert code_of(raised) == ("MetadataTooLarge", 400)


def test_listing(s3: Any, bucket: str) -> None:
    keys = ["a", "a/b", "a/c/d", "dir/", "e +%&<ü", "e\x01f", "z"]
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    for version in ("list_objects", "list_objects_v2"):
        pages = list(s3.get_paginator(version).paginate(Bucket=bucket, PaginationConfig={"PageSize": 2}))
        assert [row["Key"] for page in pages for row in page.get("Contents", ())] == sorted(keys)
        assert len(pages) == 4
        pages = list(s3.get_paginator(version).paginate(Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": 1}))
        assert [row["Prefix"] for page in pages for row in page.get("CommonPrefixes", ())] == ["a/", "dir/"]
        found = [row["Key"] for page in pages for row in page.get("Contents", ())]
        assert found == ["a", "e\x01f", "e +%&<ü", "z"]
    page = s3.list_objects_v2(Bucket=bucket, Prefix="a/", StartAfter="a/b", FetchOwner=True)
    assert [row["Key"] for row in page["Contents"]] == ["a/c/d"]
    assert (page["KeyCount"], page["Contents"][0]["Owner"]["ID"]) == (1, "root")
    assert s3.list_objects_v2(Bucket=bucket, MaxKeys=0)["KeyCount"] == 0
    with pytest.raises(ClientError) as raised:
        s3.list_objects_v2(Bucket=bucket, ContinuationToken="garbage")
    assert code_of(raised) == ("InvalidArgument", 400)


def test_copy(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="src +?ü", Body=b"x", Metadata={"a": "b"}, ChecksumAlgorithm="SHA256")
    source = {"Bucket": bucket, "Key": "src +?ü"}
    s3.copy_object(Bucket=bucket, Key="copy", CopySource=source)
    assert s3.head_object(Bucket=bucket, Key="copy")["Metadata"] == {"a": "b"}
    s3.copy_object(Bucket=bucket, Key="copy", CopySource=source, MetadataDirective="REPLACE", Metadata={"c": "d"})
    copied = s3.head_object(Bucket=bucket, Key="copy", ChecksumMode="ENABLED")
    assert copied["Metadata"] == {"c": "d"}
    assert copied["ChecksumSHA256"] == base64.b64encode(hashlib.sha256(b"x").digest()).decode()
    refused: list[tuple[dict[str, Any], tuple[str, int]]] = [
        ({"CopySource": source, "Key": source["Key"]}, ("InvalidRequest", 400)),
        ({"CopySource": source, "CopySourceIfMatch": '"0"'}, ("PreconditionFailed", 412)),
        ({"CopySource": f"{bucket}/missing"}, ("NoSuchKey", 404)),
    ]
    for arguments, answer in refused:
        with pytest.raises(ClientError) as raised:
            s3.copy_object(**{"Bucket": bucket, "Key": "copy", **arguments})
        assert code_of(raised) == answer


def test_a_version_id_that_is_none_is_refused_whether_the_key_is_there_or_not(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    for key in ("k", "none", "none/k"):
        for wrong in ("\0", "\u00e9", "zz", "0" * 15, "0" * 15 + "G"):
            with pytest.raises(ClientError) as raised:
                s3.delete_object(Bucket=bucket, Key=key, VersionId=wrong)
            assert code_of(raised) == ("NoSuchVersion", 404), (key, wrong)
        answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key, "VersionId": "zz"}]})
        assert [row["Code"] for row in answer["Errors"]] == ["NoSuchVersion"]
        s3.delete_object(Bucket=bucket, Key=key, VersionId="0" * 16)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"


def test_an_empty_version_id_is_refused(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    for call in (s3.get_object, s3.delete_object):
        with pytest.raises(ClientError) as raised:
            call(Bucket=bucket, Key="k", VersionId="")
        assert code_of(raised) == ("InvalidArgument", 400)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"


def test_delete_many(s3: Any, bucket: str) -> None:
    keys = [f"k{index}" for index in range(150)]
    for key in keys[:10]:
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys]})
    assert [row["Key"] for row in answer["Deleted"]] == keys
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
    quiet = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a"}], "Quiet": True})
    assert "Deleted" not in quiet


def test_multipart(s3: Any, bucket: str) -> None:
    body = body_of(11 * MIB)
    config = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, max_concurrency=2)
    s3.upload_fileobj(io.BytesIO(body), bucket, "big", Config=config, ExtraArgs={"Metadata": {"a": "b"}})
    got = s3.get_object(Bucket=bucket, Key="big")
    assert got["Body"].read() == body
    assert got["ETag"].endswith('-3"')
    assert got["Metadata"] == {"a": "b"}
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    place = {"Bucket": bucket, "Key": "m", "UploadId": upload}
    first = s3.upload_part(**place, PartNumber=1, Body=body[: 5 * MIB])["ETag"]
    copied = s3.upload_part_copy(**place, PartNumber=3, CopySource=f"{bucket}/big", CopySourceRange="bytes=100-199")[
        "CopyPartResult"
    ]["ETag"]
    assert [part["PartNumber"] for part in s3.list_parts(**place)["Parts"]] == [1, 3]
    assert [row["UploadId"] for row in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]] == [upload]
    parts = [{"PartNumber": 1, "ETag": first.strip('"')}, {"PartNumber": 3, "ETag": copied}]
    for wrong, answer in [
        (parts[::-1], ("InvalidPartOrder", 400)),
        ([{"PartNumber": 1, "ETag": '"0"'}], ("InvalidPart", 400)),
        ([{**parts[0], "ChecksumCRC32": "AAAAAA=="}, parts[1]], ("InvalidPart", 400)),
    ]:
        with pytest.raises(ClientError) as raised:
            s3.complete_multipart_upload(**place, MultipartUpload={"Parts": wrong})
        assert code_of(raised) == answer
    s3.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})
    assert s3.get_object(Bucket=bucket, Key="m")["Body"].read() == body[: 5 * MIB] + body[100:200]
    aborted = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    s3.abort_multipart_upload(Bucket=bucket, Key="m", UploadId=aborted)
    with pytest.raises(ClientError) as raised:
        s3.upload_part(Bucket=bucket, Key="m", UploadId=aborted, PartNumber=1, Body=b"x")
    assert code_of(raised) == ("NoSuchUpload", 404)


def test_buckets(s3: Any, live: Any) -> None:
    s3.create_bucket(Bucket="made-here")
    assert "made-here" in [row["Name"] for row in s3.list_buckets()["Buckets"]]
    head = s3.head_bucket(Bucket="made-here")["ResponseMetadata"]["HTTPHeaders"]
    assert head["x-amz-bucket-region"] == "us-east-1"
    assert s3.get_bucket_location(Bucket="made-here")["LocationConstraint"] is None
    assert "Status" not in s3.get_bucket_versioning(Bucket="made-here")
    s3.put_object(Bucket="made-here", Key="k", Body=b"x")
    with pytest.raises(ClientError) as raised:
        s3.delete_bucket(Bucket="made-here")
    assert code_of(raised) == ("BucketNotEmpty", 409)
    s3.delete_object(Bucket="made-here", Key="k")
    s3.delete_bucket(Bucket="made-here")
    with pytest.raises(ClientError) as raised:
        s3.head_bucket(Bucket="made-here")
    assert code_of(raised) == ("404", 404)


def test_a_user_reaches_only_own_buckets(s3: Any, live: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    ann = connect(live, live.user)
    ann.create_bucket(Bucket="of-ann")
    ann.put_object(Bucket="of-ann", Key="k", Body=b"x")
    assert [row["Name"] for row in ann.list_buckets()["Buckets"]] == ["of-ann"]
    foreign: list[tuple[Any, dict[str, Any]]] = [
        (ann.get_object, {"Key": "k"}),
        (ann.put_object, {"Key": "k", "Body": b"y"}),
        (ann.delete_object, {"Key": "k"}),
        (ann.list_objects_v2, {}),
        (ann.delete_bucket, {}),
        (ann.copy_object, {"Bucket": "of-ann", "Key": "c", "CopySource": f"{bucket}/k"}),
        (ann.copy_object, {"Key": "c", "CopySource": "of-ann/k"}),
        (ann.create_multipart_upload, {"Key": "c"}),
        (ann.delete_objects, {"Delete": {"Objects": [{"Key": "k"}]}}),
    ]
    for call, arguments in foreign:
        with pytest.raises(ClientError) as raised:
            call(**{"Bucket": bucket, **arguments})
        assert code_of(raised) == ("AccessDenied", 403), arguments
    with pytest.raises(ClientError) as raised:
        s3.head_object(Bucket="of-ann", Key="k", ExpectedBucketOwner="root")
    assert code_of(raised) == ("403", 403)
    for source in (bucket, "of-ann"):
        with pytest.raises(ClientError) as raised:
            s3.copy_object(Bucket=bucket, Key="c", CopySource=f"{source}/k", ExpectedSourceBucketOwner="nobody")
        assert code_of(raised) == ("AccessDenied", 403), source
    s3.copy_object(
        Bucket=bucket,
        Key="c",
        CopySource="of-ann/k",
        ExpectedBucketOwner="root",
        ExpectedSourceBucketOwner="ann",
    )
    ann.close()


def test_subresources_that_are_not_supported_are_never_taken_for_plain_operations(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    calls: list[tuple[Any, dict[str, Any]]] = [
        (s3.put_object_acl, {"Key": "k", "ACL": "public-read"}),
        (s3.put_object, {"Key": "k", "Body": b"y", "ACL": "public-read"}),
        (s3.put_object, {"Key": "k", "Body": b"y", "ServerSideEncryption": "AES256"}),
        (s3.put_object, {"Key": "k", "Body": b"y", "Tagging": "a=b"}),
        (s3.delete_object_tagging, {"Key": "k"}),
        (s3.delete_bucket_policy, {}),
        (s3.get_object, {"Key": "k", "PartNumber": 1}),
    ]
    for call, arguments in calls:
        with pytest.raises(ClientError) as raised:
            call(Bucket=bucket, **arguments)
        assert code_of(raised) == ("NotImplemented", 501), arguments
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"


def fetch(live: Any, target: str) -> tuple[int, bytes]:
    """An unsigned GET."""
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", target)
        response = connection.getresponse()
        return response.status, response.read()


def test_presigned_urls(live: Any, bucket: str) -> None:
    s3 = connect(live, signature_version="s3v4")
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    url = s3.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "k"}, ExpiresIn=60)
    target = url.partition(f":{live.port}")[2]
    assert fetch(live, target) == (200, b"x")
    status, answer = fetch(live, target.replace("/k?", "/l?"))
    assert status == 403
    assert b"<Code>SignatureDoesNotMatch</Code>" in answer
    status, answer = fetch(live, f"/{bucket}/k")
    assert status == 403
    assert b"<Code>AccessDenied</Code>" in answer
    s3.close()


def test_a_user_removed_while_it_makes_a_bucket_gets_none(live: Any, s3: Any) -> None:
    """Else the bucket would fall to the next user of that name."""
    live.run(live.store.create_user, "late")
    late = connect(live, live.run(live.store.create_key, "late"), signature_version="s3v4")
    target = late.generate_presigned_url("create_bucket", {"Bucket": "of-late"}).partition(f":{live.port}")[2]
    late.close()
    body = b"<CreateBucketConfiguration/>"
    head = f"PUT {target} HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as client:
        client.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 100"), "she was known when she asked"
        live.run(live.store.delete_user, "late")
        client.sendall(body)
        answer = client.recv(1000)
    assert answer.startswith(b"HTTP/1.1 403"), answer
    assert "of-late" not in [row["Name"] for row in s3.list_buckets()["Buckets"]]


def test_a_wrong_region_is_told_the_right_one(live: Any, bucket: str) -> None:
    s3 = connect(live, region="eu-west-1")
    live.observed.clear()
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0  # boto3 tries again in the region of the error
    assert [row[:2] for row in live.seen()] == [("Unknown", 400), ("ListObjectsV2", 200)]
    s3.close()


def test_observer_sees_operation_status_and_bytes(s3: Any, live: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x" * 1000)
    s3.get_object(Bucket=bucket, Key="k")["Body"].read()
    with pytest.raises(ClientError):
        s3.get_object(Bucket=bucket, Key="none")
    s3.list_buckets()
    seen = live.seen()
    assert ("PutObject", 200, 1000, 0) in seen
    assert ("GetObject", 200, 0, 1000) in seen
    assert ("GetObject", 404) in [row[:2] for row in seen]


def test_s5cmd(live: Any, bucket: str, tmp_path: Path) -> None:
    body = body_of(12 * MIB)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "big").write_bytes(body)
    (tmp_path / "in" / "small").write_bytes(b"small")

    def s5cmd(*arguments: str) -> str:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "AWS_ACCESS_KEY_ID": live.admin.access_key,
            "AWS_SECRET_ACCESS_KEY": live.admin.secret_key,
            "AWS_REGION": "us-east-1",
            "S3_ENDPOINT_URL": f"http://127.0.0.1:{live.port}",
        }
        done = subprocess.run(["s5cmd", *arguments], env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    s5cmd("cp", "--part-size", "5", f"{tmp_path}/in/*", f"s3://{bucket}/dir/")
    assert {line.split()[-1] for line in s5cmd("ls", f"s3://{bucket}/dir/").splitlines()} == {"big", "small"}
    s5cmd("cp", f"s3://{bucket}/dir/*", f"{tmp_path}/out/")
    assert (tmp_path / "out" / "big").read_bytes() == body
    s5cmd("mv", f"s3://{bucket}/dir/small", f"s3://{bucket}/moved")
    s5cmd("rm", f"s3://{bucket}/*")
    assert s5cmd("ls", f"s3://{bucket}/") == ""
