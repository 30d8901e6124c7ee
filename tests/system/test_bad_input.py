"""What an operator can get wrong: one clear line, exit code 1, no traceback, nothing changed and nothing lost."""

import hashlib
import shutil
import socket
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from daemon import Node, error_of, node, wait_until
from daemons import FREE_PORTS, command
from loops import LoopDisk, need
from workload import BUCKET, Expected, fill, listing

from couchestord.io.checksum import xxh3_64
from couchestord.io.superblock import PAGE_BYTES


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Expected]]:
    """A store with objects in it, stopped between tests; in the end it must start again with all of them."""
    expected = Expected()
    with Node(tmp_path_factory.mktemp("bad") / "data") as store:
        store.start().s3().create_bucket(Bucket=BUCKET)
        fill(expected, store.s3(), "kept", (10, 50_000, 500_000))
        store.stop()
        yield store, expected
        store.start()
        expected.verify(store.s3())
        store.wait_healthy()


def refused(*arguments: str | Path, **more: str) -> str:
    """The command ends with one line on standard error, but for the log of what it tried; returns it."""
    done = command(*arguments, **more)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("couchestord: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == lines[0]
    return lines[0]


def up(data: Path, **more: str) -> str:
    return refused("up", "--data", data, *FREE_PORTS, **more)


def sums(disk: Path) -> dict[str, str]:
    """Every file of a disk but its lock."""
    return {
        str(path.relative_to(disk)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(disk.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def test_second_daemon_on_the_same_disks(made: tuple[Node, Expected]) -> None:
    store, expected = made
    store.start()
    assert "is in use by process" in up(store.data)
    disks = ",".join(map(str, store.disks))
    assert "is in use by process" in up(store.data.with_name("elsewhere"), COUCHESTORD_STORE__DISKS=disks)
    expected.verify(store.s3())
    store.stop()


def test_foreign_disk(made: tuple[Node, Expected], tmp_path: Path) -> None:
    store, _ = made
    with node(tmp_path / "other") as other:
        other.stop()
        store.disks[3].rename(tmp_path / "own")
        shutil.copytree(other.disks[3], store.disks[3])
        before = sums(store.disks[3])
        line = up(store.data)
        assert "disk-3" in line
        assert "different stores" in line
        assert sums(store.disks[3]) == before
        shutil.rmtree(store.disks[3])
        (tmp_path / "own").rename(store.disks[3])


def test_foreign_disk_put_in_while_running_is_not_taken(made: tuple[Node, Expected], tmp_path: Path) -> None:
    store, expected = made
    with node(tmp_path / "other") as other:
        other.stop()
        store.start()
        store.disks[3].rename(tmp_path / "own")
        wait_until(lambda: store.page("healthz")[1]["state"] == "degraded", 30, store.said)
        shutil.copytree(other.disks[3], store.disks[3])
        before = sums(store.disks[3])
        wait_until(lambda: "disk is not taken back" in store.said(), 30, store.said)
        expected.verify(store.s3())
        assert sums(store.disks[3]) == before
        # not removed where it lies: the daemon locks it for a moment at each look
        store.disks[3].rename(tmp_path / "foreign")
        (tmp_path / "own").rename(store.disks[3])
        store.wait_healthy()
        store.stop()


def test_two_copies_of_a_disk(made: tuple[Node, Expected], tmp_path: Path) -> None:
    store, _ = made
    shutil.copytree(store.disks[0], store.data / "disk-6")
    assert "both claim to be disk 0" in up(store.data)
    shutil.rmtree(store.data / "disk-6")


def test_newer_superblock_is_left_untouched(made: tuple[Node, Expected]) -> None:
    store, _ = made
    path = store.disks[2] / "superblock"
    old = path.read_bytes()
    page = bytearray(old[:PAGE_BYTES])
    struct.pack_into("<H", page, 4, 99)
    (length,) = struct.unpack_from("<I", page, 8)
    total = xxh3_64(bytes(page[:12]) + bytes(page[20 : 20 + length]), 99 << 8)
    struct.pack_into("<Q", page, 12, total)
    path.write_bytes(bytes(page) + old[PAGE_BYTES:])
    before = [sums(disk) for disk in store.disks]
    line = up(store.data)
    assert "format 99" in line
    assert "newer couchestord" in line
    assert [sums(disk) for disk in store.disks] == before
    path.write_bytes(old)


def test_all_disks_missing(made: tuple[Node, Expected], tmp_path: Path) -> None:
    store, _ = made
    (tmp_path / "away").mkdir()
    for disk in store.disks:
        disk.rename(tmp_path / "away" / disk.name)
    assert "none of its disks is" in up(store.data)
    assert "no store lies in" in refused("serve", "--data", store.data, *FREE_PORTS)
    for disk in store.disks:
        assert not disk.exists() or not any(disk.iterdir())
        shutil.rmtree(disk, ignore_errors=True)
        (tmp_path / "away" / disk.name).rename(disk)


def test_too_many_disks_missing_say_so(made: tuple[Node, Expected], tmp_path: Path) -> None:
    """With three of six away the daemon serves what is left and refuses the rest clearly, and says so on every page."""
    store, expected = made
    for index in (0, 1, 2):
        store.disks[index].rename(tmp_path / f"away-{index}")
    try:
        assert store.spawn(), store.said()
        client = store.s3()
        pages = {name: store.page(name) for name in ("livez", "readyz", "healthz")}
        status = store.status()
        assert {name: code for name, (code, _) in pages.items()} == {"livez": 200, "readyz": 503, "healthz": 503}
        assert status["health"]["state"] == pages["healthz"][1]["state"] == "unhealthy"
        for told in (pages["readyz"][1], pages["healthz"][1], status["health"]):
            assert any("3 of 6 disks are missing" in reason for reason in told["reasons"])
            assert any("writes are stopped" in reason for reason in told["reasons"])
        assert [disk["state"] for disk in status["disks"]] == ["missing"] * 3 + ["good"] * 3
        # six shards of the large one, of which three are left, two of them at best with data
        get = partial(client.get_object, Bucket=BUCKET, Key="kept/2")
        assert error_of(get) == (500, "InternalError")
        assert 1 <= expected.read_all(client) <= 3
        assert listing(client, BUCKET) == ["kept/0", "kept/1", "kept/2"]
        assert client.head_object(Bucket=BUCKET, Key="kept/2")["ContentLength"] == 500_000
        assert error_of(partial(client.get_object, Bucket=BUCKET, Key="none")) == (404, "NoSuchKey")
        for change in (partial(client.put_object, Key="new", Body=b"x"), partial(client.delete_object, Key="kept/0")):
            assert error_of(partial(change, Bucket=BUCKET)) == (503, "ServiceUnavailable")
        store.stop()
        assert "Traceback" not in store.said()
    finally:
        store.kill()
        for index in (0, 1, 2):
            (tmp_path / f"away-{index}").rename(store.disks[index])


def test_port_in_use(made: tuple[Node, Expected]) -> None:
    store, _ = made
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for option in ("s3", "metrics", "health"):
            free = [word for word in FREE_PORTS if option not in word]
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            line = refused("up", "--data", store.data, *free, f"--{option}-addr", address)
            assert "the port is in use" in line
            assert f"--{option}-addr" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[store]\nstripe_sizes = 4\n", "did you mean store.stripe_size?"),
        ("[stroe]\nk = 4\n", "[store]"),
        ("[store]\nk = 'x'\n", "whole number"),
        ("[store\n", "is not TOML"),
    ],
)
def test_config_file_that_is_wrong(made: tuple[Node, Expected], tmp_path: Path, text: str, words: str) -> None:
    store, _ = made
    (tmp_path / "config.toml").write_text(text)
    assert words in refused("serve", "--config", tmp_path / "config.toml", "--data", store.data)


def test_environment_that_is_wrong(made: tuple[Node, Expected]) -> None:
    assert "store.stripe_size" in up(made[0].data, COUCHESTORD_STORE__STRIPE_SIZES="4")


def test_no_room_for_a_store(tmp_path: Path) -> None:
    need("mkfs.ext4", "losetup", "mount")
    disk = LoopDisk(tmp_path / "image", tmp_path / "full", "ext4", 4 << 20)
    try:
        disk.mount()
        disk.fill()
        line = up(disk.folder / "data")
        assert "space" in line.lower() or "full" in line.lower()
    finally:
        disk.destroy()
