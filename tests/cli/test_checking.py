import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from small_store import body_of, finish, flip, shard_files

from couchestord.cli import entry
from couchestord.config import load
from couchestord.daemon import store_options
from couchestord.errors import DataLost
from couchestord.store.door import ObjectStore
from couchestord.store.options import StoreOptions

Capture = pytest.CaptureFixture[str]
LONG = body_of(3_000_000)


@pytest.fixture
def data(tmp_path: Path, capsys: Capture) -> Path:
    """A store nobody serves, with a short and a long object."""
    folder = tmp_path / "data"
    assert entry.run(["init", "--data", str(folder)]) == 0
    capsys.readouterr()

    async def fill() -> None:
        async with ObjectStore.open(folder, StoreOptions(services=False)) as store:
            await store.create_bucket("box")
            await store.put("box", b"short", b"few bytes")
            await store.put("box", b"long", LONG)

    trio.run(fill)
    return folder


def bodies(data: Path) -> list[bytes]:
    async def read() -> list[bytes]:
        async with ObjectStore.open(data, StoreOptions(services=False)) as store:
            found = []
            for key in (b"short", b"long"):
                async with await store.get("box", key) as reader:
                    found.append(await reader.read())
            return found

    return trio.run(read)


def test_all_is_well(data: Path, capsys: Capture) -> None:
    assert entry.run(["fsck", "--data", str(data)]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("all is well\n", "")
    assert entry.run(["fsck", "--data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_what_is_short_is_told_and_is_no_failure(data: Path, capsys: Capture) -> None:
    shard_files(data)[0].unlink()
    assert entry.run(["fsck", "--data", str(data)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("short segment ")
    assert lines[-1] == "1 findings"
    assert entry.run(["fsck", "--data", str(data), "--json"]) == 0
    [finding] = json.loads(capsys.readouterr().out)
    assert set(finding) == {"severity", "where", "what"}
    assert finding["severity"] == "short"


def test_what_is_lost_is_a_failure(data: Path, capsys: Capture) -> None:
    for path in shard_files(data)[:3]:
        flip(path, 2 * 4096 + 10)
    assert entry.run(["fsck", "--data", str(data)]) == 1
    shown = capsys.readouterr()
    assert "lost  segment " in shown.out
    assert shown.err.splitlines()[-1] == "couchestord: 1 findings are data that is lost"
    assert entry.run(["fsck", "--data", str(data), "--json"]) == 1
    shown = capsys.readouterr()
    assert [finding["severity"] for finding in json.loads(shown.out)].count("lost") == 1
    assert json.loads(shown.err.splitlines()[-1])["error"]["name"] == "DataLost"


@pytest.mark.parametrize("command", ["fsck", "recover"])
def test_no_store_and_no_trace_of_the_try(tmp_path: Path, capsys: Capture, command: str) -> None:
    assert entry.run([command, "--data", str(tmp_path / "none")]) == 1
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["fsck", "recover"])
def test_refused_while_somebody_has_it_open(data: Path, capsys: Capture, command: str) -> None:
    async def run() -> int:
        async with ObjectStore.open(data, StoreOptions(services=False)):
            return await trio.to_thread.run_sync(entry.run, [command, "--data", str(data)])

    assert trio.run(run) == 1
    assert "is in use by process" in capsys.readouterr().err
    assert bodies(data) == [b"few bytes", LONG]


def test_recover(data: Path, capsys: Capture) -> None:
    catalog = data / "catalog.sqlite"
    assert entry.run(["recover", "--data", str(data), "--json"]) == 0
    recovered = json.loads(capsys.readouterr().out)
    assert recovered["missing_disks"] == 0
    assert 3 < recovered["replayed_records"] <= recovered["sequence"]
    assert recovered["set_aside"] == f"{catalog}.set-aside"
    assert Path(recovered["set_aside"]).exists()
    shutil.rmtree(data / "disk-5")
    catalog.write_bytes(b"no catalog")
    assert entry.run(["recover", "--data", str(data)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "missing disks: 1" in lines
    assert f"set aside: {catalog}.set-aside" in lines
    assert bodies(data) == [b"few bytes", LONG]


def test_recover_without_a_catalog(data: Path, capsys: Capture) -> None:
    for path in data.glob("catalog.sqlite*"):
        path.unlink()
    assert entry.run(["recover", "--data", str(data)]) == 0
    assert "set aside: -" in capsys.readouterr().out.splitlines()
    assert bodies(data) == [b"few bytes", LONG]


def test_recover_that_fails_leaves_the_old_catalog(data: Path, capsys: Capture) -> None:
    async def trim() -> None:
        async with ObjectStore.open(data, StoreOptions(services=False)) as store:
            await store.destage()

    trio.run(trim)
    for index in range(3):
        (data / f"disk-{index}").rename(data / f"away-{index}")
    assert entry.run(["recover", "--data", str(data)]) == 1
    assert "bring them back" in capsys.readouterr().err
    for index in range(3):
        (data / f"away-{index}").rename(data / f"disk-{index}")
    assert bodies(data) == [b"few bytes", LONG]


# -- a node that is lost ---------------------------------------------------------------------------------------------


@pytest.fixture
def lost_node(tmp_path: Path) -> Path:
    """The configuration of a store that was put in a folder and is gone; one object had no copy."""
    config = tmp_path / "couchestord.toml"
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    config.write_text(f'[l3]\nmode = "cache"\nurl = "file://{bucket}"\ndelay = 0\n')
    folder = tmp_path / "old"

    async def fill() -> None:
        options = replace(
            store_options(load(config, {}, {"store.data": folder})), services=False, disk_deadline_s=120.0
        )
        await ObjectStore.create(folder, options)
        async with ObjectStore.open(folder, options) as store:
            await store.create_bucket("box")
            await store.put("box", b"short", b"few bytes")
            await store.put("box", b"long", LONG)
            await store.core.destage_all()
            await store.put("box", b"in the log", b"lost")
            assert store.core.jobs.l3 is not None
            for job in store.core.jobs.l3.services():
                await finish(job)

    trio.run(fill)
    shutil.rmtree(folder)
    return config


def test_a_lost_node_is_made_anew(lost_node: Path, tmp_path: Path, capsys: Capture) -> None:
    data = tmp_path / "new"
    assert entry.run(["recover", "--from-l3", "--config", str(lost_node), "--data", str(data)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("the store ")
    assert lines[2] == "1 extents (4 bytes) had no copy and are lost: those of 1 objects"
    assert lines[3] == "lost  box/in the log"

    async def check() -> None:
        options = replace(
            store_options(load(lost_node, {}, {"store.data": data})), services=False, disk_deadline_s=120.0
        )
        async with ObjectStore.open(data, options) as store:
            for key, body in ((b"short", b"few bytes"), (b"long", LONG)):
                async with await store.get("box", key) as reader:
                    assert await reader.read() == body
            with pytest.raises(DataLost):
                async with await store.get("box", b"in the log") as reader:
                    await reader.read()
            await store.delete("box", b"in the log")

    trio.run(check)
    assert entry.run(["recover", "--from-l3", "--config", str(lost_node), "--data", str(data)]) == 1
    assert "start that store" in capsys.readouterr().err
    other = ["--data", str(tmp_path / "third"), "--disks", "7", "--json"]
    assert entry.run(["recover", "--from-l3", "--config", str(lost_node), *other]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["lost_names"] == [{"bucket": "box", "key": "in the log", "version": None}]
    assert len(list((tmp_path / "third").glob("disk-*"))) == 7


def test_a_lost_node_needs_a_bucket(lost_node: Path, tmp_path: Path, capsys: Capture) -> None:
    data = ["--data", str(tmp_path / "new")]
    assert entry.run(["recover", "--from-l3", *data]) == 1
    assert "l3.mode is off" in capsys.readouterr().err
    config = ["--config", str(lost_node)]
    assert entry.run(["recover", "--from-l3", "--store", "none", *config, *data]) == 1
    assert "32 hex digits" in capsys.readouterr().err
    assert entry.run(["recover", "--from-l3", "--store", "00" * 16, *config, *data]) == 1
    assert "published no catalog" in capsys.readouterr().err
    for wrong in (["--disks", "4"], *(["--from-l3", "--disks", count, *config] for count in ("-1", "0", "193"))):
        with pytest.raises(SystemExit):
            entry.run(["recover", *wrong, *data])
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").write_bytes(b"")
    assert entry.run(["recover", "--from-l3", *config, *data]) == 1
    assert "cannot make the folder" in capsys.readouterr().err
