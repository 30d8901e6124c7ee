"""The kernel keeps what it has looked up in a mount, and forgets it when something else changes it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from daemon import QUICK, Node, with_workers
from mounted import Mounted, needs_mounts

pytestmark = needs_mounts


@pytest.fixture
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """A daemon with a bucket `box`."""
    with Node(tmp_path / "data", settings=with_workers(QUICK, getattr(request, "param", 0))).start() as made:
        made.s3().create_bucket(Bucket="box")
        yield made


@pytest.fixture
def box(node: Node, tmp_path: Path) -> Iterator[Mounted]:
    with Mounted(node.data, tmp_path / "box") as mounted:
        yield mounted


@contextmanager
def stopped(mounted: Mounted, seconds_max: float = 30) -> Iterator[None]:
    """Whatever is answered while the body runs is answered by the kernel."""
    assert mounted.process is not None
    mounted.process.send_signal(signal.SIGSTOP)
    # who waits for the mount in vain can only be freed by it
    guard = threading.Timer(seconds_max, mounted.process.send_signal, [signal.SIGCONT])
    guard.start()
    try:
        yield
        assert guard.is_alive(), "something was asked of the mount"
    finally:
        guard.cancel()
        mounted.process.send_signal(signal.SIGCONT)


def test_what_was_looked_up_is_kept(node: Node, box: Mounted) -> None:
    """Names, names that are not there, attributes and bytes."""
    top = box.folder
    node.s3().put_object(Bucket="box", Key="a/b/put", Body=b"x" * 300_000)
    (top / "written").write_bytes(b"y" * 300_000)
    looks: list[Callable[[], object]] = [
        lambda: (top / "a/b/put").stat(),
        lambda: (top / "a/none").exists(),
        lambda: (top / "a").stat(),
        lambda: (top / "written").stat(),
    ]
    found = (top / "a/b/put").read_bytes(), (top / "written").read_bytes()
    with (top / "a/b/put").open("rb") as put, (top / "written").open("rb") as written:
        before = [look() for look in looks]
        with stopped(box):
            assert [look() for look in looks] == before
            assert (os.pread(put.fileno(), 300_000, 0), os.pread(written.fileno(), 300_000, 0)) == found
    device = top.stat().st_dev
    ahead = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    _until(lambda: ahead.read_text() == "1024\n")


@pytest.mark.parametrize("node", [0, 2], indirect=True)
def test_what_s3_changes_is_seen_at_once(node: Node, box: Mounted) -> None:
    client, top = node.s3(), box.folder

    def put(key: str, body: bytes = b"bytes", **more: Any) -> None:
        client.put_object(Bucket="box", Key=key, Body=body, **more)

    def seen(path: str) -> bytes | None:
        assert (path.rpartition("/")[2] in os.listdir((top / path).parent)) == (top / path).exists()
        return (top / path).read_bytes() if (top / path).exists() else None

    for number in range(20):
        body = b"%d" % number * 1000
        assert seen("file") is None
        put("file", body)
        assert seen("file") == body
        put("file", b"longer " + body)
        assert (top / "file").stat().st_size == 7 + len(body)
        assert seen("file") == b"longer " + body
        client.copy_object(Bucket="box", Key="file", CopySource="box/file", MetadataDirective="REPLACE")
        assert seen("file") == b"longer " + body
        client.delete_objects(Bucket="box", Delete={"Objects": [{"Key": "file"}]})
    # directories come and go with their keys
    for _ in range(5):
        assert not (top / "new").exists()
        put("new/dir/key")
        assert seen("new/dir/key") == b"bytes"
        links = (top / "new").stat().st_nlink
        put("new/other/key")
        assert (top / "new").stat().st_nlink == links + 1
        for key in ("new/dir/key", "new/other/key"):
            client.delete_object(Bucket="box", Key=key)
    # so do their times
    put("new/kept")
    for path, change in (
        ("new", lambda: put("new/other")),
        (".", lambda: put("newer/dir/key")),
        ("new", lambda: put("new/dir/dir/key")),
        ("new", lambda: client.delete_object(Bucket="box", Key="new/dir/dir/key")),
        ("new", lambda: client.delete_object(Bucket="box", Key="new/other")),
        (".", lambda: client.delete_object(Bucket="box", Key="newer/dir/key")),
    ):
        before = (top / path).stat()
        time.sleep(0.02)  # more than a tick of the kernel's clock
        change()
        after = (top / path).stat()
        assert after.st_mtime_ns > before.st_mtime_ns
        assert after.st_ctime_ns > before.st_ctime_ns
        put("new/kept", b"over what is there")
        assert (top / path).stat() == after
    # one name for two: an object, and the directory of its name
    put("twin")
    assert (top / "twin").is_file()
    put("twin/below")
    assert (top / "twin").is_dir()
    client.delete_object(Bucket="box", Key="twin/below")
    assert (top / "twin").is_file()
    upload = client.create_multipart_upload(Bucket="box", Key="twin")["UploadId"]
    part = client.upload_part(Bucket="box", Key="twin", UploadId=upload, PartNumber=1, Body=b"part")["ETag"]
    client.complete_multipart_upload(
        Bucket="box", Key="twin", UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part}]}
    )
    assert seen("twin") == b"part"
    # what has another name still, or is open
    (top / "one").write_bytes(b"linked")
    os.link(top / "one", top / "other")
    assert (top / "other").stat().st_nlink == 2
    put("one")
    assert (top / "other").stat().st_nlink == 1
    with (top / "other").open("rb") as file:
        assert os.fstat(file.fileno()).st_nlink == 1
        client.delete_object(Bucket="box", Key="other")
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read() == b"linked"


def test_what_one_mount_changes_others_see(node: Node, box: Mounted, tmp_path: Path) -> None:
    top = box.folder
    with (
        Mounted(node.data, tmp_path / "second", options=["--read-only"]) as second,
        Mounted(node.data, tmp_path / "all", bucket=None, options=["--read-only"]) as every,
    ):
        others = [second.folder, every.folder / "box"]
        for number in range(20):
            assert not any((other / "file").exists() for other in others)
            (top / "file").write_bytes(b"before")
            assert [(other / "file").read_bytes() for other in others] == [b"before"] * 2
            os.truncate(top / "file", 3)
            assert [(other / "file").stat().st_size for other in others] == [3, 3]
            with (top / "file").open("r+b") as file:
                file.write(b"%03d" % number)
            assert [(other / "file").read_bytes() for other in others] == [b"%03d" % number] * 2
            (top / "file").chmod(0o640 + number % 8)
            assert {(other / "file").stat().st_mode & 0o777 for other in others} == {0o640 + number % 8}
            (top / "file").rename(top / "moved")
            assert [(other / "moved").exists() for other in others] == [True, True]
            assert [(other / "file").exists() for other in others] == [False, False]
            (top / "dir").mkdir()
            assert [(other / "dir").is_dir() for other in others] == [True, True]
            (top / "dir").rmdir()
            (top / "moved").unlink()
            assert [list(other.iterdir()) for other in others] == [[], []]
        assert not (every.folder / "late").exists()
        node.s3().create_bucket(Bucket="late")
        assert (every.folder / "late").is_dir()
        node.s3().delete_bucket(Bucket="late")
        assert not (every.folder / "late").exists()


def test_a_mount_that_hangs_is_waited_for_once(node: Node, box: Mounted) -> None:
    client = node.s3()
    client.put_object(Bucket="box", Key="file", Body=b"before")
    assert (box.folder / "file").read_bytes() == b"before"
    with stopped(box):
        begun_s = time.monotonic()
        client.put_object(Bucket="box", Key="file", Body=b"after")
        first_s = time.monotonic() - begun_s
        for number in range(20):
            client.put_object(Bucket="box", Key=f"{number}", Body=b"")
        others_s = time.monotonic() - begun_s - first_s
    assert first_s > 1.9
    assert others_s < 2
    _until(lambda: (box.folder / "file").read_bytes() == b"after")
    # it is waited for again
    _until(lambda: _is_waited_for(node, box))


def _is_waited_for(node: Node, box: Mounted) -> bool:
    assert (box.folder / "again").exists() in (True, False)
    node.s3().put_object(Bucket="box", Key="again", Body=b"")
    seen = (box.folder / "again").exists()
    node.s3().delete_object(Bucket="box", Key="again")
    return seen


def test_what_changed_while_a_mount_had_no_daemon(node: Node, box: Mounted) -> None:
    client, top = node.s3(), box.folder
    client.put_object(Bucket="box", Key="dir/file", Body=b"before")
    assert (top / "dir/file").read_bytes() == b"before"
    assert not (top / "dir/new").exists()
    with subprocess.Popen(["sleep", "100"], cwd=top / "dir") as holder, stopped(box):
        node.kill()
        node.start()
        client = node.s3()
        client.put_object(Bucket="box", Key="dir/file", Body=b"after")
        client.put_object(Bucket="box", Key="dir/new", Body=b"new")
        holder.kill()
    _until(lambda: (top / "dir/new").exists() and (top / "dir/file").read_bytes() == b"after")


MAKER = """
import os
folder = os.open("box", os.O_PATH)
os.setgid(1000)
os.setuid(1000)
print("asks", flush=True)
try:
    os.write(os.open("file", os.O_CREAT | os.O_WRONLY | {flags}, 0o600, dir_fd=folder), b"new")
    print("opened")
except PermissionError:
    print("refused")
"""


@pytest.mark.parametrize(("flags", "mode"), [("0", 0o644), ("os.O_TRUNC", 0o666)])
def test_a_new_file_that_s3_has_just_put_is_opened_as_one_that_is_there(
    node: Node, tmp_path: Path, flags: str, mode: int
) -> None:
    """The kernel keeps that there is none, and asks for a new one."""
    with Mounted(node.data, tmp_path / "box", options=["--allow-other"]) as box:
        box.folder.chmod(0o777)
        assert not (box.folder / "file").exists()
        maker = [sys.executable, "-c", MAKER.format(flags=flags)]
        with stopped(box), subprocess.Popen(maker, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as asking:
            metadata = {"mode": str(mode)}
            node.s3().put_object(Bucket="box", Key="file", Body=b"put by S3", Metadata=metadata)
            assert asking.stdout is not None
            assert asking.stdout.readline() == "asks\n"
            time.sleep(1)
            assert box.process is not None
            box.process.send_signal(signal.SIGCONT)
            assert asking.stdout.readline() == ("opened\n" if mode & 2 else "refused\n")
        found = b"new" if mode & 2 else b"put by S3"
        _until(lambda: (box.folder / "file").read_bytes() == found)
        assert node.s3().get_object(Bucket="box", Key="file")["Body"].read() == found


def _until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
