"""Quick answers and the handler's: for every request the same, whatever happened to the object just before."""

import random
from typing import Any
from unittest.mock import ANY

import pytest
from modes import mode
from raw_s3 import Raw
from s3_clients import connect
from small_store import core_of

from couchestord.errors import DataLost, Unavailable
from couchestord.frontends.s3 import quick
from couchestord.io.directory import DirectoryDisk
from couchestord.store import ObjectReader

HEADERS: list[dict[str, str]] = [
    {},
    {},
    {},
    {"x-amz-checksum-mode": "ENABLED"},
    {"x-amz-checksum-mode": "no"},
    {"range": "bytes=1-3"},
    {"range": "bytes=0-"},
    {"range": "bytes=250000-280000", "x-amz-checksum-mode": "ENABLED"},
    {"range": "bytes=100000-231071"},
    {"range": "bytes=-5"},
    {"range": "bytes=-0"},
    {"range": "bytes=3-1"},
    {"range": "bytes=0-1,3-4"},
    {"range": "bytes=9999999-"},
    {"if-match": '"0"'},
    {"if-none-match": "*"},
    {"if-modified-since": "Thu, 01 Jan 2026 00:00:00 GMT"},
    {"if-unmodified-since": "Thu, 01 Jan 2026 00:00:00 GMT"},
    {"if-range": '"0"', "range": "bytes=1-3"},
    {"x-amz-expected-bucket-owner": "root"},
    {"x-amz-expected-bucket-owner": "ann"},
    {"x-amz-copy-source": "/a/b"},
    {"wrong": "yes"},
    {"x-forwarded-for": "10.0.0.1"},
    {"accept": "*/*", "user-agent": "somebody"},
]
QUERIES = ["", "", "", "", "versionId=null", "response-content-type=a%2Fb", "acl", "x=y"]
KEYS = [b"one", b"a/deep/path", "ü %+~".encode(), b"large", b"dir/", b"gone"]


def forget_memory(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is at hand from now on but what the caches keep; they are empty."""
    monkeypatch.setattr(DirectoryDisk, "read_nowait", lambda *_: None)
    monkeypatch.setattr(DirectoryDisk, "read_into_nowait", lambda *_: False)
    live.run(core_of(live.store).cache.evict)


@pytest.mark.parametrize(("seed", "at_hand"), [(0, True), (1, True), (2, True), (3, True), (4, False), (5, False)])
def test_the_same_as_the_handler_while_objects_come_and_go(
    live: Any, monkeypatch: pytest.MonkeyPatch, seed: int, at_hand: bool
) -> None:
    source = random.Random(seed)
    if not at_hand:
        forget_memory(live, monkeypatch)
    client, bucket, foreign = connect(live), f"quick-{seed}", f"quick-ann-{seed}"
    fast, plain = Raw(live.port), Raw(live.hasty_port)
    client.create_bucket(Bucket=bucket)
    live.run(_create_bucket, live.store, foreign)
    answered: dict[int, int] = {}
    for _ in range(150):
        key = source.choice(KEYS)
        name = source.choice([bucket, bucket, bucket, foreign])
        text = key.decode()
        step = source.random()
        if step < 0.15:
            size = source.choice([0, 1, 5000]) if key != b"large" else 300_000
            client.put_object(
                Bucket=name,
                Key=text,
                Body=source.randbytes(size),
                Metadata={"n": str(step)},
                ChecksumAlgorithm="SHA256",
            )
        elif step < 0.2:
            client.delete_object(Bucket=name, Key=text)
        elif step < 0.22:
            live.run(live.store.set_versioning, bucket, source.choice(["Enabled", "Suspended"]))
        elif step < 0.24:
            live.run(live.store.destage)
        elif step < 0.5 and not at_hand:
            live.run(core_of(live.store).cache.evict)
        user = live.admin if source.random() < 0.8 else live.user
        method = source.choice(["GET", "GET", "HEAD"])
        more, query = source.choice(HEADERS), source.choice(QUERIES)
        request = (user, method, b"/" + name.encode() + b"/" + key, query, more)
        found, wanted = fast.ask(*request), plain.ask(*request)
        assert found == wanted, (step, request)
        answered[found.status] = answered.get(found.status, 0) + 1
    assert answered[200] >= 10
    assert {206, 403, 404, 416} <= set(answered)
    for raw in (fast, plain):
        raw.close()
    client.close()


async def _create_bucket(store: Any, name: str) -> None:
    await store.create_bucket(name, owner="ann")


@pytest.mark.skipif(mode().caches == "off", reason="without caches no body is in memory")
def test_an_answer_is_quick_once_the_object_was_seen_and_is_counted(live: Any, bucket: str) -> None:
    """Else the tests above would compare the handler with itself."""
    client, raw = connect(live), Raw(live.port)
    client.put_object(Bucket=bucket, Key="key", Body=b"abc")
    client.get_object(Bucket=bucket, Key="key")["Body"].read()
    path = f"/{bucket}/key".encode()
    seen: list[str] = []
    ask = live.server.quick

    def look(head: Any, date: bytes) -> bytes | None:
        answer = ask(head, date)
        seen.append("quick" if answer is not None else "handler")
        return answer  # type: ignore[no-any-return]

    live.quick.append(look)
    before = len(live.seen())
    for method in ("GET", "HEAD", "GET"):
        raw.ask(live.admin, method, path)
    raw.ask(live.admin, "GET", path, more={"range": "bytes=0-0"})
    raw.ask(live.admin, "GET", path, more={"range": "bytes=3-"})
    raw.ask(live.admin, "HEAD", path, more={"range": "bytes=1-1"})
    live.quick.pop()
    assert seen == ["quick", "quick", "quick", "quick", "handler", "handler"]
    assert [(operation, status, sent) for operation, status, _, sent in live.seen()[before:]] == [
        ("GetObject", 200, 3),
        ("HeadObject", 200, 0),
        ("GetObject", 200, 3),
        ("GetObject", 206, 1),
        ("GetObject", 416, ANY),
        ("HeadObject", 206, 0),
    ]
    raw.close()
    client.close()


def test_a_short_body_that_is_not_in_memory_is_waited_for(
    live: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, raw = connect(live), Raw(live.port)
    body, large = random.Random(1).randbytes(3000), random.Random(2).randbytes(300_000)
    client.put_object(Bucket=bucket, Key="key", Body=body)
    client.put_object(Bucket=bucket, Key="large", Body=large)
    path = f"/{bucket}/key".encode()
    seen: list[str] = []
    quick = live.server.quick

    def look(head: Any, date: bytes) -> Any:
        answer = quick(head, date)
        seen.append("quick" if isinstance(answer, bytes) else "handler" if answer is None else "later")
        return answer

    forget_memory(live, monkeypatch)
    live.quick.append(look)
    before = len(live.seen())
    found = [
        raw.ask(live.admin, "GET", path),
        raw.ask(live.admin, "GET", path),
        raw.ask(live.admin, "GET", f"/{bucket}/large".encode(), more={"range": "bytes=200000-200009"}),
        raw.ask(live.admin, "HEAD", f"/{bucket}/large".encode()),
        raw.ask(live.admin, "GET", f"/{bucket}/large".encode()),
    ]
    live.quick.pop()
    assert [answer.body for answer in found] == [body, body, large[200_000:200_010], b"", large]
    again = "later" if mode().caches == "off" else "quick"
    assert seen == ["later", again, "later", "quick", "handler"]
    assert [(operation, status, sent) for operation, status, _, sent in live.seen()[before:]] == [
        ("GetObject", 200, 3000),
        ("GetObject", 200, 3000),
        ("GetObject", 206, 10),
        ("HeadObject", 200, 0),
        ("GetObject", 200, 300_000),
    ]
    raw.close()
    client.close()


@pytest.mark.parametrize("error", [DataLost("three shards are gone"), Unavailable("the catalog is being mended")])
def test_a_read_that_fails_is_answered_as_the_handler_does(
    live: Any, bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    client, quick, plain = connect(live), Raw(live.port), Raw(live.hasty_port)
    client.put_object(Bucket=bucket, Key="key", Body=b"abc")
    forget_memory(live, monkeypatch)

    async def fail(_reader: ObjectReader) -> bytes:
        raise error

    monkeypatch.setattr(ObjectReader, "read", fail)
    before = len(live.seen())
    found, wanted = (raw.ask(live.admin, "GET", f"/{bucket}/key".encode()) for raw in (quick, plain))
    assert found == wanted
    assert found.status == (500 if isinstance(error, DataLost) else 503)
    one, other = live.seen()[before:]
    assert one == other
    assert core_of(live.store).pins.oldest_record() is None
    caplog.clear()
    for raw in (quick, plain):
        raw.close()
    client.close()


def test_a_bucket_that_gets_versions_answers_them_at_once(live: Any, bucket: str) -> None:
    client, raw = connect(live), Raw(live.port)
    client.put_object(Bucket=bucket, Key="key", Body=b"abc")
    path = f"/{bucket}/key".encode()
    before = [raw.ask(live.admin, "GET", path) for _ in range(2)]
    assert [dict(answer.headers).get("x-amz-version-id") for answer in before] == [None, None]
    live.run(live.store.set_versioning, bucket, "Enabled")
    assert dict(raw.ask(live.admin, "GET", path).headers)["x-amz-version-id"] == "null"
    raw.close()
    client.close()


def test_what_is_kept_of_objects_is_bounded_and_never_old(
    live: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "_KEPT_MAX", 4)
    kept, raw = live.server.quick.__self__, Raw(live.port)
    paths = [f"/{bucket}/{number}".encode() for number in range(7)]

    def read() -> list[bytes]:
        return [raw.ask(live.admin, "GET", path).body for path in paths]

    for body in (b"one", b"two"):
        for path in paths:
            assert raw.ask(live.admin, "PUT", path, body=body).status == 200
        assert read() == [body] * 7
        assert len(kept._young) + len(kept._old) <= 4
    again = next(iter(kept._old))
    assert raw.ask(live.admin, "PUT", again, body=b"three").status == 200
    assert raw.ask(live.admin, "GET", again).body == b"three"
    again = next(iter(kept._old))
    assert raw.ask(live.admin, "DELETE", again).status == 204
    assert raw.ask(live.admin, "GET", again).status == 404
    raw.close()


def test_objects_with_many_attributes_are_answered_and_not_kept(live: Any, bucket: str) -> None:
    """Thousands of them with 30 KiB each had the daemon take a GiB."""
    kept, raw = live.server.quick.__self__, Raw(live.port)
    sizes = {b"few": 3000, b"many": 5000}
    for name, size in sizes.items():
        path = f"/{bucket}/".encode() + name
        for value in ("x", "y" * size, "z" * size):
            assert raw.ask(live.admin, "PUT", path, more={"cache-control": value}, body=b"abc").status == 200
            for method, body in (("GET", b"abc"), ("HEAD", b""), ("GET", b"abc")):
                answer = raw.ask(live.admin, method, path)
                assert (dict(answer.headers)["cache-control"], answer.body) == (value, body)
        assert (path in {**kept._young, **kept._old}) == (name == b"few")
    raw.close()
