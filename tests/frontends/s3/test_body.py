"""Bodies that lie: forged, changed, cut short. Nothing of them may be stored, and the object that is there stays."""

import base64
import hashlib
import socket
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from couchestord.frontends.http import Request
from couchestord.frontends.s3.body import VerifiedBody
from couchestord.frontends.s3.routes import parse_target
from couchestord.frontends.s3.sigv4 import Authorized, Payload, SigningScope
from couchestord.model import AccessKey
from couchestord.signing import EMPTY_SHA256, canonical_request, signing_key, string_to_sign

SMALL, BIG = 1000, 300_000
MODES = [
    "hashed",
    "UNSIGNED-PAYLOAD",
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
    "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
]
OLD = b"the old object"


def crc32(body: bytes) -> bytes:
    return base64.b64encode(zlib.crc32(body).to_bytes(4, "big"))


def frame(body: bytes, mode: str, signing: SigningScope) -> bytes:
    """`body` in chunks of 64 KiB as an SDK sends it."""
    signed, previous, out = "HMAC" in mode, signing.seed_signature, b""
    for start in [*range(0, len(body), 65536), len(body)]:
        data = body[start : start + 65536]
        extension = b""
        if signed:
            text = f"AWS4-HMAC-SHA256-PAYLOAD\n{signing.timestamp}\n{signing.scope}\n{previous}\n{EMPTY_SHA256}\n"
            previous = signing.key.sign(text + hashlib.sha256(data).hexdigest())
            extension = b";chunk-signature=" + previous.encode()
        out += b"%x%s\r\n" % (len(data), extension) + (data + b"\r\n" if data else b"")
    if mode.endswith("TRAILER"):
        line = b"x-amz-checksum-crc32:" + crc32(body)
        out += line + b"\r\n"
        if signed:
            text = f"AWS4-HMAC-SHA256-TRAILER\n{signing.timestamp}\n{signing.scope}\n{previous}\n"
            trailer = signing.key.sign(text + hashlib.sha256(line + b"\n").hexdigest())
            out += b"x-amz-trailer-signature:" + trailer.encode() + b"\r\n"
    return out + b"\r\n"


class Raw:
    """Requests built by hand, so that they can be wrong."""

    def __init__(self, live: Any) -> None:
        self.live = live

    def send(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        *,
        mode: str = "hashed",
        headers: dict[str, str] | None = None,
        secret: str | None = None,
        change: tuple[bytes, bytes] | None = None,
        cut: int = 0,
        until: bytes | None = None,
        meanwhile: Callable[[], None] | None = None,
        key: AccessKey | None = None,
        stall: bool = False,
    ) -> tuple[int, bytes]:
        """Status and body of the answer. `meanwhile`: what is done once the server waits for the body.

        What is wrong with the body that is sent: `change`, bytes replaced after signing; `until`, where it ends; `cut`,
        how many of its last bytes are announced and not sent. `stall`: the client then stays, and says no more.
        """
        key = key or self.live.admin
        timestamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        sha256 = hashlib.sha256(body).hexdigest() if mode == "hashed" else mode
        sent = {"host": "h", "x-amz-date": timestamp, "x-amz-content-sha256": sha256, **(headers or {})}
        if mode.startswith("STREAMING"):
            sent["x-amz-decoded-content-length"] = str(len(body))
        if mode.endswith("TRAILER"):
            sent["x-amz-trailer"] = "x-amz-checksum-crc32"
        names = sorted(sent)
        raw = {name.encode(): value.encode() for name, value in sent.items()}
        target_ = parse_target(target.encode())
        canonical = canonical_request(
            method.encode(), target_.path, target_.query.fields, raw, sorted(raw), sha256.encode()
        )
        scope = f"{timestamp[:8]}/us-east-1/s3/aws4_request"
        derived = signing_key(secret or key.secret_key, timestamp[:8], "us-east-1")
        signature = derived.sign(string_to_sign(timestamp, scope, canonical))
        credential = f"AWS4-HMAC-SHA256 Credential={key.access_key}/{scope}"
        sent["authorization"] = f"{credential}, SignedHeaders={';'.join(names)}, Signature={signature}"
        if mode.startswith("STREAMING"):
            body = frame(body, mode, SigningScope(derived, timestamp, scope, signature))
        if change:
            assert change[0] in body
            body = body.replace(*change, 1)
        if until is not None:
            body = body[: body.rindex(until)]
        if meanwhile:
            sent["expect"] = "100-continue"
        return self.exchange(method, target, sent, body, len(body), cut, meanwhile, stall)

    def exchange(
        self,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes,
        length: int,
        cut: int = 0,
        meanwhile: Callable[[], None] | None = None,
        stall: bool = False,
    ) -> tuple[int, bytes]:
        port = self.live.hasty_port if stall else self.live.port
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        if "transfer-encoding" not in headers:
            lines.append(f"content-length: {length}")
        head = "\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1")
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            if meanwhile:
                connection.sendall(head)
                assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
                meanwhile()
                head = b""
            connection.sendall(head + body[: len(body) - cut])
            if not stall:
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            while data := connection.recv(65536):
                answer += data
        head_part, _, rest = answer.partition(b"\r\n\r\n")
        return int(head_part.split()[1]), rest


@pytest.fixture
def raw(live: Any, bucket: str) -> Iterator[Raw]:
    """With an object `k` in the bucket, and the check that nothing but it is there at the end."""
    client = Raw(live)
    assert client.send("PUT", f"/{bucket}/k", OLD)[0] == 200
    yield client
    assert client.send("GET", f"/{bucket}/k") == (200, OLD)
    listing = client.send("GET", f"/{bucket}")[1]
    assert listing.count(b"<Key>") == 1
    assert b"<Upload>" not in client.send("GET", f"/{bucket}?uploads=")[1]


def assert_refused(answer: tuple[int, bytes], code: str, status: int) -> None:
    assert (answer[0], f"<Code>{code}</Code>".encode() in answer[1]) == (status, True), answer


each_mode = pytest.mark.parametrize("mode", MODES)
each_size = pytest.mark.parametrize("size", [SMALL, BIG])


@each_mode
@each_size
def test_honest_bodies_of_every_mode_are_stored(live: Any, bucket: str, mode: str, size: int) -> None:
    client, body = Raw(live), b"ab" * (size // 2)
    assert client.send("PUT", f"/{bucket}/k", body, mode=mode)[0] == 200
    assert client.send("GET", f"/{bucket}/k") == (200, body)


WRITES = [
    ("PUT", "/{}/new", {}, b"x" * SMALL),
    ("PUT", "/{}/new", {}, b"x" * BIG),
    ("PUT", "/{}/k", {}, b"x" * SMALL),
    ("PUT", "/{}/copy", {"x-amz-copy-source": "{}/k"}, b""),
    ("PUT", "/{}/k?partNumber=1&uploadId=u", {}, b"x"),
    ("DELETE", "/{}/k", {}, b""),
    ("POST", "/{}?delete", {}, b"<Delete><Object><Key>k</Key></Object></Delete>"),
    ("POST", "/{}/k?uploads", {}, b""),
    ("POST", "/{}/k?uploadId=u", {}, b"<CompleteMultipartUpload/>"),
    ("GET", "/{}/k", {}, b""),
    ("GET", "/", {}, b""),
]


@each_mode
@pytest.mark.parametrize("write", WRITES, ids=lambda write: f"{write[0]} {write[1]} {len(write[3])}")
def test_a_forged_signature_does_nothing(raw: Raw, bucket: str, mode: str, write: Any) -> None:
    method, target, headers, body = write
    headers = {name: value.format(bucket) for name, value in headers.items()}
    answer = raw.send(method, target.format(bucket), body, mode=mode, headers=headers, secret="forged")
    assert_refused(answer, "SignatureDoesNotMatch", 403)


@pytest.mark.parametrize("write", WRITES, ids=lambda write: f"{write[0]} {write[1]} {len(write[3])}")
def test_other_ways_of_authentication_do_nothing(raw: Raw, bucket: str, write: Any) -> None:
    method, target, _, body = write
    target = target.format(bucket)
    mark = "&" if "?" in target else "?"
    access_key = raw.live.admin.access_key
    query = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={access_key}/{datetime.now(UTC):%Y%m%d}/us-east-1/s3/"
    query += f"aws4_request&X-Amz-Date={datetime.now(UTC):%Y%m%dT%H%M%SZ}&X-Amz-Expires=60&X-Amz-SignedHeaders=host"
    for headers, suffix, status in [
        ({}, "", 403),
        ({"authorization": f"AWS {access_key}:c2ln"}, "", 501),
        ({"authorization": "Basic cm9vdDpyb290"}, "", 400),
        ({"x-amz-content-sha256": "UNSIGNED-PAYLOAD"}, "", 403),
        ({}, f"{mark}AWSAccessKeyId={access_key}&Signature=x&Expires=9999999999", 501),
        ({}, f"{mark}{query}&X-Amz-Signature={'0' * 64}", 403),
        ({}, f"{mark}{query}", 400),
    ]:
        assert raw.exchange(method, target + suffix, {"host": "h", **headers}, body, len(body))[0] == status, suffix


def test_an_unknown_payload_mode_fails_closed(raw: Raw, bucket: str) -> None:
    for mode, status in [
        ("STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", 501),
        ("STREAMING-UNSIGNED-PAYLOAD", 501),
        ("unsigned-payload", 400),
        ("", 400),
    ]:
        assert raw.send("PUT", f"/{bucket}/new", b"x", mode=mode)[0] == status


@each_mode
@each_size
@pytest.mark.parametrize("key", ["k", "new"])
def test_a_changed_body_is_refused(raw: Raw, bucket: str, mode: str, size: int, key: str) -> None:
    body = b"x" * (size - 4) + b"tail"
    headers = {"content-md5": base64.b64encode(hashlib.md5(body).digest()).decode()} if mode == MODES[1] else {}
    answer = raw.send("PUT", f"/{bucket}/{key}", body, mode=mode, headers=headers, change=(b"tail", b"tale"))
    code = {
        "hashed": ("XAmzContentSHA256Mismatch", 400),
        "UNSIGNED-PAYLOAD": ("BadDigest", 400),
        "STREAMING-UNSIGNED-PAYLOAD-TRAILER": ("BadDigest", 400),
    }.get(mode, ("SignatureDoesNotMatch", 403))
    assert_refused(answer, *code)


@each_size
@pytest.mark.parametrize("mode", MODES[3:])
def test_a_changed_trailer_is_refused(raw: Raw, bucket: str, mode: str, size: int) -> None:
    body = b"x" * size
    change = (crc32(body), crc32(b"other"))
    code = ("BadDigest", 400) if "UNSIGNED" in mode else ("SignatureDoesNotMatch", 403)
    assert_refused(raw.send("PUT", f"/{bucket}/k", body, mode=mode, change=change), *code)
    change = (b"x-amz-checksum-crc32:", b"x-amz-checksum-crc3x:")
    assert_refused(raw.send("PUT", f"/{bucket}/k", body, mode=mode, change=change), "InvalidRequest", 400)


@each_mode
@each_size
@pytest.mark.parametrize("cut", [1, 500])
def test_a_body_cut_short_is_refused(raw: Raw, bucket: str, mode: str, size: int, cut: int) -> None:
    assert_refused(raw.send("PUT", f"/{bucket}/k", b"x" * size, mode=mode, cut=cut), "IncompleteBody", 400)


@each_mode
@each_size
def test_a_body_that_stops_arriving_is_refused(raw: Raw, bucket: str, mode: str, size: int) -> None:
    """As S3 does, with 400: SDKs try again when they are told so."""
    assert_refused(raw.send("PUT", f"/{bucket}/k", b"x" * size, mode=mode, cut=1, stall=True), "RequestTimeout", 400)


@each_size
@pytest.mark.parametrize(("mode", "until"), [(MODES[2], b"0;"), (MODES[3], b"x-amz-trailer-"), (MODES[4], b"0\r\n")])
def test_a_body_without_its_last_chunk_is_refused(raw: Raw, bucket: str, mode: str, until: bytes, size: int) -> None:
    answer = raw.send("PUT", f"/{bucket}/k", b"x" * size, mode=mode, until=until)
    assert_refused(answer, "IncompleteBody", 400)


@pytest.mark.parametrize(
    ("headers", "code", "status"),
    [
        ({"content-md5": "nonsense"}, "InvalidDigest", 400),
        ({"x-amz-checksum-crc32": "AAAA"}, "InvalidDigest", 400),
        ({"x-amz-checksum-crc32": "AAAAAA=="}, "BadDigest", 400),
        ({"x-amz-checksum-md4": "AAAAAA=="}, "InvalidRequest", 400),
        ({"x-amz-checksum-crc32": "AAAAAA==", "x-amz-checksum-crc32c": "AAAAAA=="}, "InvalidRequest", 400),
        ({"x-amz-sdk-checksum-algorithm": "CRC32"}, "InvalidRequest", 400),
        ({"x-amz-trailer": "x-amz-checksum-crc32"}, "InvalidRequest", 400),
    ],
)
def test_checksums_that_cannot_hold_are_refused(
    raw: Raw, bucket: str, headers: dict[str, str], code: str, status: int
) -> None:
    assert_refused(raw.send("PUT", f"/{bucket}/k", b"x" * SMALL, headers=headers), code, status)


def test_hostile_keys_are_objects_or_refused(live: Any, bucket: str) -> None:
    client = Raw(live)
    for key in ("..", "../../etc/passwd", "%2e%2e/%2fx", "a%00b", "a%0Ab", ".", "a//b", "/", "x" * 1024):
        status, _ = client.send("PUT", f"/{bucket}/{key}", b"mine")
        assert status in (200, 400), key
        if status == 200:
            assert client.send("GET", f"/{bucket}/{key}") == (200, b"mine")
    for key in ("x" * 1025, "%ff"):
        assert client.send("PUT", f"/{bucket}/{key}", b"mine")[0] == 400, key
    assert client.exchange("PUT", f"/{bucket}/%", {"host": "h"}, b"mine", 4)[0] == 400


def test_hostile_xml_is_refused(raw: Raw, bucket: str) -> None:
    for body in (
        b"<Delete>" + b"<a>" * 200_000,
        b'<!DOCTYPE a [<!ENTITY b "c">]><Delete><Object><Key>&b;</Key></Object></Delete>',
    ):
        assert_refused(raw.send("POST", f"/{bucket}?delete", body), "MalformedXML", 400)
    assert_refused(raw.send("POST", f"/{bucket}?delete", b"<" + b" " * (2 << 20)), "EntityTooLarge", 400)


def test_no_header_is_split_by_an_override(raw: Raw, bucket: str) -> None:
    answer = raw.send("GET", f"/{bucket}/k?response-content-type=a%0D%0ASet-Cookie%3A%20b")
    assert_refused(answer, "InvalidRequest", 400)


def test_a_put_without_length_is_refused(raw: Raw, bucket: str) -> None:
    body = b"1\r\nx\r\n0\r\n\r\n"
    answer = raw.send("PUT", f"/{bucket}/k", body, mode="UNSIGNED-PAYLOAD", headers={"transfer-encoding": "chunked"})
    assert_refused(answer, "MissingContentLength", 411)


@pytest.mark.parametrize(
    ("method", "query", "body", "headers", "status"),
    [
        ("PUT", "/new", b"x" * SMALL, {}, 403),
        ("PUT", "/new", b"x" * BIG, {}, 403),
        ("PUT", "/new", b"x" * BIG, {"x-amz-expected-bucket-owner": "ann"}, 403),
        ("POST", "?delete", b"<Delete><Object><Key>k</Key></Object></Delete>", {}, 200),
    ],
)
def test_a_bucket_that_is_made_anew_by_another_while_a_body_comes_is_out_of_reach(
    live: Any, method: str, query: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    client, bucket = Raw(live), "of-ann-then-of-root"
    assert client.send("PUT", f"/{bucket}", key=live.user)[0] == 200

    def change_hands() -> None:
        assert client.send("DELETE", f"/{bucket}", key=live.user)[0] == 204
        assert client.send("PUT", f"/{bucket}")[0] == 200
        assert client.send("PUT", f"/{bucket}/k", OLD)[0] == 200

    target = f"/{bucket}{query}"
    answer = client.send(method, target, body, headers=headers, key=live.user, meanwhile=change_hands)
    kept, listing = client.send("GET", f"/{bucket}/k"), client.send("GET", f"/{bucket}")[1]
    for key in ("k", "new"):
        client.send("DELETE", f"/{bucket}/{key}")
    assert client.send("DELETE", f"/{bucket}")[0] == 204
    assert_refused(answer, "AccessDenied", status)
    assert (kept, listing.count(b"<Key>")) == ((200, OLD), 1)


class _OnePiece:
    """The body of a request that is there at once."""

    def __init__(self, body: bytes) -> None:
        self._pieces = [body]

    def __aiter__(self) -> "_OnePiece":
        return self

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop()

    async def read_into(self, _buffer: memoryview) -> int | None:
        return None


async def test_tiny_chunks_leave_turns_to_others_and_are_joined() -> None:
    count, turns = 20_000, 0
    raw = b"1\r\nx\r\n" * count + b"0\r\nx-amz-checksum-crc32:" + crc32(b"x" * count) + b"\r\n\r\n"
    headers = {b"x-amz-decoded-content-length": b"%d" % count, b"x-amz-trailer": b"x-amz-checksum-crc32"}
    key = signing_key("secret", "20260101", "us-east-1")
    authorized = Authorized(AccessKey("u", "k", "s", 0), Payload.UNSIGNED_CHUNKS_TRAILER, "", key, "", "", "")
    body = VerifiedBody(Request(b"PUT", b"/b/k", (), _OnePiece(raw), len(raw)), headers, authorized)

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        pieces = [piece async for piece in body]
        nursery.cancel_scope.cancel()
    assert turns > count // 200
    assert pieces == [b"x" * count]
