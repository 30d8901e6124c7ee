"""Buckets through the kernel: real mounts beside a real daemon, and S3 on the same tree."""

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from daemon import QUICK, Node, wait_until, with_workers
from daemons import command
from modes import mode
from mounted import Mounted, needs_mounts

pytestmark = needs_mounts


with_and_without_workers = pytest.mark.parametrize("node", [0, 2], indirect=True)


@pytest.fixture
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """A daemon with a bucket `box`."""
    workers_count = getattr(request, "param", 0)
    with Node(tmp_path / "data", settings=with_workers(QUICK, workers_count)).start() as made:
        made.s3().create_bucket(Bucket="box")
        yield made


@pytest.fixture
def box(node: Node, tmp_path: Path) -> Iterator[Mounted]:
    with Mounted(node.data, tmp_path / "box") as mounted:
        yield mounted


def keys(client: Any) -> dict[str, int]:
    return {each["Key"]: each["Size"] for each in client.list_objects_v2(Bucket="box").get("Contents", ())}


def body(client: Any, key: str) -> bytes:
    found: bytes = client.get_object(Bucket="box", Key=key)["Body"].read()
    return found


@with_and_without_workers
def test_what_one_side_writes_the_other_reads(node: Node, box: Mounted) -> None:
    client, top = node.s3(), box.folder
    client.put_object(Bucket="box", Key="a/b/put", Body=b"from S3", Metadata={"mode": "33152"})
    if mode().caches != "off":  # it asks workers, and no mount
        assert command("cache", "warmup", "box", "--data", node.data).stdout.startswith("1 objects")
    assert (top / "a/b/put").read_bytes() == b"from S3"
    assert (top / "a/b/put").stat().st_mode == 0o100600
    (top / "a/written").write_bytes(b"from the mount")
    assert body(client, "a/written") == b"from the mount"
    etag = client.head_object(Bucket="box", Key="a/written")["ETag"].strip('"')
    assert len(etag) == 34
    assert etag.endswith("-1")
    client.put_object(Bucket="box", Key="a/written", Body=b"anew")
    assert (top / "a/written").read_bytes() == b"anew"
    client.delete_object(Bucket="box", Key="a/b/put")
    assert not (top / "a/b").exists()
    assert os.listdir(top / "a") == ["written"]
    (top / "a").rename(top / "moved")
    assert keys(client) == {"moved/written": 4}
    os.symlink("moved/written", top / "link")
    head = client.head_object(Bucket="box", Key="link")
    assert (head["ContentType"], body(client, "link")) == ("inode/symlink", b"moved/written")
    assert (top / "link").read_bytes() == b"anew"
    os.link(top / "moved/written", top / "hard")
    (top / "hard").write_bytes(b"through one of its names")
    assert body(client, "moved/written") == b"through one of its names"


@with_and_without_workers
def test_what_s3_keeps_is_shown_as_attributes(node: Node, box: Mounted) -> None:
    client, path = node.s3(), box.folder / "file"
    said = {"Metadata": {"colour": "red", "size": "xl"}, "ContentType": "text/plain", "CacheControl": "no-store"}
    head = client.put_object(Bucket="box", Key="file", Body=b"bytes", ChecksumAlgorithm="SHA256", **said)
    expected = {
        "user.s3.content-type": "text/plain",
        "user.s3.cache-control": "no-store",
        "user.s3.checksum-sha256": head["ChecksumSHA256"],
        "user.s3.checksum-type": "FULL_OBJECT",
        "user.s3.meta.colour": "red",
        "user.s3.meta.size": "xl",
    }
    assert _attributes(path) == expected
    assert os.getxattr(path, "user.s3.etag").decode() == head["ETag"].strip('"')
    os.setxattr(path, "user.own", b"1")
    assert _attributes(path) == {"user.own": "1", **expected}
    path.write_bytes(b"written")
    etag = client.head_object(Bucket="box", Key="file")["ETag"].strip('"')
    assert os.getxattr(path, "user.s3.etag").decode() == etag != head["ETag"].strip('"')
    kept = {name: value for name, value in expected.items() if not name.startswith("user.s3.checksum")}
    assert _attributes(path) == {"user.own": "1", **kept}
    for name in ("user.s3.meta.colour", "user.s3.etag", "user.s3.new"):
        with pytest.raises(PermissionError):
            os.setxattr(path, name, b"x")
        with pytest.raises(PermissionError):
            os.removexattr(path, name)
    os.symlink("file", box.folder / "link")
    assert os.listxattr(box.folder / "link", follow_symlinks=False) == []
    assert "failed" not in box.said()


def _attributes(path: Path) -> dict[str, str]:
    return {name: os.getxattr(path, name).decode() for name in os.listxattr(path)}


def test_owners_that_s3_names_are_believed_where_it_is_asked_for(node: Node, tmp_path: Path) -> None:
    client = node.s3()
    owned = {"uid": "1234", "gid": "5678", "mode": "0104600"}
    client.put_object(Bucket="box", Key="owned", Body=b"bytes", Metadata=owned)
    client.put_object(Bucket="box", Key="odd", Body=b"", Metadata={"uid": "99999999999", "gid": "4294967295"})
    with Mounted(node.data, tmp_path / "box") as box:
        found = (box.folder / "owned").stat()
        assert (found.st_uid, found.st_gid, found.st_mode) == (0, 0, 0o100600)
    with Mounted(node.data, tmp_path / "trusting", options=["--trust-s3-owners", "--allow-other"]) as box:
        path = box.folder / "owned"
        found = path.stat()
        assert (found.st_uid, found.st_gid, found.st_mode) == (1234, 5678, 0o100600)
        line = ["sh", "-c", "chmod 644 owned && echo more >> owned"]
        subprocess.run(line, cwd=box.folder, user=1234, group=5678, extra_groups=[], check=True)
        found = path.stat()
        assert (found.st_uid, found.st_gid, found.st_mode) == (1234, 5678, 0o100644)
        assert path.read_bytes() == b"bytesmore\n"
        odd = (box.folder / "odd").stat()
        assert (odd.st_uid, odd.st_gid) == (0, 0)
    node.stop()
    top = tmp_path / "own"
    top.mkdir()
    node.arguments = ["--mount", str(top), "--trust-s3-owners"]
    node.start()
    _wait_mounted(top)
    assert (top / "box/owned").stat().st_uid == 1234
    node.stop()


def test_names_that_no_file_system_has(node: Node, box: Mounted) -> None:
    client = node.s3()
    odd = ["x", "x/y", "d//e", "d/", "d/./f", "../up", "long/" + "n" * 300]
    for key in odd:
        client.put_object(Bucket="box", Key=key, Body=key.encode())
    bodies = set()
    for folder, _, files in os.walk(box.folder):
        bodies |= {(Path(folder) / name).read_bytes() for name in files}
    assert bodies == {key.encode() for key in odd}
    for child in box.folder.iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()
    assert keys(client) == {}


def test_times_of_a_change_are_those_that_the_kernel_had(node: Node, box: Mounted, tmp_path: Path) -> None:
    """Programs take a file whose ctime moved for one that was changed."""
    names = ["new", "over", "open", "set", "mode", "cut"]
    for name in names[1:]:
        (box.folder / name).write_bytes(b"bytes")
    times: dict[str, tuple[int, int]] = {}
    with (box.folder / "new").open("wb", buffering=0) as new, (box.folder / "open").open("r+b", buffering=0) as held:
        (box.folder / "over").write_bytes(b"others")
        new.write(b"bytes")
        held.write(b"written, then given a time")
        for name in ("open", "set"):
            os.utime(box.folder / name, (5, 5))
        (box.folder / "mode").chmod(0o600)
        os.truncate(box.folder / "cut", 2)
        time.sleep(0.02)
    for name in names:
        found = (box.folder / name).stat()
        times[name] = found.st_mtime_ns, found.st_ctime_ns
    assert {name for name, (modified_ns, changed_ns) in times.items() if modified_ns == changed_ns} == {
        "new",
        "over",
        "cut",
    }
    # each made, written and closed within a tick of the kernel's clock
    for name in (f"quick{number}" for number in range(50)):
        (box.folder / name).write_bytes(b"bytes")
        found = (box.folder / name).stat()
        times[name] = found.st_mtime_ns, found.st_ctime_ns
    box.stop()
    with Mounted(node.data, tmp_path / "again") as again:
        stats = {name: (again.folder / name).stat() for name in times}
        assert {name: (found.st_mtime_ns, found.st_ctime_ns) for name, found in stats.items()} == times


def test_many_read_at_a_time(node: Node, box: Mounted) -> None:
    """Each gets its own bytes, and what is written over meanwhile is old or new, block by block of the writer's."""
    block, blocks = 128 << 10, 24
    files = [box.folder / f"file-{number}" for number in range(4)]
    bodies = [random.Random(number).randbytes(blocks * block) for number in range(len(files))]
    for path, data in zip(files, bodies, strict=True):
        path.write_bytes(data)
    changed = files.pop(), bodies.pop()
    node.s3().put_object(Bucket="box", Key="small", Body=b"small" * 900)
    files, bodies = [*files, box.folder / "small"], [*bodies, b"small" * 900]

    def read(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(40):
            which = rng.randrange(len(files))
            with files[which].open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                first, length = rng.randrange(len(bodies[which])), rng.choice((100, 4096, 70_000, 1 << 20))
                assert os.pread(file.fileno(), length, first) == bodies[which][first : first + length]
            at = rng.randrange(blocks) * block
            with changed[0].open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                found = os.pread(file.fileno(), block, at)
            assert found in (changed[1][at : at + block], changed[1][at : at + block][::-1])

    def write() -> None:
        with changed[0].open("r+b", buffering=0) as file:
            for number in range(blocks):
                at = number * block
                os.pwrite(file.fileno(), changed[1][at : at + block][::-1], at)
                if number % 6 == 0:
                    os.fsync(file.fileno())

    with ThreadPoolExecutor(5) as pool:
        done = [pool.submit(write), *(pool.submit(read, seed) for seed in range(4))]
    for each in done:
        each.result()
    at_last = b"".join(changed[1][at : at + block][::-1] for at in range(0, blocks * block, block))
    assert changed[0].read_bytes() == body(node.s3(), changed[0].name) == at_last


@with_and_without_workers
def test_what_is_open_outlives_its_name(node: Node, box: Mounted) -> None:
    client, top = node.s3(), box.folder
    for way in ("unlink", "rename", "put", "delete"):
        path = top / "file"
        path.write_bytes(b"old " * 100_000)
        with path.open("rb", buffering=0) as file:
            assert file.read(4) == b"old "
            match way:
                case "unlink":
                    path.unlink()
                case "rename":
                    (top / "new").write_bytes(b"new")
                    (top / "new").rename(path)
                case "put":
                    client.put_object(Bucket="box", Key="file", Body=b"new")
                case _:
                    client.delete_object(Bucket="box", Key="file")
            assert path.exists() == (way in ("rename", "put"))
            assert os.fstat(file.fileno()).st_nlink == 0
            assert file.read() == b"old " * 99_999, way


@with_and_without_workers
def test_empty_directories_are_keys(node: Node, box: Mounted) -> None:
    """So S3 can empty a bucket that was written through a mount, and delete it."""
    client, top = node.s3(), box.folder
    (top / "a/b/c").mkdir(parents=True)
    os.setxattr(top / "a/b", "user.x", b"1")
    (top / "d").mkdir()
    (top / "d/file").write_bytes(b"bytes")
    assert keys(client) == {"a/b/c/": 0, "d/file": 5}
    head = client.head_object(Bucket="box", Key="a/b/c/")
    assert (head["ContentLength"], head["ContentType"]) == (0, "application/x-directory")
    assert head["LastModified"].timestamp() == int((top / "a/b/c").stat().st_mtime)
    (top / "d/file").unlink()
    assert keys(client) == {"a/b/c/": 0, "d/": 0}
    (top / "a/b/c").rmdir()
    assert keys(client) == {"a/b/": 0, "d/": 0}
    assert (top / "a/b").is_dir()  # the kernel knows it
    for key in keys(client):
        client.delete_object(Bucket="box", Key=key)
    assert not any((top / name).exists() for name in ("a/b", "a", "d"))
    assert (os.listdir(top), keys(client)) == ([], {})
    (top / "a").mkdir()
    client.put_object(Bucket="box", Key="a/", Body=b"")
    assert keys(client) == {"a/": 0}
    client.delete_object(Bucket="box", Key="a/")
    assert (os.listdir(top), keys(client)) == ([], {})
    box.stop()
    client.delete_bucket(Bucket="box")


@pytest.mark.parametrize("name", ["security.capability", "security.selinux", "system.posix_acl_access"])
def test_rights_are_not_kept_as_attributes(box: Mounted, name: str) -> None:
    """The kernel asks for the first before each write, ls for the others, of each file if not told that none has it."""
    (box.folder / "file").touch()
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        os.getxattr(box.folder / "file", name)
    # the kernel itself refuses a value that is none of some
    with pytest.raises(OSError, match=f"{os.strerror(errno.EOPNOTSUPP)}|{os.strerror(errno.EINVAL)}"):
        os.setxattr(box.folder / "file", name, b"value")


def test_a_mount_that_is_killed_has_lost_nothing_that_was_synced(node: Node, tmp_path: Path) -> None:
    with Mounted(node.data, tmp_path / "box") as mounted, (mounted.folder / "file").open("wb") as file:
        file.write(b"synced")
        file.flush()
        os.fsync(file.fileno())
        file.write(b", not synced")
        file.flush()
        os.unlink(mounted.folder / "file")
        os.mkdir(mounted.folder / "made")
        (mounted.folder / "made/kept").write_bytes(b"closed")
        mounted.stop(signal.SIGKILL)
        with pytest.raises(OSError, match="not connected"):
            os.fsync(file.fileno())
        with pytest.raises(OSError, match="not connected"):
            file.close()
    assert keys(node.s3()) == {"made/kept": 6}
    with Mounted(node.data, tmp_path / "again") as again:
        assert (again.folder / "made/kept").read_bytes() == b"closed"


@pytest.fixture
def hangup() -> Iterator[None]:
    """These tests may outlive a terminal (nohup), which what they start would take over."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
def test_what_was_written_is_published_when_the_terminal_hangs_up(node: Node, tmp_path: Path) -> None:
    with Mounted(node.data, tmp_path / "box") as mounted:
        number = os.open(mounted.folder / "file", os.O_WRONLY | os.O_CREAT)
        os.write(number, b"not synced")
        assert mounted.stop(signal.SIGHUP) == 0
        with pytest.raises(OSError, match="not connected"):
            os.close(number)
    assert node.s3().get_object(Bucket="box", Key="file")["Body"].read() == b"not synced"


def test_all_buckets_in_one_mount(node: Node, tmp_path: Path) -> None:
    client = node.s3()
    with Mounted(node.data, tmp_path / "all", bucket=None) as mounted:
        top = mounted.folder
        assert os.listdir(top) == ["box"]
        (top / "other").mkdir()
        assert {each["Name"] for each in client.list_buckets()["Buckets"]} == {"box", "other"}
        (top / "box/file").write_bytes(b"bytes")
        calls: dict[Callable[[], object], int] = {
            lambda: (top / "UPPER").mkdir(): errno.EINVAL,
            lambda: (top / "file").write_bytes(b""): errno.EPERM,
            lambda: (top / "other").rename(top / "third"): errno.EPERM,
            lambda: (top / "box/file").rename(top / "other/file"): errno.EXDEV,
            lambda: os.link(top / "box/file", top / "other/file"): errno.EXDEV,
            lambda: (top / "box").rmdir(): errno.ENOTEMPTY,
        }
        for call, number in calls.items():
            with pytest.raises(OSError, match=re.escape(os.strerror(number))):
                call()
        (top / "other").rmdir()
        assert os.listdir(top) == ["box"]


def test_one_mount_writes(node: Node, box: Mounted, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "couchestord", "mount", "--bucket", "box", str(tmp_path), "--data", str(node.data)]
    refused = subprocess.run(line, check=False, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "mounted already" in refused.stderr
    with Mounted(node.data, tmp_path / "second", options=["--read-only"]) as second:
        (box.folder / "file").write_bytes(b"bytes")
        assert (second.folder / "file").read_bytes() == b"bytes"
        with pytest.raises(OSError, match="Read-only"):
            (second.folder / "file").unlink()


def test_one_that_has_ended_is_not_waited_for(node: Node, tmp_path: Path) -> None:
    """What it had open is kept of one that was killed: nobody knows that it does not come back."""
    box = Mounted(node.data, tmp_path / "box")

    def mounts() -> tuple[int, int]:
        status = node.status()["mounts"]
        return len(status["shown"]), status["gone"]

    with box:
        wait_until(lambda: mounts() == (1, 0), 10, mounts)
    wait_until(lambda: mounts() == (0, 0), 10, mounts)
    with box:
        box.kill()
        wait_until(lambda: mounts() == (0, 1), 10, mounts)


def test_it_may_have_as_many_files_open_as_its_disks_need(node: Node, tmp_path: Path) -> None:
    """A disk that cannot open a file for want of descriptors is given up."""
    box = Mounted(node.data, tmp_path / "box", prefix=["prlimit", "--nofile=256:8192"])
    with box:
        (line,) = re.findall(r"Max open files +(\d+)", Path(f"/proc/{box.pid}/limits").read_text())
        assert int(line) >= 1000


WRITER = """
import os, sys
gone, other, file = open("gone", "rb"), open("other", "rb"), open("file", "wb", buffering=0)
file.write(b"before ")
os.unlink("gone")
print("written", flush=True)
sys.stdin.readline()
file.write(b"meanwhile ")
os.listdir(".")
file.write(b"after")
os.fsync(file.fileno())
assert (gone.read(), other.read()) == (b"gone " * 100_000, b"other " * 100_000)
print("synced", flush=True)
sys.stdin.readline()
"""


@contextmanager
def held_up(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@with_and_without_workers
def test_a_daemon_that_is_started_again_finds_its_mount(node: Node, box: Mounted) -> None:
    """Files stay open, one without a name as well, and one that S3 replaces before the mount is back; what was not
    synced is not lost, and calls wait.
    """
    (box.folder / "gone").write_bytes(b"gone " * 100_000)
    node.s3().put_object(Bucket="box", Key="other", Body=b"other " * 100_000)  # which the kernel has no bytes of
    # another process: this one would close the files anew in each process that it starts
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", WRITER], cwd=box.folder, **pipes) as writer:  # type: ignore[call-overload]
        assert writer.stdout.readline() == "written\n"
        node.kill()
        writer.stdin.write("go on\n")
        writer.stdin.flush()
        with held_up(box.pid):
            node.start()
            node.s3().put_object(Bucket="box", Key="other", Body=b"new")
        assert writer.stdout.readline() == "synced\n"
        assert body(node.s3(), "file") == b"before meanwhile after"
        assert (box.folder / "other").read_bytes() == b"new"
    (box.folder / "more").write_bytes(b"more")
    node.restart()
    assert (box.folder / "more").read_bytes() == b"more"


def test_a_daemon_mounts_its_own_store_and_unmounts_it(node: Node, tmp_path: Path) -> None:
    """A mount that is killed is there again, though it was left dead; at the end nothing is mounted."""
    top = tmp_path / "own"
    top.mkdir()
    node.stop()
    node.arguments = ["--mount", str(top)]
    node.start()
    _wait_mounted(top)
    (top / "box/file").write_bytes(b"bytes")
    assert body(node.s3(), "file") == b"bytes"
    (pid,) = [int(each) for each in _pids_of("couchestord", "mount", str(top))]
    os.kill(pid, signal.SIGKILL)
    _wait_mounted(top, but_not_by=pid)
    assert (top / "box/file").read_bytes() == b"bytes"
    node.kill()
    _wait_unmounted(top)
    node.start()
    _wait_mounted(top)
    node.stop()
    assert not os.path.ismount(top)


def test_with_workers_a_mount_outlives_the_process_of_the_store(node: Node, tmp_path: Path) -> None:
    """It is kept by a process of its own; files stay open. At the end what was written is published first."""
    top = tmp_path / "own"
    top.mkdir()
    node.stop()
    node.settings, node.arguments = with_workers(QUICK, 2), ["--mount", str(top)]
    node.start()
    _wait_mounted(top)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDER], cwd=top / "box", **pipes) as holder:  # type: ignore[call-overload]
        assert holder.stdout.readline() == "written\n"
        (mount,) = [int(each) for each in _pids_of("couchestord", "mount", str(top))]
        keeper = int(Path(f"/proc/{mount}/stat").read_text().rpartition(")")[2].split()[1])
        (store,) = set(node.children()) - set(node.status()["workers"]) - {keeper}
        os.kill(store, signal.SIGKILL)
        holder.stdin.write("go on\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "synced\n"
        assert _pids_of("couchestord", "mount", str(top)) == [mount]
        assert body(node.s3(), "file") == b"before after"
        os.kill(keeper, signal.SIGKILL)
        holder.kill()
    _wait_mounted(top, but_not_by=mount)
    with subprocess.Popen([sys.executable, "-c", HOLDER], cwd=top / "box", **pipes) as holder:  # type: ignore[call-overload]
        assert holder.stdout.readline() == "written\n"
        node.stop()
        holder.kill()
    assert not os.path.ismount(top)
    node.arguments = []
    node.start()
    assert body(node.s3(), "file") == b"before "


HOLDER = """
import os, sys
file = open("file", "wb", buffering=0)
file.write(b"before ")
print("written", flush=True)
sys.stdin.readline()
file.write(b"after")
os.fsync(file.fileno())
print("synced", flush=True)
sys.stdin.readline()
"""


def _wait_unmounted(folder: Path) -> None:
    deadline_s = time.monotonic() + 60
    while os.path.ismount(folder):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def _wait_mounted(folder: Path, but_not_by: int = 0) -> None:
    deadline_s = time.monotonic() + 60
    while not (_answers(folder) and but_not_by not in _pids_of("couchestord", "mount", str(folder))):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def _answers(folder: Path) -> bool:
    try:
        return os.path.ismount(folder) and bool(os.listdir(folder))
    except OSError:
        return False


def _pids_of(*words: str) -> list[int]:
    """Processes whose command line has these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if all(word.encode() in line for word in words):
            found.append(int(path.parent.name))
    return found


BUSY = """
import os, sys
count = 0
print("begun", flush=True)
while not os.path.exists("stop"):
    name = f"{count % 50}"
    os.mkdir(f"dir {name}")
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    os.link(name, f"dir {name}/linked")
    os.symlink("to", f"dir {name}/link")
    os.rename(name, f"dir {name}/renamed")
    os.setxattr(f"dir {name}/renamed", "user.a", b"value")
    os.removexattr(f"dir {name}/renamed", "user.a")
    for each in ("linked", "link", "renamed"):
        os.unlink(f"dir {name}/{each}")
    os.rmdir(f"dir {name}")
    count += 1
print(count)
"""


@with_and_without_workers
def test_what_is_under_way_when_the_daemon_is_killed_is_done_once(node: Node, box: Mounted) -> None:
    """Nobody sees EEXIST for what he has made himself, ENOENT for what he has removed, or any other error."""
    line = [sys.executable, "-c", BUSY]
    with subprocess.Popen(line, cwd=box.folder, stdout=subprocess.PIPE, text=True) as busy:
        assert busy.stdout is not None
        assert busy.stdout.readline() == "begun\n"
        for number in range(5):
            time.sleep(0.4 + 0.07 * number)
            node.kill()
            node.start()
        (box.folder / "stop").touch()
        assert int(busy.stdout.readline()) > 5
    assert busy.returncode == 0
    assert os.listdir(box.folder) == ["stop"]


MAPPER = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
number, where = ctypes.c_int, ctypes.c_void_p
libc.mmap.restype, libc.mmap.argtypes = where, (where, ctypes.c_size_t, number, number, number, ctypes.c_long)
libc.munmap.argtypes = where, ctypes.c_size_t
length = 1 << 20
fd = os.open("mapped", os.O_CREAT | os.O_RDWR)
os.ftruncate(fd, length)
at = libc.mmap(None, length, 3, 1, fd, 0)
os.close(fd)
print("mapped", flush=True)
input()
ctypes.memset(at, ord("x"), length)
libc.munmap(at, length)
print("unmapped", flush=True)
"""


def test_what_a_mapping_leaves_when_the_daemon_is_killed_is_kept_for_the_next(node: Node, box: Mounted) -> None:
    """Nobody is told how the last of a file ends that is closed and was mapped yet."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", MAPPER], cwd=box.folder, **pipes) as mapper:  # type: ignore[call-overload]
        assert mapper.stdout.readline() == "mapped\n"
        os.kill(node.pid, signal.SIGSTOP)
        mapper.stdin.write("go on\n")
        mapper.stdin.flush()
        assert mapper.stdout.readline() == "unmapped\n"
        time.sleep(1)  # the mount publishes it: the daemon does not answer
        node.kill()
    node.start()
    wait_until(lambda: body(node.s3(), "mapped") == b"x" * (1 << 20), 30, node.said)
