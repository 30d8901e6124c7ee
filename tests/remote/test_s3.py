"""A bucket as a backend, against a server that does what a test wrote down."""

import base64
import hashlib
import logging
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from scripted_server import (
    Action,
    Asked,
    Server,
    answer,
    close_after,
    drip,
    error,
    refuse_unread,
    response,
    say,
    serving,
    stall,
    stall_after_body,
)

from couchestord.clock import SystemClock
from couchestord.errors import BlobExists, NoSuchBlob, RemoteDenied, RemoteError, RemoteRefused, RemoteUnavailable
from couchestord.remote.client import Limits
from couchestord.remote.location import Credentials, Location
from couchestord.remote.s3 import Patience, S3Backend, S3Options

MIB = 1 << 20
KEY = Credentials("AK", "the-secret-key", "the-session-token")
BODY = b"some bytes"
SHA256 = hashlib.sha256(BODY).hexdigest()
OWN = {"x-amz-meta-couchestord-sha256": SHA256}
PUT = answer(200, headers={"ETag": '"x"'})


@asynccontextmanager
async def bucket(
    script: Sequence[Action],
    *,
    attempts: int = 4,
    limits: Limits | None = None,
    keys: Iterator[Credentials] | None = None,
) -> AsyncIterator[tuple[S3Backend, Server]]:
    options = S3Options(patience=Patience(attempts_max=attempts, pause_s=0.001), limits=limits or Limits())
    async with serving(script) as server:
        location = Location("127.0.0.1", server.port, False, "box", "pre/")
        backend = S3Backend(location, lambda: next(keys) if keys else KEY, SystemClock(), options)
        try:
            yield backend, server
        finally:
            await backend.aclose()


# -- what is asked ---------------------------------------------------------------------------------------------------


async def test_a_put_never_replaces_and_carries_its_checksums() -> None:
    async with bucket([PUT, error(503, "SlowDown"), PUT]) as (backend, server):
        await backend.put_new("a/b", [BODY[:4], BODY[4:]])
        await backend.put_new("a/c", [BODY])
    for asked in server.asked:
        assert asked.headers["if-none-match"] == "*"
        assert asked.headers["x-amz-content-sha256"] == SHA256
        assert asked.headers["x-amz-checksum-sha256"] == base64.b64encode(bytes.fromhex(SHA256)).decode()
        assert asked.headers["x-amz-meta-couchestord-sha256"] == SHA256
        assert asked.body == BODY
    assert [asked.target for asked in server.asked] == ["/box/pre/a/b", "/box/pre/a/c", "/box/pre/a/c"]


async def test_token_and_condition_are_signed() -> None:
    async with bucket([PUT]) as (backend, server):
        await backend.put_new("a", [BODY])
    headers = server.asked[0].headers
    assert headers["x-amz-security-token"] == KEY.session_token
    signed = headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert {"host", "if-none-match", "x-amz-security-token", "x-amz-date", "x-amz-content-sha256"} <= set(signed)


# -- what is repeated ------------------------------------------------------------------------------------------------

PASSING = {
    "slow down": error(503, "SlowDown"),
    "nothing said": answer(503),
    "too many": answer(429),
    "internal": error(500, "InternalError"),
    "gateway": answer(502, b"<html>"),
    "gateway that finds no server": answer(404, b"<html>"),
    "conflict": error(409, "ConditionalRequestConflict"),
    "timeout": error(400, "RequestTimeout"),
    "hurt on its way": error(400, "BadDigest"),
    "cut before a reply": say(b""),
    "cut in the head": say(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "cut in the body": say(b"HTTP/1.1 503 X\r\nContent-Length: 100\r\n\r\nshort"),
    "no http": say(b"220 mail.example ready\r\n"),
    "only interim": say(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
}


@pytest.mark.parametrize("name", PASSING)
async def test_what_may_pass_is_repeated(name: str) -> None:
    async with bucket([PASSING[name], PASSING[name], PUT]) as (backend, server):
        await backend.put_new("a", [BODY])
    assert server.methods == ["PUT"] * 3


@pytest.mark.parametrize("name", ["slow down", "cut before a reply"])
async def test_it_is_repeated_a_few_times_only(name: str) -> None:
    async with bucket([PASSING[name]] * 9) as (backend, server):
        with pytest.raises(RemoteUnavailable):
            await backend.put_new("a", [BODY])
    assert len(server.asked) == 4


FINAL: dict[str, tuple[Action, type[RemoteError]]] = {
    "wrong key": (error(403, "InvalidAccessKeyId"), RemoteDenied),
    "no right": (error(403, "AccessDenied"), RemoteDenied),
    "no word": (answer(401), RemoteDenied),
    "old token": (error(400, "ExpiredToken"), RemoteDenied),
    "no bucket": (error(404, "NoSuchBucket"), RemoteRefused),
    "elsewhere": (error(301, "PermanentRedirect", {"x-amz-bucket-region": "eu-north-1"}), RemoteRefused),
    "no room": (error(507, "InsufficientStorage"), RemoteRefused),
    "not known": (error(501, "NotImplemented"), RemoteRefused),
    "invalid": (error(400, "InvalidArgument"), RemoteRefused),
    "unread": (refuse_unread(403, "AccessDenied"), RemoteDenied),
}


@pytest.mark.parametrize("name", FINAL)
async def test_what_will_not_pass_is_asked_once(name: str) -> None:
    action, kind = FINAL[name]
    async with bucket([action, PUT]) as (backend, server):
        with pytest.raises(kind) as raised:
            await backend.put_new("a", [bytes(8 * MIB)] if name == "unread" else [BODY])
    assert server.methods == ["PUT"]
    assert "planted" in str(raised.value) or name in {"no word", "unread"}
    assert ("eu-north-1" in str(raised.value)) == (name == "elsewhere")


async def test_a_server_that_refuses_a_large_body_early_is_heard_and_asked_again() -> None:
    patient = Limits(stall_s=600.0)
    async with bucket([refuse_unread(503, "SlowDown")] * 2 + [PUT], limits=patient) as (backend, server):
        with trio.fail_after(60):
            await backend.put_new("a", [bytes(8 * MIB)])
    assert server.connections == 3, "one that is in the midst of a body is not used again"
    assert len(server.asked[-1].body) == 8 * MIB


def test_pauses_grow_vary_and_are_bounded() -> None:
    patience = Patience(pause_s=0.25, pause_s_max=10.0)
    assert [patience.pause_after_s(attempt, 1.0, 0.0) for attempt in range(1, 7)] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]
    assert patience.pause_after_s(3, 0.5, 0.0) == 1.0
    assert patience.pause_after_s(1, 0.5, 3.0) == 3.0
    assert patience.pause_after_s(1, 0.5, 3600.0) == 10.0


# -- puts whose answer was lost --------------------------------------------------------------------------------------


async def test_a_lost_answer_is_no_failure_when_the_key_holds_our_bytes() -> None:
    async with bucket([say(b""), error(412, "PreconditionFailed"), answer(200, BODY, OWN)]) as (backend, server):
        await backend.put_new("a", [BODY])
    assert server.methods == ["PUT", "PUT", "HEAD"]


OTHERS = {
    "another sum": answer(200, BODY, {"x-amz-meta-couchestord-sha256": "0" * 64}),
    "another size": answer(200, BODY + b"x", OWN),
    "no sum": answer(200, BODY),
}


@pytest.mark.parametrize("name", OTHERS)
async def test_a_key_that_holds_others_bytes_is_told(name: str) -> None:
    async with bucket([error(412, "PreconditionFailed"), OTHERS[name]]) as (backend, _):
        with pytest.raises(BlobExists):
            await backend.put_new("a", [BODY])


# -- reading ---------------------------------------------------------------------------------------------------------


def part(first: int, last: int, size: int, body: bytes) -> Action:
    return answer(206, body, {"Content-Range": f"bytes {first}-{last}/{size}"})


async def test_a_range_is_taken_only_when_it_is_the_one_asked_for() -> None:
    wrong = [
        part(1, 4, 10, b"1234"),
        part(0, 2, 10, b"012"),
        answer(206, b"0123"),
        answer(200, b"0123456789"),
        say(b"HTTP/1.1 206 X\r\nContent-Length: 4\r\nContent-Range: bytes 0-3/10\r\n\r\n012"),
    ]
    async with bucket([*wrong, part(0, 3, 10, b"0123")], attempts=6) as (backend, server):
        assert await backend.get("a", 0, 4) == b"0123"
    assert len(server.asked) == 6
    assert server.asked[0].headers["range"] == "bytes=0-3"


async def test_a_range_that_ends_with_the_object_may_be_short() -> None:
    async with bucket([part(8, 9, 10, b"89"), error(416, "InvalidRange")]) as (backend, _):
        assert await backend.get("a", 8, 100) == b"89"
        assert await backend.get("a", 10, 1) == b""


async def test_a_reply_that_is_far_too_long_is_not_taken_into_memory() -> None:
    endless = say(b"HTTP/1.1 200 X\r\nContent-Length: 9999999999\r\n\r\n" + bytes(6 * MIB))
    async with bucket([endless] * 4) as (backend, _):
        with pytest.raises(RemoteUnavailable, match="longer than"):
            await backend.get("a", 0, 4)


async def test_a_bucket_that_is_gone_does_not_pass_for_a_lost_object() -> None:
    """HEAD has no body and so no code."""
    async with bucket([answer(404), error(404, "NoSuchBucket"), answer(404), error(404, "NoSuchKey")]) as (backend, _):
        with pytest.raises(RemoteRefused):
            await backend.size("a")
        with pytest.raises(NoSuchBlob):
            await backend.size("a")


async def test_an_object_is_missing_only_when_the_server_says_so() -> None:
    async with bucket([answer(404, b"<html>")] * 4 + [error(404, "NoSuchKey")]) as (backend, _):
        with pytest.raises(RemoteUnavailable):
            await backend.get("a", 0, 4)
        with pytest.raises(NoSuchBlob):
            await backend.get("a", 0, 4)


async def test_a_listing_that_is_none_is_asked_for_again() -> None:
    good = (
        b"<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>pre/a%20b</Key><Size>7</Size></Contents>"
        b"<Contents><Key>pre/c</Key><Size>0</Size></Contents></ListBucketResult>"
    )
    wrong = [
        answer(200, good[:-5]),
        answer(200, good.replace(b"pre/c", b"other/c")),
        answer(200, b'<!DOCTYPE x [<!ENTITY a "b">]>' + good),
        answer(200, b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"),
    ]
    async with bucket([*wrong, answer(200, good)], attempts=5) as (backend, server):
        page = await backend.list("", "9")
    assert [tuple(stored) for stored in page.objects] == [("a b", 7), ("c", 0)]
    assert page.more
    assert "start-after=pre%2F9" in server.asked[0].target
    assert "prefix=pre%2F&" in server.asked[0].target


# -- time ------------------------------------------------------------------------------------------------------------


SOON_SILENT = Limits(connect_s=5.0, stall_s=0.2, bytes_per_s_min=1)
SOON_SLOW = Limits(connect_s=5.0, stall_s=0.1, bytes_per_s_min=100 * MIB)


@pytest.mark.parametrize(
    ("action", "limits"), [(stall, SOON_SILENT), (stall_after_body, SOON_SILENT), (drip, SOON_SLOW)]
)
async def test_no_server_is_waited_for_without_end(action: Action, limits: Limits) -> None:
    async with bucket([action] * 2, attempts=2, limits=limits) as (backend, server):
        with trio.fail_after(60), pytest.raises(RemoteUnavailable):
            await backend.put_new("a", [bytes(16 * MIB)])
    assert len(server.asked) == 2


async def test_a_server_that_does_not_connect_is_unavailable() -> None:
    async with bucket([]) as (_, server):
        pass
    closed = S3Backend(
        Location("127.0.0.1", server.port, False, "box"),
        lambda: KEY,
        SystemClock(),
        S3Options(patience=Patience(attempts_max=2, pause_s=0.001)),
    )
    with pytest.raises(RemoteUnavailable, match="no connection"):
        await closed.put_new("a", [BODY])


# -- connections -----------------------------------------------------------------------------------------------------


async def test_a_connection_is_used_again() -> None:
    async with bucket([PUT, error(503, "SlowDown"), PUT, part(0, 3, 4, b"0123")]) as (backend, server):
        await backend.put_new("a", [BODY])
        await backend.put_new("b", [BODY])
        await backend.get("c", 0, 4)
    assert server.connections == 1


async def test_one_that_the_server_left_is_replaced_without_a_word() -> None:
    async with bucket([close_after(PUT), PUT], attempts=1) as (backend, server):
        await backend.put_new("a", [BODY])
        await backend.put_new("b", [BODY])
    assert server.connections == 2


async def test_one_that_the_server_will_close_or_that_says_too_much_is_not_used_again() -> None:
    chatty = response(200, b"", b"") + b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n"

    async def talk(asked: object) -> bool:
        await say(chatty)(asked)  # type: ignore[arg-type]
        return True

    async with bucket([answer(200, close=True), talk, PUT], attempts=1) as (backend, server):
        for key in "abc":
            await backend.put_new(key, [BODY])
    assert server.connections == 3
    assert server.methods == ["PUT"] * 3


async def test_there_are_so_many_connections_and_no_more() -> None:
    few = Limits(connections_max=2)
    async with bucket([PUT] * 20, limits=few) as (backend, server), trio.open_nursery() as nursery:
        for index in range(20):
            nursery.start_soon(backend.put_new, f"k{index}", [bytes(MIB)])
    assert server.open_most <= 2
    assert len(server.asked) == 20


async def test_a_request_that_was_cancelled_leaves_no_connection_behind() -> None:
    async with bucket([PUT, stall_after_body, PUT], attempts=1) as (backend, server):
        await backend.put_new("a", [BODY])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.put_new, "b", [BODY])
            while len(server.asked) < 2:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await backend.put_new("c", [BODY])
        assert server.connections == 2
        with trio.fail_after(10):
            while server.open_now > 1:
                await trio.lowlevel.checkpoint()


# -- keys and secrets ------------------------------------------------------------------------------------------------


async def test_a_key_that_was_exchanged_is_asked_for_again() -> None:
    keys = iter([KEY, Credentials("NEW", "another"), Credentials("NEW", "another")])
    async with bucket([PUT, error(400, "ExpiredToken"), PUT, error(403, "AccessDenied")], keys=keys) as (
        backend,
        server,
    ):
        await backend.put_new("a", [BODY])
        await backend.put_new("b", [BODY])
        with pytest.raises(RemoteDenied):
            await backend.put_new("c", [BODY])
    used = [asked.headers["authorization"].partition("Credential=")[2].partition("/")[0] for asked in server.asked]
    assert used == ["AK", "AK", "NEW", "NEW"]


async def test_a_key_that_was_exchanged_counts_for_all_who_were_refused() -> None:
    keys = iter([KEY, Credentials("NEW", "another")])
    all_asked = trio.Event()

    async def refuse(asked: Asked) -> bool:
        if len(server.asked) == 3:
            all_asked.set()
        await all_asked.wait()
        return await error(403, "ExpiredToken")(asked)

    script = [refuse, refuse, refuse, PUT, PUT, PUT]
    async with bucket(script, keys=keys) as (backend, server), trio.open_nursery() as nursery:
        for key in ("a", "b", "c"):
            nursery.start_soon(backend.put_new, key, [BODY])
    assert len(server.asked) == 6


async def test_keys_are_asked_for_in_a_thread_which_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("couchestord.remote.s3._CREDENTIALS_S", 0.01)
    release = threading.Event()
    threads = []

    def keys() -> Iterator[Credentials]:
        yield KEY
        threads.append(threading.get_ident())
        release.wait(5)
        yield Credentials("NEW", "another")

    async with bucket([error(403, "ExpiredToken")] * 100, keys=keys()) as (backend, _):
        while not threads:  # on a busy machine the wait may be over before the thread has begun
            with pytest.raises(RemoteDenied):
                await backend.put_new("a", [BODY])
        with pytest.raises(RemoteDenied):
            await backend.put_new("b", [BODY])
        release.set()
    assert threading.get_ident() not in threads
    assert len(threads) == 1


async def test_no_secret_is_written_anywhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said = [repr(KEY), str(KEY)]
    script = [error(503, "SlowDown"), say(b""), error(403, "SignatureDoesNotMatch"), error(404, "NoSuchBucket")]
    async with bucket(script) as (backend, server):
        said.append(backend.name)
        for _ in range(2):
            with pytest.raises(RemoteError) as raised:
                await backend.put_new("a", [BODY])
            said += [str(raised.value), repr(raised.value)]
    signatures = [asked.headers["authorization"].rpartition("=")[2] for asked in server.asked]
    said.append(caplog.text + "".join(str(vars(record)) for record in caplog.records))
    assert "SlowDown" in said[-1]
    for text in said:
        for secret in (KEY.secret_key, KEY.session_token, *signatures):
            assert secret not in text
