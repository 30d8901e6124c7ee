"""Writes that are begun in the hall, and the handler's: the same answers, and the same objects."""

import base64
import hashlib
import random
import zlib
from typing import Any

import pytest
from modes import mode
from raw_s3 import Answer, Raw

from couchestord.errors import Unavailable

KEYS = [b"one", b"a/deep/path", b"a/deep/other", "ü %+~".encode(), b"dir/", b"k" * 1024, b"k" * 1025, b"\xff"]


def headers_for(source: random.Random, body: bytes) -> dict[str, str]:
    """Of a PUT: some that fit, some that do not."""
    right = source.random() < 0.8
    told = body if right else body + b"x"
    crc32 = base64.b64encode(zlib.crc32(told).to_bytes(4, "big")).decode()
    sha256 = hashlib.sha256(told)
    return source.choice(
        [
            {},
            {},
            {"content-type": "text/plain", "x-amz-meta-colour": "blue", "cache-control": "no-store"},
            {"x-amz-content-sha256": sha256.hexdigest()},
            {"content-md5": base64.b64encode(hashlib.md5(told).digest()).decode()},
            {"x-amz-checksum-crc32": crc32},
            {"x-amz-checksum-sha256": base64.b64encode(sha256.digest()).decode(), "x-amz-meta-a": "b"},
            {"x-amz-checksum-crc32": crc32, "x-amz-sdk-checksum-algorithm": "CRC32"},
            {"x-amz-checksum-crc32": "?"},
            {"if-none-match": "*"},
            {"if-match": '"0"'},
            {"if-match": "*"},
            {"if-none-match": '"0"'},
            {"x-amz-acl": "public-read"},
            {"x-amz-tagging": "a=b"},
            {"x-amz-expected-bucket-owner": source.choice(["root", "ann"])},
            {"x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "x-amz-decoded-content-length": "1"},
            {"x-amz-meta-a": "b" * 2100},
            {"x-amz-copy-source": "/nowhere/one"},
            {"wrong": "yes"},
        ]
    )


def comparable(answer: Answer, bucket: str) -> tuple[object, ...]:
    """Without what differs between two buckets."""
    headers = {name: value for name, value in answer.headers if name not in ("last-modified", "x-amz-version-id")}
    versioned = [len(value) for name, value in answer.headers if name == "x-amz-version-id"]
    return answer.status, headers, versioned, answer.body.replace(bucket.encode(), b"BUCKET")


@pytest.mark.parametrize("seed", range(4))
def test_the_same_as_the_handler(live: Any, seed: int) -> None:
    source = random.Random(seed)
    raws = {f"begun-{seed}": Raw(live.port), f"plain-{seed}": Raw(live.hasty_port)}
    for bucket in raws:
        live.run(_create_bucket, live.store, bucket, "ann" if seed % 2 else "root")
    statuses: dict[int, int] = {}
    for turn in range(150):
        if turn in (90, 120):
            for bucket in raws:
                live.run(live.store.set_versioning, bucket, "Enabled" if turn == 90 else "Suspended")
        key, body = source.choice(KEYS), source.randbytes(source.choice([0, 1, 5000, 60_000]))
        method = source.choice(["PUT", "PUT", "DELETE"])
        more = headers_for(source, body)
        query = source.choice(["", "", "", "", "versionId=null", "acl", "x=y"])
        user = live.admin if source.random() < 0.8 else live.user
        missing = source.random() < 0.03
        found = []
        for bucket, raw in raws.items():
            name = f"{bucket}-none" if missing else bucket
            path = f"/{name}/".encode() + key
            sent = body if method == "PUT" or turn % 5 == 0 else b""
            answers = [raw.ask(user, method, path, query, more, sent), raw.ask(live.admin, "GET", path)]
            found.append([comparable(answer, bucket) for answer in answers])
            statuses[answers[0].status] = statuses.get(answers[0].status, 0) + 1
        assert found[0] == found[1], (turn, method, key, more, query)
    assert statuses[200] >= 30
    assert statuses[204] >= 20
    assert {400, 403, 404, 412, 501} <= set(statuses)
    for raw in raws.values():
        raw.close()


async def _create_bucket(store: Any, name: str, owner: str) -> None:
    await store.create_bucket(name, owner=owner)


@pytest.mark.skipif(mode().workers > 0, reason="another process makes the changes of workers: none is begun")
def test_what_is_begun_and_what_is_left_to_the_handler(live: Any, bucket: str) -> None:
    """Else the test above would compare the handler with itself. And each is counted once."""
    raw, path = Raw(live.port), f"/{bucket}/key".encode()
    seen: list[bool] = []
    begin = live.server.begin

    def look(*request: Any) -> bool:
        seen.append(begin(*request))
        return seen[-1]

    live.begin.append(look)
    before = len(live.seen())
    sha256 = hashlib.sha256(b"abc").hexdigest()
    crc32 = {"x-amz-checksum-crc32": base64.b64encode(zlib.crc32(b"abc").to_bytes(4, "big")).decode()}
    assert raw.ask(live.admin, "PUT", path, body=b"abc").status == 200
    assert raw.ask(live.admin, "PUT", path, more={"x-amz-content-sha256": sha256}, body=b"abc").status == 200
    assert dict(raw.ask(live.admin, "PUT", path, more=crc32, body=b"abc").headers)["x-amz-checksum-crc32"]
    assert raw.ask(live.admin, "PUT", path, more={"if-none-match": "*"}, body=b"abc").status == 412
    assert raw.ask(live.admin, "DELETE", path, more={"if-none-match": "*"}).status == 412
    assert raw.ask(live.admin, "DELETE", path).status == 204
    assert seen == [True] * 6
    raw.close()
    for key, method, query, more, body, status in (
        (live.admin, "PUT", "", {"wrong": "yes"}, b"abc", 403),
        (live.user, "PUT", "", {}, b"abc", 403),
        (live.admin, "PUT", "", {"x-amz-content-sha256": sha256}, b"abd", 400),
        (live.admin, "DELETE", "versionId=null", {}, b"", 204),
        (live.user, "PUT", "", {"x-amz-expected-bucket-owner": "root"}, b"abc", 403),
    ):
        # one that left the hall stays out of it for some requests
        raw = Raw(live.port)
        assert raw.ask(key, method, path, query, more, body).status == status
        raw.close()
    assert seen == [True] * 6 + [False] * 5
    live.begin.pop()
    assert [observed for observed in live.seen()[before:] if observed[1] in (200, 204, 412)] == [
        ("PutObject", 200, 3, 0),
        ("PutObject", 200, 3, 0),
        ("PutObject", 200, 3, 0),
        ("PutObject", 412, 3, live.seen()[before + 3][3]),
        ("DeleteObject", 412, 0, live.seen()[before + 4][3]),
        ("DeleteObject", 204, 0, 0),
        ("DeleteObject", 204, 0, 0),
    ]


def test_a_store_that_fails_is_told_of(live: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the group's commit, after the request was taken, and before: by the handler then."""
    raw, path = Raw(live.port), f"/{bucket}/key".encode()
    writer = live.store.core.writer

    async def fail(*_: Any) -> None:
        raise Unavailable("as the test wants it")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "_commit", fail)
        answer = raw.ask(live.admin, "PUT", path, body=b"abc")
        assert answer.status == 503
        assert dict(answer.headers)["retry-after"] == "1"
        assert b"<Code>ServiceUnavailable<" in answer.body
    assert raw.ask(live.admin, "PUT", path, body=b"abc").status == 200
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_broken", Unavailable("stopped"))
        assert raw.ask(live.admin, "DELETE", path).status == 503
    assert raw.ask(live.admin, "GET", path).body == b"abc"
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_filled", 0.95)  # a journal that fills slows its writers, in tasks of their own
        assert raw.ask(live.admin, "PUT", path, body=b"abcd").status == 200
    raw.close()
