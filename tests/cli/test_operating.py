import json
import shutil
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from couchestord.cli import entry

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def data(tmp_path: Path, capsys: Capture) -> Path:
    """A store nobody serves."""
    folder = tmp_path / "data"
    assert entry.run(["init", "--data", str(folder)]) == 0
    capsys.readouterr()
    return folder


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("secret-of-ann\n")
    return path


def ask(capsys: Capture, data: Path, *arguments: str) -> Any:
    assert entry.run([*arguments, "--data", str(data), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_key_added_without_a_daemon_lasts(data: Path, secret: Path, capsys: Capture) -> None:
    added = ask(capsys, data, "key", "add", "ann", "--access-key", "AKID0000", "--secret-key-file", str(secret))
    assert added == {"user": "ann", "access_key": "AKID0000"}
    assert ask(capsys, data, "key", "list") == [{"user": "ann", "access_key": "AKID0000"}]
    assert ask(capsys, data, "key", "list", "--show-secrets") == [
        {"user": "ann", "access_key": "AKID0000", "secret_key": "secret-of-ann"}
    ]


def test_generated_key_is_told_once(data: Path, capsys: Capture) -> None:
    added = ask(capsys, data, "key", "add", "ann")
    assert len(added["secret_key"]) >= 1
    assert ask(capsys, data, "key", "list", "--show-secrets") == [added]


def test_a_key_that_is_refused_leaves_no_user(data: Path, tmp_path: Path, capsys: Capture) -> None:
    ask(capsys, data, "user", "add", "ann")
    short = tmp_path / "short"
    short.write_text("short")
    line = ["key", "add", "eve", "--access-key", "AKID0000", "--secret-key-file", str(short), "--data", str(data)]
    assert entry.run(line) == 1
    assert "secret key must have" in capsys.readouterr().err
    assert [row["user"] for row in ask(capsys, data, "user", "list")] == ["ann"]


def test_key_removed(data: Path, capsys: Capture) -> None:
    access_key = ask(capsys, data, "key", "add", "ann")["access_key"]
    ask(capsys, data, "key", "remove", access_key)
    assert ask(capsys, data, "key", "list") == []
    assert entry.run(["key", "remove", access_key, "--data", str(data)]) == 3


def test_users(data: Path, capsys: Capture) -> None:
    access_key = ask(capsys, data, "key", "add", "ann")["access_key"]
    ask(capsys, data, "user", "add", "bob", "--no-admin")
    ask(capsys, data, "bucket", "create", "photos", "--owner", "ann")
    assert ask(capsys, data, "user", "list") == [
        {"user": "ann", "admin": True, "access_keys": 1, "buckets": 1},
        {"user": "bob", "admin": False, "access_keys": 0, "buckets": 0},
    ]
    assert entry.run(["user", "remove", "ann", "--data", str(data)]) == 1
    assert "owns photos" in capsys.readouterr().err
    ask(capsys, data, "bucket", "remove", "photos")
    assert entry.run(["user", "remove", "ann", "--data", str(data)]) == 0
    assert capsys.readouterr().out == f"user ann was removed, and the access keys {access_key}\n"
    assert ask(capsys, data, "user", "remove", "bob") == {"user": "bob", "access_keys": []}
    assert ask(capsys, data, "key", "list") == ask(capsys, data, "user", "list") == []
    assert entry.run(["user", "remove", "ann", "--data", str(data)]) == 3


def test_buckets(data: Path, capsys: Capture) -> None:
    ask(capsys, data, "user", "add", "ann")
    created = ask(capsys, data, "bucket", "create", "photos", "--owner", "ann")
    assert (created["bucket"], created["owner"]) == ("photos", "ann")
    assert [row["bucket"] for row in ask(capsys, data, "bucket", "list")] == ["photos"]
    ask(capsys, data, "bucket", "remove", "photos")
    assert ask(capsys, data, "bucket", "list") == []
    assert entry.run(["bucket", "remove", "photos", "--data", str(data)]) == 3
    assert entry.run(["bucket", "create", "photos", "--owner", "nobody", "--data", str(data)]) == 3


def test_policies(data: Path, capsys: Capture) -> None:
    added = ask(capsys, data, "policy", "add", "safe", "--k", "2", "--m", "4", "--stripe-size", "512 KiB")
    assert (added["name"], added["k"], added["m"], added["stripe_bytes"]) == ("safe", 2, 4, 512 << 10)
    assert (added["survives_disks"], added["min_healthy_shards"]) == (4, 2)
    assert ask(capsys, data, "bucket", "create", "photos", "--policy", "safe")["policy"] == "safe"
    assert ask(capsys, data, "policy", "set", "safe", "--min-healthy-shards", "5")["min_healthy_shards"] == 5
    assert [row["name"] for row in ask(capsys, data, "policy", "list")] == ["default", "safe"]
    shown = ask(capsys, data, "policy", "show", "default")
    assert (shown["k"], shown["journal_replicas"], shown["destage_threshold_percent"]) == (4, 5, 80)
    assert "journal_replicas" not in ask(capsys, data, "policy", "show", "safe")
    assert ask(capsys, data, "bucket", "set", "photos", "--policy", "default")["policy"] == "default"
    assert entry.run(["bucket", "set", "photos", "--policy", "none", "--data", str(data)]) == 3
    assert entry.run(["policy", "show", "none", "--data", str(data)]) == 3
    capsys.readouterr()
    assert entry.run(["policy", "add", "wide", "--k", "8", "--m", "3", "--data", str(data)]) == 1
    assert "8+3 needs 11 disks, there are 6" in capsys.readouterr().err


def test_status_is_text_or_json(data: Path, capsys: Capture) -> None:
    assert ask(capsys, data, "status")["health"]["state"] == "healthy"
    assert entry.run(["status", "--data", str(data)]) == 0
    assert capsys.readouterr().out.startswith("healthy\n")


@pytest.mark.parametrize("name", ["bucket", "bucket/", "/key", "s3://bucket"])
def test_info_wants_bucket_and_key(data: Path, capsys: Capture, name: str) -> None:
    assert entry.run(["info", name, "--data", str(data)]) == 1
    assert "is not BUCKET/KEY" in capsys.readouterr().err


def test_no_store_says_how_to_make_one(tmp_path: Path, capsys: Capture) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        assert entry.run(["key", "list", "--data", str(folder)]) == 1
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1
        assert str(folder) in shown
    assert not (tmp_path / "none").exists()


def test_init_twice_is_refused_and_harms_nothing(data: Path, capsys: Capture) -> None:
    ask(capsys, data, "bucket", "create", "photos")
    assert entry.run(["init", "--data", str(data)]) == 1
    assert [row["bucket"] for row in ask(capsys, data, "bucket", "list")] == ["photos"]


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines\n", b"\xff\xfe", b"tab\there"])
def test_file_that_holds_no_secret(data: Path, tmp_path: Path, capsys: Capture, content: bytes) -> None:
    path = tmp_path / "bad"
    path.write_bytes(content)
    line = ["key", "add", "ann", "--access-key", "AKID0000", "--secret-key-file", str(path), "--data", str(data)]
    assert entry.run(line) == 1
    assert str(path) in capsys.readouterr().err
    assert ask(capsys, data, "key", "list") == []


def test_secret_from_standard_input(data: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("from-a-pipe\n"))
    ask(capsys, data, "key", "add", "ann", "--access-key", "AKID0000", "--secret-key-file", "-")
    assert ask(capsys, data, "key", "list", "--show-secrets")[0]["secret_key"] == "from-a-pipe"


def test_disk_replaced_without_a_daemon(data: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(data / "disk-3")
    assert [row["state"] for row in ask(capsys, data, "disk", "list")] == ["good"] * 3 + ["missing"] + ["good"] * 2
    assert entry.run(["disk", "replace", "2", "--data", str(data)]) == 1
    assert f"disk 2 is in use, in {data}/disk-2: unmount it first" in capsys.readouterr().err
    assert entry.run(["disk", "replace", "3", "--data", str(data)]) == 1
    assert f"there is no folder {data}/disk-3: make it, or mount the new disk there" in capsys.readouterr().err
    (data / "disk-3").mkdir()
    monkeypatch.chdir(data)
    assert entry.run(["disk", "replace", "3", "disk-3", "--data", str(data)]) == 0
    assert capsys.readouterr().out.startswith(f"disk 3 is in {data}/disk-3. The daemon takes it in")
    assert [row["state"] for row in ask(capsys, data, "disk", "list")].count("missing") == 0
    with pytest.raises(SystemExit, match="2"):
        entry.run(["disk", "replace", "three", "--data", str(data)])


def test_disks_are_a_table(data: Path, capsys: Capture) -> None:
    assert entry.run(["disk", "list", "--data", str(data)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["DISK", "FOLDER", "STATE", "CLASS", "REASON"]
    assert [row.split()[:4] for row in rows] == [[str(i), f"{data}/disk-{i}", "good", "default"] for i in range(6)]


def test_a_warm_up_goes_on_until_the_end_or_the_caches_are_full(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    asked = []

    def ask_steps(_: Path, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        asked.append((name, dict(arguments)))
        end = "c" if "start" not in arguments else "d" if arguments["start"] == "c" else None
        return {"objects": 2, "bytes": 100, "unreadable": 0, "next": end, "capacity_bytes": capacity}

    monkeypatch.setattr("couchestord.cli.operating.ask", ask_steps)
    capacity = 1000
    assert entry.run(["cache", "warmup", "s3://photos/2026/a", "--data", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out == "6 objects, 300 bytes are in the caches\n"
    assert [line.split(",")[0] for line in said.err.splitlines()] == ["2 objects", "4 objects"]
    first = {"bucket": "photos", "prefix": "2026/a"}
    assert asked == [("cache warmup", first | start) for start in ({}, {"start": "c"}, {"start": "d"})]
    capacity = 200
    assert entry.run(["cache", "warmup", "photos", "--data", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"objects": 4, "bytes": 200, "unreadable": 0, "all": False}
