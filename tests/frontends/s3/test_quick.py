"""Quick answers and the handler's: for every request the same, whatever happened to the object just before."""

import random
import socket
import time
from dataclasses import dataclass
from typing import Any
from unittest.mock import ANY
from urllib.parse import quote

import pytest
from s3_clients import connect

from couchestord.model import AccessKey
from couchestord.signing import canonical_request, signing_key, string_to_sign

REGION = "us-east-1"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Raw:
    """A keep-alive connection to one of the servers."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.file = self.socket.makefile("rb")

    def ask(
        self, key: AccessKey, method: str, path: bytes, query: str = "", more: dict[str, str] | None = None
    ) -> Answer:
        self.socket.sendall(signed(key, self.port, method, path, query, more or {}))
        status = int(self.file.readline().split(b" ")[1])
        headers: dict[str, str] = {}
        while (line := self.file.readline()) != b"\r\n":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        length = 0 if method == "HEAD" else int(headers.get("content-length", "0"))
        body = self.file.read(length)
        if headers.pop("connection", "") == "close":
            self.close()
            self.__init__(self.port)  # type: ignore[misc]
        request_id = headers.pop("x-amz-request-id")
        assert len(request_id) == 16
        del headers["date"]
        return Answer(status, tuple(sorted(headers.items())), body.replace(request_id.encode(), b"ID"))

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def signed(key: AccessKey, port: int, method: str, path: bytes, query: str, more: dict[str, str]) -> bytes:
    timestamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    headers = {
        "host": f"127.0.0.1:{port}",
        "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
        "x-amz-date": timestamp,
        **{name: value for name, value in more.items() if name.startswith("x-amz-")},
    }
    names = sorted(headers)
    fields = [tuple(part.partition("=")[::2]) for part in query.split("&") if part]
    canonical = canonical_request(
        method.encode(),
        path,
        [(name.encode(), value.encode()) for name, value in fields],
        {name.encode(): value.encode() for name, value in headers.items()},
        [name.encode() for name in names],
        b"UNSIGNED-PAYLOAD",
    )
    scope = f"{timestamp[:8]}/{REGION}/s3/aws4_request"
    derived = signing_key(key.secret_key, timestamp[:8], REGION)
    signature = derived.sign(string_to_sign(timestamp, scope, canonical))
    if more.get("wrong"):
        signature = "0" * 64
    headers |= {name: value for name, value in more.items() if name != "wrong"}
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={key.access_key}/{scope}, SignedHeaders={';'.join(names)}, Signature={signature}"
    )
    target = quote(path, safe="/-_.~") + (f"?{query}" if query else "")
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode()


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


@pytest.mark.parametrize("seed", range(4))
def test_the_same_as_the_handler_while_objects_come_and_go(live: Any, seed: int) -> None:
    source = random.Random(seed)
    client, bucket, foreign = connect(live), f"quick-{seed}", f"quick-ann-{seed}"
    quick, plain = Raw(live.port), Raw(live.hasty_port)
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
        user = live.admin if source.random() < 0.8 else live.user
        method = source.choice(["GET", "GET", "HEAD"])
        more, query = source.choice(HEADERS), source.choice(QUERIES)
        request = (user, method, b"/" + name.encode() + b"/" + key, query, more)
        found, wanted = quick.ask(*request), plain.ask(*request)
        assert found == wanted, (step, request)
        answered[found.status] = answered.get(found.status, 0) + 1
    assert answered[200] >= 10
    assert {206, 403, 404, 416} <= set(answered)
    for raw in (quick, plain):
        raw.close()
    client.close()


async def _create_bucket(store: Any, name: str) -> None:
    await store.create_bucket(name, owner="ann")


def test_an_answer_is_quick_once_the_object_was_seen_and_is_counted(live: Any, bucket: str) -> None:
    """Else the tests above would compare the handler with itself."""
    client, raw = connect(live), Raw(live.port)
    client.put_object(Bucket=bucket, Key="key", Body=b"abc")
    path = f"/{bucket}/key".encode()
    seen: list[str] = []
    quick = live.server.quick

    def look(head: Any, date: bytes) -> bytes | None:
        answer = quick(head, date)
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
