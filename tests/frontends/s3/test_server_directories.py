"""Empty directories that mounts keep, as clients of S3 meet them."""

import stat
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError
from s3_clients import code_of, connect

from couchestord.io import filerequests as fr

TYPE = "application/x-directory"


@pytest.fixture
def s3(live: Any) -> Any:
    client = connect(live)
    yield client
    client.close()


def make(live: Any, bucket: str, *path: bytes) -> None:
    """Directories, each in the one before it, as a mount makes them."""

    async def make_all() -> None:
        at = live.store.files.root(bucket)
        for name in path:
            found = live.store.files.lookup(at, name)
            asked = fr.MakeNode(at, name, stat.S_IFDIR | 0o755, 0, 0)
            at = (found or await live.store.files.change(asked)).id

    live.run(make_all)


def test_one_is_an_empty_object(live: Any, s3: Any, bucket: str) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    make(live, bucket, b"dir", b"in it")
    (row,) = s3.list_objects_v2(Bucket=bucket)["Contents"]
    assert (row["Key"], row["Size"]) == ("dir/in it/", 0)
    assert before <= row["LastModified"] <= datetime.now(UTC)
    for _ in range(2):
        got = s3.get_object(Bucket=bucket, Key="dir/in it/")
        head = s3.head_object(Bucket=bucket, Key="dir/in it/")
        for each in (got, head):
            assert (each["ContentLength"], each["ContentType"], each["ETag"]) == (0, TYPE, row["ETag"])
            assert each["LastModified"] == row["LastModified"].replace(microsecond=0)
            assert each["Metadata"] == {}
        assert got["Body"].read() == b""
    for key in ("dir/", "dir/in it", "dir"):
        with pytest.raises(ClientError) as raised:
            s3.get_object(Bucket=bucket, Key=key)
        assert code_of(raised) == ("NoSuchKey", 404)
    for call, asked, answer in (
        (s3.get_object, {"Range": "bytes=0-"}, ("InvalidRange", 416)),
        (s3.head_object, {"IfNoneMatch": row["ETag"]}, ("304", 304)),
        (s3.put_object, {"IfNoneMatch": "*", "Body": b""}, ("PreconditionFailed", 412)),
        (s3.delete_bucket, {}, ("BucketNotEmpty", 409)),
    ):
        with pytest.raises(ClientError) as raised:
            call(Bucket=bucket, **({"Key": "dir/in it/"} if answer[1] != 409 else {}), **asked)
        assert code_of(raised) == answer
    s3.copy_object(Bucket=bucket, Key="copied/", CopySource={"Bucket": bucket, "Key": "dir/in it/"})
    assert s3.head_object(Bucket=bucket, Key="copied/")["ContentType"] == TYPE


def test_they_are_listed_among_the_others(live: Any, s3: Any, bucket: str) -> None:
    make(live, bucket, b"a", b"b")
    make(live, bucket, b"c")
    s3.put_object(Bucket=bucket, Key="a/c", Body=b"")
    s3.put_object(Bucket=bucket, Key="c-", Body=b"")
    for call in (s3.list_objects, s3.list_objects_v2):
        assert [each["Key"] for each in call(Bucket=bucket)["Contents"]] == ["a/b/", "a/c", "c-", "c/"]
        page = call(Bucket=bucket, Delimiter="/")
        assert [each["Key"] for each in page["Contents"]] == ["c-"]
        assert [each["Prefix"] for each in page["CommonPrefixes"]] == ["a/", "c/"]
        page = call(Bucket=bucket, Delimiter="/", Prefix="a/")
        assert ([each["Prefix"] for each in page["CommonPrefixes"]], page["Contents"][0]["Key"]) == (["a/b/"], "a/c")
        (own,) = call(Bucket=bucket, Delimiter="/", Prefix="c/")["Contents"]
        assert own["Key"] == "c/"
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": 1})
    assert [each["Key"] for page in pages for each in page["Contents"]] == ["a/b/", "a/c", "c-", "c/"]
    rest = s3.list_objects_v2(Bucket=bucket, StartAfter="c-")["Contents"]
    assert [each["Key"] for each in rest] == ["c/"]
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket, StartAfter="c/")


def test_who_deletes_all_that_is_listed_can_delete_the_bucket(live: Any, s3: Any, bucket: str) -> None:
    make(live, bucket, b"a", b"b", b"c")
    make(live, bucket, b"a", b"d")
    make(live, bucket, b"e")
    listed = [{"Key": each["Key"]} for each in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert listed == [{"Key": "a/b/c/"}, {"Key": "a/d/"}, {"Key": "e/"}]
    s3.delete_object(Bucket=bucket, Key="a/b/c")  # another key
    s3.delete_object(Bucket=bucket, Key="a/b/")
    assert "Errors" not in s3.delete_objects(Bucket=bucket, Delete={"Objects": listed})
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
    s3.delete_bucket(Bucket=bucket)


def test_a_key_that_is_longer_than_s3_makes_any_is_served_and_deleted(live: Any, s3: Any, bucket: str) -> None:
    make(live, bucket, *[b"%d" % number + b"d" * 200 for number in range(6)])
    (row,) = s3.list_objects_v2(Bucket=bucket)["Contents"]
    place = {"Bucket": bucket, "Key": row["Key"]}
    assert len(row["Key"]) > 1024
    assert s3.get_object(**place)["ETag"] == s3.head_object(**place)["ETag"] == row["ETag"]
    for call in (s3.put_object, s3.create_multipart_upload):
        with pytest.raises(ClientError) as raised:
            call(**place)
        assert code_of(raised) == ("KeyTooLongError", 400)
    s3.delete_object(**place)
    with pytest.raises(ClientError) as raised:
        s3.get_object(**place)
    assert code_of(raised) == ("NoSuchKey", 404)
