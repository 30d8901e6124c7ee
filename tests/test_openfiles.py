import contextlib
import http.client
import resource
from pathlib import Path

import pytest
from daemon import Node

from couchestord import openfiles


@pytest.mark.parametrize(
    ("files_max", "disks_count", "clients"),
    [(1 << 20, 6, 1000), (384 + 6 * 384 + 4000, 6, 1000), (384 + 6 * 384 + 3999, 6, 999), (1024, 6, 64), (1088, 1, 80)],
)
def test_clients_leave_descriptors_for_the_disks(files_max: int, disks_count: int, clients: int) -> None:
    assert openfiles.clients_max(files_max, disks_count, 1000) == clients


def test_a_limit_that_may_not_be_raised_is_lived_with(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert openfiles.make_room(6, 1000) == 64
    assert "fewer clients are served" in caplog.text
    assert openfiles.make_room(6, 10) == 10
    assert "disks may be given up" in caplog.text


@pytest.mark.parametrize(("limits", "served"), [("256:8192", 300), ("256:256", 64)])
def test_clients_without_a_key_cost_no_disk(tmp_path: Path, limits: str, served: int) -> None:
    """A disk that cannot open a file for want of descriptors is given up."""
    with Node(tmp_path / "data", prefix=["prlimit", f"--nofile={limits}"]) as node, contextlib.ExitStack() as open_:
        node.start()
        answers = []
        for _ in range(served + 1):
            client = http.client.HTTPConnection(node.addresses["s3"].removeprefix("http://"), timeout=60)
            open_.callback(client.close)
            client.request("GET", "/")
            answers.append(client.getresponse())
            answers[-1].read()
        assert {answer.status for answer in answers[:served]} == {403}
        assert answers[served].status == (503 if served == 64 else 403)
        assert node.page("healthz")[0] == 200, node.said()
        node.stop()
        assert "given up" not in node.said()
