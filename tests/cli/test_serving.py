"""The contract of `up`, `serve` and `key` that others script against, by processes of their own."""

import gc
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from daemons import FREE_PORTS, command, result, running

from couchestord import daemon as daemon_module
from couchestord import logs, memory
from couchestord.cli import serving
from couchestord.cli.credentials import lines_to_paste
from couchestord.config import Config, S3Config
from couchestord.frontends.admin.client import ask
from couchestord.parsing import parse_address


def test_up_makes_a_store_a_key_and_a_copy_of_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running("up", "--data", data, log=tmp_path / "log") as daemon:
        assert daemon.health("readyz")[0] == 200
        assert [daemon.health(page)[0] for page in ("livez", "healthz", "healthz?verbose")] == [200, 200, 200]
        assert sorted(path.name for path in data.glob("disk-*")) == [f"disk-{index}" for index in range(6)]
        keys = result("key", "list", "--data", data, "--show-secrets")
        assert [sorted(key) for key in keys] == [["access_key", "secret_key", "user"]]
        copy = (data / "credentials").read_text()
        assert keys[0]["access_key"] in copy
        assert keys[0]["secret_key"] in copy
        assert keys[0]["secret_key"] not in daemon.log.read_text()
        assert daemon.stop() == 0
    assert "Traceback" not in daemon.log.read_text()


def test_what_up_makes_is_for_its_user_only(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running("up", "--data", data, log=tmp_path / "log"):
        public = [
            str(path)
            for folder, _, names in os.walk(data)
            for path in (Path(folder), *(Path(folder, name) for name in names))
            if stat.S_IMODE(path.lstat().st_mode) & 0o077
        ]
    assert public == []


def test_key_add_while_the_daemon_runs_and_when_it_does_not(tmp_path: Path) -> None:
    data, secret = tmp_path / "data", tmp_path / "secret"
    secret.write_text("first-secret\n")
    with running("up", "--data", data, log=tmp_path / "log") as daemon:
        line = ("key", "add", "ci", "--access-key", "CIKEY000", "--secret-key-file", secret, "--data", data)
        assert result(*line) == {"user": "ci", "access_key": "CIKEY000"}
        assert daemon.stop() == 0
    secret.write_text("second-secret")
    result("key", "add", "ci", "--access-key", "CIKEY001", "--secret-key-file", secret, "--data", data)
    with running("serve", "--data", data, log=tmp_path / "log") as daemon:
        keys = result("key", "list", "--data", data, "--show-secrets")
        assert [(key["user"], key["secret_key"]) for key in keys[1:]] == [
            *(("ci", "first-secret"), ("ci", "second-secret"))
        ]
        assert keys[0]["user"] == "admin"


def test_first_key_stays_the_same_and_its_copy_comes_back(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running("up", "--data", data, log=tmp_path / "log") as daemon:
        before = result("key", "list", "--data", data, "--show-secrets")
        daemon.stop()
    (data / "credentials").unlink()
    with running("up", "--data", data, log=tmp_path / "log"):
        assert result("key", "list", "--data", data, "--show-secrets") == before
        assert before[0]["secret_key"] in (data / "credentials").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_with_0_and_leaves_no_socket(tmp_path: Path, number: int) -> None:
    data = tmp_path / "data"
    with running("up", "--data", data, log=tmp_path / "log") as daemon:
        assert (data / "couchestord.sock").exists()
        assert daemon.stop(number) == 0
    assert not (data / "couchestord.sock").exists()


def test_without_workers_there_are_none_to_be_replaced(tmp_path: Path) -> None:
    alone = {"COUCHESTORD_S3__WORKERS": "0"}
    with running("up", "--data", tmp_path / "data", log=tmp_path / "log", **alone) as daemon:
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.health("readyz")[0] == 200
        assert daemon.stop() == 0


def test_workers_may_open_the_files_of_as_many_disks_as_there_are(tmp_path: Path) -> None:
    data, limits = tmp_path / "data", resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
    try:
        for _ in range(2):
            options = ("--data", data, "--disks", "12", "--workers", "2")
            with running("up", *options, log=tmp_path / "log") as daemon:
                pid = daemon.process.pid
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                found = {resource.prlimit(int(child), resource.RLIMIT_NOFILE)[0] for child in children}
                assert len(children) == 3
                assert len(found) == 1, "the process of the store has looked at the disks"
                assert daemon.stop() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_kill_leaves_a_store_that_starts_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running("up", "--data", data, log=tmp_path / "log") as daemon:
        result("bucket", "create", "photos", "--data", data)
        assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    with running("serve", "--data", data, log=tmp_path / "log"):
        assert [row["bucket"] for row in result("bucket", "list", "--data", data)] == ["photos"]


def test_lines_to_paste_work(tmp_path: Path) -> None:
    """As a shell runs them, side by side; all but the AWS CLI's, which is not among our test tools."""
    data = tmp_path / "data folder"
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    with running("up", "--data", data, log=tmp_path / "log") as daemon:
        ask(data, "bucket create", {"bucket": "first"})
        address = parse_address(daemon.addresses["s3"].removeprefix("http://"))
        lines = [line.strip() for line in lines_to_paste(data, address, S3Config()).splitlines()]
        exports = [line for line in lines if line.startswith("export ")]

        def paste(client: str) -> subprocess.CompletedProcess[str]:
            (call,) = [line for line in lines if line.startswith(client)]
            shell = ["bash", "-ec", "\n".join([*exports, call])]
            return subprocess.run(shell, env=environ, capture_output=True, text=True, timeout=60, check=False)

        with ThreadPoolExecutor() as pool:
            for done in pool.map(paste, ("python3 -c", "s5cmd ", "rclone ")):
                assert (done.returncode, "first" in done.stdout) == (0, True), done.stderr


def test_metrics_page(tmp_path: Path) -> None:
    with running("up", "--data", tmp_path / "data", log=tmp_path / "log") as daemon:
        status, page = daemon.get(daemon.addresses["metrics"])
        assert status == 200
        assert 'couchestord_health{state="healthy"} 1.0' in page


def fails(*arguments: str | Path, **more: str) -> str:
    """The one line that a command which must fail prints."""
    done = command(*arguments, **more)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("couchestord: ")]
    assert len(lines) == 1
    return lines[0]


def test_second_daemon_on_a_store_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running("up", "--data", data, log=tmp_path / "log") as daemon:
        for name in ("up", "serve"):
            fails(name, "--data", data, *FREE_PORTS)
        assert daemon.health("readyz")[0] == 200
        assert result("key", "list", "--data", data)


@pytest.mark.parametrize("name", ["s3", "metrics", "health"])
def test_port_in_use_says_which_and_makes_nothing(tmp_path: Path, name: str) -> None:
    data = tmp_path / "data"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = fails("up", "--data", data, *FREE_PORTS, f"--{name}-addr=127.0.0.1:{port}")
    assert f"127.0.0.1:{port}" in line
    assert f"--{name}-addr" in line
    assert not data.exists()


def test_serve_makes_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert str(data) in fails("serve", "--data", data, *FREE_PORTS)
    assert not data.exists()


def test_up_does_not_hide_a_store_whose_disks_are_away(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running("up", "--data", data, log=tmp_path / "log") as daemon:
        daemon.stop()
    for disk in data.glob("disk-*"):
        disk.rename(tmp_path / disk.name)
    assert "none of its disks" in fails("up", "--data", data, *FREE_PORTS)
    for disk in tmp_path.glob("disk-*"):
        (data / disk.name).rmdir() if (data / disk.name).exists() else None
        disk.rename(data / disk.name)
    with running("up", "--data", data, log=tmp_path / "log") as daemon:
        assert daemon.health("healthz")[1]["state"] == "healthy"


def test_too_few_disks(tmp_path: Path) -> None:
    data = tmp_path / "data"
    said = fails("up", "--data", data, "--disks", "5", *FREE_PORTS)
    assert "5 disks are too few" in said
    assert "--shards-per-disk 2" in said
    assert "the loss of 1 of the 5 disks is made good" in said
    said = fails("init", "--data", data, "--disks", "2", "--shards-per-disk", "2")
    assert "need 3 at 2 a disk" in said
    assert "--shards-per-disk 3" in said
    assert "the loss of any disk loses data" in said
    assert not data.exists()


def test_several_shards_on_a_disk(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert len(result("init", "--data", data, "--disks", "3", "--shards-per-disk", "2")["disks"]) == 3
    [policy] = result("policy", "list", "--data", data)
    assert (policy["shards_per_disk"], policy["survives_disks"]) == (2, 1)


def test_unknown_key_in_file_and_environment(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[s3]\nadress = ':1'\n")
    assert "did you mean s3.address" in fails("serve", "--config", path)
    assert "COUCHESTORD_S3__ADRESS" in fails("serve", COUCHESTORD_S3__ADRESS=":1")


def test_what_lives_as_long_as_the_daemon_is_not_searched_for_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    async def run(_config: Config, *, announce: Callable[[object], None], **_: object) -> None:
        announce(None)

    monkeypatch.setattr(daemon_module, "run", run)
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    before = gc.get_threshold()
    assert gc.get_freeze_count() == 0
    try:
        serving._run(Config(), announce=lambda _: seen.append((gc.get_freeze_count(), gc.get_threshold()[0])))
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
    ((frozen, threshold),) = seen
    assert frozen > 10_000
    assert threshold == memory.YOUNG_OBJECTS_MAX


def test_owners_cannot_be_trusted_by_a_mount_that_is_not_asked_for(tmp_path: Path) -> None:
    refused = command("up", "--data", tmp_path / "data", "--trust-s3-owners")
    assert refused.returncode == 2
    assert "--trust-s3-owners goes with --mount" in refused.stderr
    assert not (tmp_path / "data").exists()
