"""Requests as they are signed, and replies as they are read."""

from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest

from couchestord.errors import SignatureDoesNotMatch
from couchestord.frontends.s3.routes import parse_target
from couchestord.frontends.s3.sigv4 import Authorized, Verifier
from couchestord.model import AccessKey
from couchestord.remote.location import Credentials, Location
from couchestord.remote.messages import Ask, Reply
from couchestord.remote.requests import Request, Signer, is_whole_range, read_refusal, sha256_of

KEY = Credentials("AK", "secret/+=", "token+/=")
NOW_NS = int(datetime(2026, 2, 28, 23, 59, 59, tzinfo=UTC).timestamp()) * 10**9
LOCATION = Location("s3.example.com", 9000, True, "box", "pre/")


def verify(ask: Ask, secret: str = KEY.secret_key, region: str = "eu-north-1") -> Authorized:
    """As couchestord's own server judges it."""
    known = AccessKey("user", KEY.access_key, secret, 0)
    verifier = Verifier(region, lambda name: known if name == KEY.access_key else None)
    return verifier.verify(ask.method, parse_target(ask.target), dict(ask.headers), NOW_NS)


REQUESTS = [
    Request(b"GET", "a/b", headers={b"range": b"bytes=0-1"}),
    Request(b"PUT", "a", headers={b"if-none-match": b"*"}, body=[b"x", b"y"], body_sha256=sha256_of([b"xy"]).hex()),
    Request(b"PUT", "empty", headers={b"if-none-match": b"*"}),
    Request(b"DELETE", "a-b_c.d"),
    Request(b"GET", query=[(b"prefix", b"pre/a b"), (b"list-type", b"2"), (b"start-after", "ä+/~".encode())]),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_server_finds_the_signature_right(request_: Request) -> None:
    ask = Signer(LOCATION, "eu-north-1").sign(request_, KEY, NOW_NS)
    verify(ask)
    with pytest.raises(SignatureDoesNotMatch):
        verify(ask, secret="another")
    for name in ("x-amz-security-token", *(name.decode() for name in request_.headers)):
        changed = [(key, value + b"x" if key == name.encode() else value) for key, value in ask.headers]
        with pytest.raises(SignatureDoesNotMatch):
            verify(ask._replace(headers=changed))


def test_what_is_sent() -> None:
    ask = Signer(LOCATION, "eu-north-1").sign(REQUESTS[1], KEY, NOW_NS)
    headers = dict(ask.headers)
    assert ask.target == b"/box/pre/a"
    assert headers[b"host"] == b"s3.example.com:9000"
    assert headers[b"content-length"] == b"2"
    assert headers[b"x-amz-date"] == b"20260228T235959Z"
    listing = Signer(LOCATION, "eu-north-1").sign(REQUESTS[4], KEY, NOW_NS)
    assert urlsplit(listing.target.decode()).query == "list-type=2&prefix=pre%2Fa%20b&start-after=%C3%A4%2B%2F~"


def test_a_new_key_or_day_makes_a_new_signing_key() -> None:
    signer = Signer(LOCATION, "eu-north-1")
    verify(signer.sign(REQUESTS[0], Credentials("AK", "old"), NOW_NS), secret="old")
    verify(signer.sign(REQUESTS[0], Credentials("AK", "new"), NOW_NS), secret="new")
    tomorrow = signer.sign(REQUESTS[0], Credentials("AK", "new"), NOW_NS + 10**9)
    assert b"/20260301/" in dict(tomorrow.headers)[b"authorization"]
    verify(tomorrow, secret="new")


def test_refusals_are_one_bounded_line() -> None:
    long = b"<Error><Code>C</Code><Message>a\nb" + b"x" * 5000 + b"</Message></Error>"
    refusal = read_refusal(Reply(400, {}, long))
    assert refusal.code == "C"
    assert str(refusal).isprintable()
    assert len(str(refusal)) < 400
    assert str(read_refusal(Reply(503, {}, b"<html>"))) == "503"


@pytest.mark.parametrize(
    ("status", "content_range", "body", "is_whole"),
    [
        (206, b"bytes 4-7/10", b"4567", True),
        (206, b"bytes 4-7/8", b"4567", True),
        (206, b"bytes 4-6/7", b"456", True),
        (206, b"bytes 4-6/8", b"456", False),
        (206, b"bytes 3-6/10", b"3456", False),
        (206, b"bytes 4-7/10", b"456", False),
        (206, b"bytes */10", b"", False),
        (206, b"", b"4567", False),
        (200, b"", b"0123", False),
    ],
)
def test_ranges(status: int, content_range: bytes, body: bytes, is_whole: bool) -> None:
    assert is_whole_range(Reply(status, {b"content-range": content_range}, body), 4, 4) is is_whole


def test_a_whole_object_is_a_range_from_its_start() -> None:
    assert is_whole_range(Reply(200, {}, b"0123"), 0, 4)
    assert is_whole_range(Reply(200, {}, b"01"), 0, 4)
    assert not is_whole_range(Reply(200, {}, b"01234"), 0, 4)
