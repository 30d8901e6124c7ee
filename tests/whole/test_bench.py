"""What benchmarks conclude with: their client reads responses whole, traces follow their law, goals are judged."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path

import pytest

from bench import load
from bench.bare import sendfile
from bench.figures import Figures, Measured
from bench.goals import Goal
from bench.load import Failed, Plain, fetch, run
from bench.workers import most
from bench.zipf import trace

PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that waits for what does not come fails soon."""
    monkeypatch.setattr(load, "TIMEOUT_S", 10.0)


@contextmanager
def answering(response: bytes) -> Iterator[int]:
    """A server that answers every request so. Its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve_one(connection: socket.socket) -> None:
        with connection:
            while connection.recv(4096):
                connection.sendall(response)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve_one, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize("piece_bytes", [1, 3, 4096])
@pytest.mark.parametrize(("response", "body"), [(PLAIN, b"hello"), (CHUNKED, b"hello world")])
def test_the_client_reads_a_response_that_comes_in_pieces(
    monkeypatch: pytest.MonkeyPatch, response: bytes, body: bytes, piece_bytes: int
) -> None:
    monkeypatch.setattr(load, "RECEIVE_BYTES", piece_bytes)
    with answering(response) as port:
        assert fetch(port, Plain(port).request("GET", "/")) == body


def test_the_client_counts_whole_responses_and_their_bodies() -> None:
    with answering(PLAIN) as port:
        done = run(port, iter([Plain(port).request("GET", "/")] * 20), 3, None)
    assert (done.operations, done.received_bytes) == (20, 100)


def test_a_response_to_head_has_no_body_whatever_its_length_says() -> None:
    head = PLAIN.removesuffix(b"hello")
    with answering(head) as port:
        done = run(port, iter([Plain(port).request("HEAD", "/")] * 4), 2, None)
    assert (done.operations, done.received_bytes) == (4, 0)


def test_an_error_ends_the_load() -> None:
    with answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") as port, pytest.raises(Failed):
        run(port, repeat(Plain(port).request("GET", "/")), 1, 1.0)


def test_the_bare_server_sends_the_file_again_and_again(tmp_path: Path) -> None:
    body = bytes(range(256)) * 4096
    with sendfile(tmp_path / "files", body) as server:
        assert server.get("/any") == body
        done = run(server.port, iter([server.signer.request("GET", "/")] * 3), 1, None)
    assert done.received_bytes == 3 * len(body)


def test_a_trace_follows_its_law_and_keeps_what_is_popular() -> None:
    count, length = 1000, 50_000
    one, other = trace(count, length, 1), trace(count, length, 2)
    assert one != other
    assert set(one) <= set(range(count))
    favourite = max(set(one), key=one.count)
    assert favourite == max(set(other), key=other.count)
    expected = length / sum(1 / rank**0.99 for rank in range(1, count + 1))
    assert 0.9 * expected < one.count(favourite) < 1.1 * expected


@pytest.mark.parametrize(
    ("goal", "row"),
    [
        (Goal("g", "a", 10), "| g | 4 | 0.40 | held |"),
        (Goal("g", "a", 2), "| g | 4 | 2.00 | missed |"),
        (Goal("g", "a", 8, "b", is_least=True), "| g | 8 (4 : 0.5) | 1.00 | held |"),
        (Goal("g", "a", 16, "b", is_least=True), "| g | 8 (4 : 0.5) | 2.00 | missed |"),
        (Goal("g", "a", 2, scale=0.01, unit=" %"), "| g | 400 % | 2.00 | missed |"),
        (Goal("g", "absent", 2, "a"), "| g | | | not measured: no disk |"),
        (Goal("g", "a", 2, "unknown"), "| g | | | not measured: not part of this run |"),
        (Goal("g", "of less", 2), "| g | | | not measured: not with --quick |"),
    ],
)
def test_goals_are_judged_by_what_was_measured(tmp_path: Path, goal: Goal, row: str) -> None:
    figures = Figures(tmp_path / "figures")
    figures.add("a", 4)
    figures.add("b", 0.5)
    figures.skip("absent", "no disk")
    figures.add("of less", 1, is_full=False)
    assert goal.row(Measured.load(tmp_path / "figures")) == row


def test_a_second_worker_brings_what_the_client_leaves() -> None:
    assert most(2, 30, 0) == pytest.approx(2)
    assert most(2, 30, 30) == pytest.approx(1)
    assert most(8, 30, 30) == pytest.approx(2)
