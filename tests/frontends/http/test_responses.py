"""Heads of responses, against those of h11."""

from http import HTTPStatus

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from couchestord.frontends.http import responses
from couchestord.frontends.http.messages import Header
from couchestord.frontends.http.responses import CONTINUE, response_head

DATE = b"Thu, 01 Jan 2026 00:00:00 GMT"
FRAMING = {b"connection", b"content-length", b"transfer-encoding"}


def by_h11(status: int, headers: list[Header], length: int | None, *, close: bool) -> bytes:
    engine = h11.Connection(h11.SERVER)
    engine.receive_data(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert isinstance(engine.next_event(), h11.Request)
    everything = [*headers, (b"Date", DATE), (b"Server", b"couchestord")]
    if length is not None:
        everything.append((b"Content-Length", b"%d" % length))
    if close:
        everything.append((b"Connection", b"close"))
    reason = HTTPStatus(status).phrase.encode()
    return engine.send(h11.Response(status_code=status, headers=everything, reason=reason)) or b""


names = st.one_of(
    st.sampled_from([b"ETag", b"x-amz-meta-a", b"Content-Type"]), st.binary(max_size=4), st.from_regex(rb"[!-~]{1,5}\Z")
)
values = st.one_of(
    st.sampled_from([b"", b"a b", b"a\r\nb", b"a\nb", b"\x00", b"\x0b", b"a\tb", b" a", b"a ", b"caf\xe9"]),
    st.binary(max_size=6),
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([200, 206, 404, 503]), st.lists(st.tuples(names, values), max_size=4), st.booleans())
@example(200, [(b"X", b"a\r\nY: b")], False)
@example(200, [(b"X\r\nY", b"a")], False)
@example(200, [(b"X:", b"a")], False)
@example(200, [(b"X", b"a\rb")], False)
@example(200, [(b"X", b"a\nb")], False)
@example(200, [(b"X", b"a\rb\nc")], False)
@example(200, [(b"X", b"a\x00b")], False)
@example(200, [(b"X", b"a\x0bb")], False)
@example(200, [(b"X", b"a\x0cb")], False)
@example(200, [(b"X", b"")], True)
def test_writes_what_h11_writes_and_refuses_what_h11_refuses(status: int, headers: list[Header], close: bool) -> None:
    if {name.lower() for name, _ in headers} & {*FRAMING, b"host"}:
        return
    try:
        expected = by_h11(status, headers, 17, close=close)
    except h11.LocalProtocolError:
        with pytest.raises(ValueError, match="header"):
            response_head(status, headers, DATE, 17, close=close)
    else:
        assert response_head(status, headers, DATE, 17, close=close) == expected


@pytest.mark.parametrize("status", [status.value for status in HTTPStatus if status >= 200])
def test_knows_every_final_status(status: int) -> None:
    length = None if status in (204, 304) else 0
    assert response_head(status, [], DATE, length, close=False) == by_h11(status, [], length, close=False)


@pytest.mark.parametrize("status", [100, 199, 299, 1000])
def test_refuses_what_is_no_final_status(status: int) -> None:
    with pytest.raises(ValueError, match="status"):
        response_head(status, [], DATE, 0, close=False)


@pytest.mark.parametrize("name", [b"Content-Length", b"transfer-encoding", b"CONNECTION"])
def test_leaves_framing_to_the_connection(name: bytes) -> None:
    with pytest.raises(ValueError, match="frames"):
        response_head(200, [(name, b"1")], DATE, 1, close=False)


def test_continue_is_what_h11_sends() -> None:
    engine = h11.Connection(h11.SERVER)
    engine.receive_data(b"PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
    engine.next_event()
    assert engine.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")) == CONTINUE


def test_usual_names_are_what_the_check_would_let_pass() -> None:
    for name in responses._USUAL:
        assert name
        assert not name.translate(None, responses._TOKEN)
        assert name.lower() not in responses._FRAMING
