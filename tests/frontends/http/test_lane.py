"""The fast lane against h11: what it takes, h11 reads in the same way; what it does not take is nobody's loss."""

import random
from collections.abc import Iterator

import h11
import pytest

from couchestord.frontends.http import protocol as protocol_module
from couchestord.frontends.http.lane import read_head
from couchestord.frontends.http.messages import Head
from couchestord.frontends.http.protocol import END, NEED_DATA, HttpProtocol, MalformedMessage

MINIMAL = b"GET /bucket/key HTTP/1.1\r\nHost: localhost:9000\r\n\r\n"
SIGNED = (
    b"GET /bucket/key?versionId=1 HTTP/1.1\r\nHost: localhost:9000\r\nUser-Agent: Boto3/1.44 (x; y)\r\n"
    b"Accept-Encoding: identity\r\nX-Amz-Date: 20260101T000000Z\r\nX-Amz-Content-SHA256: UNSIGNED-PAYLOAD\r\n"
    b"Authorization: AWS4-HMAC-SHA256 Credential=K/20260101/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-date,"
    b" Signature=00\r\nConnection: keep-alive\r\namz-sdk-request: attempt=1\r\n\r\n"
)
PUT = b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-MD5: x\r\n\r\nhello"
SEEDS = (MINIMAL, SIGNED, PUT, PUT + MINIMAL, MINIMAL.replace(b"GET", b"HEAD"), b"\r\n" + MINIMAL + PUT)
TOKENS = (
    *(b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\r\n\r\n", b"\r\n ", b"\x00", b"\xff", b"\x7f", b"\x0b", b'"', b","),
    *(b"HTTP/1.0", b"HTTP/2.0", b"HEAD", b"CONNECT", b"OPTIONS", b"%00", b"*", b"Host: a\r\n", b"X:\r\n", b": x\r\n"),
    *(b"Content-Length: 5\r\n", b"Content-Length: 5, 5\r\n", b"content-length: 05\r\n", b"Content-Length: +5\r\n"),
    *(b"Content-Length:\r\n", b"Content-Length: 0\r\n", b"Content-Length: " + b"1" * 20 + b"\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Connection: Keep-Alive\r\n"),
    *(b"Connection: keep-alive, close\r\n", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\n", b"range: bytes=0-1\r\n"),
)
Outcome = tuple[object, ...]


def mutated(inputs: int, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    yield from SEEDS
    for _ in range(inputs):
        data = bytearray(rng.choice(SEEDS))
        for _ in range(rng.randrange(1, 4)):
            at, kind = rng.randrange(len(data)), rng.random()
            if kind < 0.3:
                data[at:at] = rng.choice(TOKENS)
            elif kind < 0.5:  # where a header may stand
                lines = [i + 2 for i in range(len(data) - 1) if data[i : i + 2] == b"\r\n"] or [at]
                at = rng.choice(lines)
                data[at:at] = rng.choice(TOKENS)
            elif kind < 0.7:
                data[at] = rng.randrange(256)
            elif kind < 0.85:
                del data[at : at + rng.randrange(1, 6)]
            else:
                other = rng.randrange(len(data))
                data[at:at] = data[other : other + rng.randrange(1, 40)]
            if not data:
                break
        yield bytes(data)


def through(data: bytes) -> Outcome:
    """What `HttpProtocol` makes of `data` and the end of the connection after it: all heads and bodies."""
    protocol, found = HttpProtocol(1 << 15, 200), list[object]()
    protocol.receive(data)
    protocol.receive(b"")
    try:
        while isinstance(head := protocol.next_head(), Head):
            found += [head._replace(headers=list(head.headers)), protocol.wants_continue, protocol.keeps_alive]
            body = b""
            while (piece := protocol.next_body()) is not END:
                if piece is NEED_DATA:
                    return (*found, body, "the body is not over")
                assert isinstance(piece, bytes)
                body += piece
            found.append(body)
    except MalformedMessage as error:
        found += [error.status]
    return tuple(found)


def by_h11(data: bytes) -> Outcome:
    """Method, target, headers, version, body, whether the body is whole, and the bytes left over."""
    engine = h11.Connection(h11.SERVER)
    engine.receive_data(data)
    head = engine.next_event()
    assert isinstance(head, h11.Request), head
    body = b""
    while isinstance(event := engine.next_event(), h11.Data):
        body += event.data
    whole = isinstance(event, h11.EndOfMessage)
    return head.method, head.target, list(head.headers), head.http_version, body, whole, engine.trailing_data[0]


def by_lane(data: bytes) -> Outcome | None:
    end = data.find(b"\r\n\r\n") + 4
    head = read_head(data[:end])
    if head is None:
        return None
    length = head.content_length
    assert length is not None
    assert head.fields == dict(head.headers)
    body, rest = data[end : end + length], data[end + length :]
    return head.method, head.target, list(head.headers), b"1.1", body, len(body) == length, rest


def compare(inputs: int, seed: int) -> tuple[int, int]:
    """Returns how many heads the lane took and how many it did not."""
    taken = left = 0
    for data in mutated(inputs, seed):
        fast = by_lane(data)
        if fast is None:
            left += 1
        else:
            taken += 1
            assert fast == by_h11(data), data
        with_lane = through(data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(protocol_module, "read_head", lambda _: None)
            assert with_lane == through(data), data
    return taken, left


def test_what_the_lane_takes_h11_reads_alike() -> None:
    taken, left = compare(3000, seed=7)
    assert min(taken, left) > 500


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(8))
def test_what_the_lane_takes_h11_reads_alike_at_length(seed: int) -> None:
    taken, left = compare(60_000, seed=100 + seed)
    assert min(taken, left) > 10_000


@pytest.mark.parametrize("data", SEEDS[:3])
def test_takes_the_requests_of_sdks(data: bytes) -> None:
    assert by_lane(data) == by_h11(data)


@pytest.mark.parametrize(
    "line",
    [
        b"Transfer-Encoding: chunked",
        b"Expect: 100-continue",
        b"Upgrade: h2c",
        b"Connection: close",
        b"Connection: keep-alive, x",
        b"Host: h",
        b"HOST: h",
        b"X: \ta",
        b"X: \xe9",
        b"X : a",
        b" X: a",
        b": a",
        b"X",
        b"Content-Length: 5, 5",
        b"Content-Length: +5",
        b"Content-Length:",
        b"Content-Length: 1234567890123456789",
    ],
)
def test_leaves_to_h11_what_is_not_trivial(line: bytes) -> None:
    assert read_head(b"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n") is not None
    assert read_head(b"GET / HTTP/1.1\r\nHost: h\r\n" + line + b"\r\n\r\n") is None


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.0\r\nHost: h\r\n\r\n",
        b"PATCH / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET  HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / a HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\nA: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n",
        b"\r\n\r\n",
        b"",
    ],
)
def test_leaves_other_heads_to_h11(raw: bytes) -> None:
    assert read_head(raw) is None


def test_the_limits_hold_in_the_lane() -> None:
    def status(raw: bytes) -> int:
        protocol = HttpProtocol(1000, 20)
        protocol.receive(raw)
        with pytest.raises(MalformedMessage) as caught:
            protocol.next_head()
        return caught.value.status

    many = b"".join([b"A%d: b\r\n" % number for number in range(20)])
    assert status(MINIMAL[:-2] + many + b"\r\n") == 431
    assert status(MINIMAL[:-2] + b"A: " + b"b" * 1000 + b"\r\n\r\n") == 431


def test_a_head_that_comes_byte_by_byte_is_not_searched_again_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []

    class Counting:
        def search(self, raw: bytes, start: int = 0) -> object:
            searched.append(len(raw) - start)
            return real.search(raw, start)

    real = protocol_module._BARE_OR_FOLDED
    monkeypatch.setattr(protocol_module, "_BARE_OR_FOLDED", Counting())
    protocol, head = HttpProtocol(1 << 15, 200), b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"b" * 5000
    for at in range(len(head)):
        protocol.receive(head[at : at + 1])
        assert protocol.next_head() is NEED_DATA
    assert sum(searched) <= 4 * len(head)


@pytest.mark.parametrize("stray", [b"\n", b"\r", b"\r\n ", b"\r\n\t", b"\0", b"\r\r\n", b"\n\r\n"])
def test_a_stray_character_is_found_wherever_a_head_is_cut(stray: bytes) -> None:
    head = b"GET / HTTP/1.1\r\nHost: h\r\nA: b" + stray + b"c: d"
    for cut in range(1, len(head)):
        protocol, refused = HttpProtocol(1 << 15, 200), False
        for piece in (head[:cut], head[cut:], b"\r\n"):
            protocol.receive(piece)
            try:
                assert protocol.next_head() is NEED_DATA
            except MalformedMessage:
                refused = True
        assert refused
