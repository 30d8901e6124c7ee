"""Programs that people run, on a mount: they end well, what they wrote is there, and S3 shows the same.

Seen to fail with the bugs of `planted_bugs.py` that name a test of this file.
"""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from daemon import Node, wait_until
from daemons import ROOT
from generations import SIZE_BYTES, state_of
from loops import need
from mounted import Mounted, mounted_box, needs_mounts, objects, tree_of
from telling import Telling

pytestmark = needs_mounts

Box = tuple[Node, Path]
SOURCE = ROOT / "couchestord/io"
"""A tree of some fifty files."""
FIO = """
[global]
size={size}
bs=4k
rw=randwrite
verify=crc32c
verify_state_save=0
verify_fatal=1
do_verify=1
fallocate=none
fsync=64
loops={loops}
[plain]
numjobs=2
[mapped]
ioengine=mmap
[direct]
direct=1
bs=16k
[unaligned]
bsrange=512-20k
bs_unaligned=1
"""


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Mounted]]:
    with mounted_box(tmp_path_factory.mktemp("programs")) as both:
        yield both


@pytest.fixture
def box(mounted: tuple[Node, Mounted], request: pytest.FixtureRequest) -> Box:
    """The daemon, and a folder of the mount that is the test's own; its name is the prefix of its keys."""
    node, mount = mounted
    folder = mount.folder / request.function.__name__
    folder.mkdir()
    return node, folder


def run(*line: str | Path, folder: Path | None = None) -> str:
    """A program that must end well; what it says."""
    quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    done = subprocess.run(
        line, cwd=folder, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, **quiet}
    )
    assert done.returncode == 0, f"{line} ended with {done.returncode}: {done.stdout[-1000:]} {done.stderr[-2000:]}"
    return done.stdout


def git(folder: Path, *line: str | Path) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e", "-c", "protocol.file.allow=always"]
    return run("git", "-C", folder, *who, *line)


def whole(folder: Path) -> dict[str, tuple[object, ...]]:
    """What lies below a folder, to the last attribute that programs carry from one file system to another."""
    found: dict[str, tuple[object, ...]] = {}
    for name, each in tree_of(folder).items():
        path = folder / name
        about = path.lstat()
        kind = os.getxattr(path, "user.kind") if "user.kind" in os.listxattr(path, follow_symlinks=False) else None
        found[name] = (each, about.st_mtime_ns, about.st_uid, about.st_gid, kind)
    return found


def odd_tree(folder: Path) -> Path:
    """A tree with all that tar and rsync know of."""
    shutil.copytree(SOURCE, folder / "code", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "empty" / "within").mkdir(parents=True)
    os.symlink("code/../nowhere", folder / "dangling")
    os.link(folder / "code/disks.py", folder / "second name")
    os.mkfifo(folder / "fifo", 0o640)
    with (folder / "sparse").open("wb") as file:
        file.seek(3_000_000)
        file.write(b"behind a hole")
    for number, name in enumerate([b"new\nline", b"\xff\xfe no text", "\u6587.txt".encode(), b"-rf", b" ", b"n" * 255]):
        path = folder / os.fsdecode(name)
        path.write_bytes(name * number)
        path.chmod(0o400 + number)
        os.chown(path, 1000 + number, 2000)
        os.setxattr(path, "user.kind", name)
    for number, path in enumerate(sorted(folder.rglob("*"), reverse=True)):
        os.utime(path, ns=(10**18, 1_234_567_890_123_456_789 + number), follow_symlinks=False)
    return folder


def test_tar_there_and_back(box: Box, tmp_path: Path) -> None:
    node, top = box
    source, back = odd_tree(tmp_path / "source"), tmp_path / "back"
    back.mkdir()
    (top / "out").mkdir()
    keeping = ["--format=posix", "--xattrs", "--xattrs-include=user.kind"]
    run("tar", *keeping, "-C", source, "-cf", top / "all.tar", ".")
    run("tar", *keeping, "-C", top / "out", "-xpf", top / "all.tar")
    expected = whole(source)
    assert whole(top / "out") == expected
    run("tar", *keeping, "--sparse", "-C", top / "out", "-czf", top / "again.tgz", ".")
    run("tar", *keeping, "-C", back, "-xpf", top / "again.tgz")
    assert whole(back) == expected
    found = objects(node.s3(), f"{top.name}/out/code/")
    assert found == {os.fspath(path.relative_to(source / "code")): path.read_bytes() for path in files(source / "code")}


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def test_rsync_has_nothing_to_do_the_second_time(box: Box, tmp_path: Path) -> None:
    need("rsync")
    node, top = box
    source, copy = odd_tree(tmp_path / "source"), top / "copy"

    def rsync(here: Path, there: Path) -> str:
        return run("rsync", "-aHX", "--delete", "--itemize-changes", f"{here}/", f"{there}/")

    assert ">f++++++" in rsync(source, copy)
    assert whole(copy) == whole(source)
    assert rsync(source, copy) == ""
    assert rsync(copy, source) == ""
    # what S3 changes is what it finds, and nothing else
    node.s3().put_object(Bucket="box", Key=f"{top.name}/copy/code/disks.py", Body=b"anew")
    node.s3().delete_object(Bucket="box", Key=f"{top.name}/copy/code/joint.py")
    changes = {line.split()[-1] for line in rsync(copy, source).splitlines()}
    assert changes - {"code/"} == {"code/disks.py", "code/joint.py"}
    assert (source / "code/disks.py").read_bytes() == b"anew"
    assert (source / "second name").stat().st_nlink == 1
    assert rsync(copy, source) == ""


def test_git(box: Box, tmp_path: Path) -> None:
    """Clone, work, collect garbage, clone again; nothing looks changed that was not."""
    need("git")
    _, top = box
    first, clone, last = tmp_path / "first", top / "clone", tmp_path / "last"
    shutil.copytree(SOURCE, first, ignore=shutil.ignore_patterns("__pycache__", "catalog"))
    git(tmp_path, "init", "-q", first)
    for number in range(2):
        (first / "disks.py").write_text(f"{number}\n")
        git(first, "add", "-A")
        git(first, "commit", "-qm", f"state {number}")
    git(top, "clone", "-q", f"file://{first}", clone)
    git(clone, "fsck", "--full", "--strict")
    git(clone, "checkout", "-qb", "branch", "HEAD~1")
    for number in range(1, 3):
        path = clone / f"new-{number}"
        path.write_text(f"{number}\n" * 1000 * number)
        git(clone, "add", path.name)
        git(clone, "commit", "-qm", f"file {number}")
    (clone / "joint.py").unlink()
    assert git(clone, "status", "--porcelain") == " D joint.py\n"
    git(clone, "stash", "-q")
    git(clone, "gc", "-q", "--prune=now")
    git(clone, "fsck", "--full", "--strict")
    assert git(clone, "status", "--porcelain") == ""
    assert git(clone, "count-objects").startswith("0 objects")
    git(tmp_path, "clone", "-q", "-b", "branch", f"file://{clone}", last)
    assert git(last, "rev-parse", "HEAD^{tree}") == git(clone, "rev-parse", "HEAD^{tree}")
    shutil.rmtree(last / ".git")
    assert {name: each for name, each in tree_of(clone).items() if not name.startswith(".git")} == tree_of(last)


def fio(top: Path, size: str, loops: int) -> None:
    need("fio")
    (top / "jobs").write_text(FIO.format(size=size, loops=loops))
    run("fio", f"--directory={top}", "--minimal", top / "jobs")


def test_fio_verifies_what_it_wrote(box: Box) -> None:
    node, top = box
    fio(top, "1m", 1)
    assert objects(node.s3(), f"{top.name}/") == {path.name: path.read_bytes() for path in files(top)}


@pytest.mark.soak
def test_fio_verifies_much(box: Box) -> None:
    node, top = box
    fio(top, "32m", 4)
    assert objects(node.s3(), f"{top.name}/") == {path.name: path.read_bytes() for path in files(top)}


def test_mmap_shared_and_private(box: Box) -> None:
    """Between two processes, and S3."""
    node, top = box
    client, path, key = node.s3(), top / "mapped", f"{top.name}/mapped"
    rng = random.Random(3)
    expected = bytearray(rng.randbytes(300_000))
    path.write_bytes(expected)
    with Telling("mapper.py", path) as one, Telling("mapper.py", path) as other:
        one.ask("put(shared, 5000, b'shared')")
        assert other.ask("shared[5000:5006]") == repr(b"shared")
        assert other.ask("os.pread(number, 6, 5000)") == repr(b"shared")
        one.ask("put(private, 5000, b'hidden')")
        assert one.ask("private[5000:5006]") == repr(b"hidden")
        one.ask("private.flush()")
        assert other.ask("shared[5000:5006]") == repr(b"shared")
        one.ask("shared.flush()")
        expected[5000:5006] = b"shared"
        assert objects(client, key) == {"": expected}
        for process in rng.choices([one, other], k=200):
            offset, data = rng.randrange(299_000), rng.randbytes(rng.randrange(1000))
            process.ask(f"put(shared, {offset}, {data!r})")
            expected[offset : offset + len(data)] = data
        assert other.ask("os.pwrite(number, b'written', 70_000)") == "7"
        expected[70_000:70_007] = b"written"
        assert one.ask("shared[70_000:70_007]") == repr(b"written")
        one.ask("shared.flush()")
        assert objects(client, key) == {"": expected}
        assert path.read_bytes() == expected
        # another file under the name is another file
        client.put_object(Bucket="box", Key=key, Body=b"anew")
        assert one.ask("shared[5000:5006]") == repr(b"shared")
        assert path.read_bytes() == b"anew"
        one.finish()
        other.finish()
    path.write_bytes(expected)
    with Telling("mapper.py", path) as one:
        one.ask("put(shared, 299_990, b'at the end')")
        one.finish()
    expected[299_990:] = b"at the end"
    wait_until(lambda: objects(client, key) == {"": expected}, 10, lambda: "not published without msync")
    assert path.read_bytes() == expected


def test_rclone_finds_both_views_the_same(box: Box, tmp_path: Path) -> None:
    need("rclone")
    node, top = box
    shutil.copytree(SOURCE, top / "code", ignore=shutil.ignore_patterns("__pycache__"))
    node.tool("rclone", "copy", SOURCE / "catalog", ":s3:box/" + f"{top.name}/put", "--exclude", "__pycache__/**")
    for folder in ("code", "put"):
        node.tool("rclone", "check", "--download", top / folder, f":s3:box/{top.name}/{folder}")
    node.tool("rclone", "sync", top / "code", f":s3:box/{top.name}/put")
    assert tree_of(top / "put").keys() == tree_of(top / "code").keys()
    node.tool("rclone", "check", "--download", top / "code", top / "put")


def test_s5cmd_syncs_what_was_written(box: Box, tmp_path: Path) -> None:
    need("s5cmd")
    node, top = box
    down = tmp_path / "down"
    shutil.copytree(SOURCE, top / "code", ignore=shutil.ignore_patterns("__pycache__"))
    sync = ["s5cmd", "--endpoint-url", node.addresses["s3"], "sync"]

    def get() -> list[str]:
        return node.tool(*sync, "--delete", f"s3://box/{top.name}/code/*", down).splitlines()

    assert len(get()) == len(files(top / "code"))
    assert contents(down) == contents(top / "code")
    assert get() == []
    with (top / "code/disks.py").open("ab") as file:
        file.write(b"more")
    (top / "code/joint.py").unlink()
    assert len(get()) == 2
    assert contents(down) == contents(top / "code")
    (down / "catalog/apply.py").write_bytes(b"other")
    (down / "catalog/new").write_bytes(b"new")
    assert len(node.tool(*sync, "--size-only", f"{down}/", f"s3://box/{top.name}/code/").splitlines()) == 2
    assert contents(top / "code") == contents(down)


def contents(folder: Path) -> dict[str, bytes]:
    return {os.fspath(path.relative_to(folder)): path.read_bytes() for path in files(folder)}


def ranged(client: Any, key: str, etag: str, length: int, size: int) -> bytes | None:
    """All of an object in ranges, None when it became another meanwhile."""
    found = b""
    while len(found) < size:
        part = f"bytes={len(found)}-{len(found) + length - 1}"
        try:
            answer = client.get_object(Bucket="box", Key=key, Range=part, IfMatch=etag)
        except ClientError as error:
            if error.response["Error"]["Code"] == "PreconditionFailed":
                return None
            raise
        with closing(answer["Body"]) as body:
            found += body.read()
    return found


def test_ranges_of_one_etag_are_of_one_state(box: Box) -> None:
    """The etag of a file is refused once it was written anew, and what is read under one is never of two states."""
    node, top = box
    client, path, key = node.s3(), top / "file", f"{top.name}/file"

    def etag() -> str:
        found: str = client.head_object(Bucket="box", Key=key)["ETag"]
        return found

    path.write_bytes(state_of(0))
    etags = [etag()]
    assert ranged(client, key, etags[0], 123_457, SIZE_BYTES) == state_of(0)
    path.write_bytes(state_of(0))
    with path.open("r+b", buffering=0) as file:
        etags.append(etag())
        file.write(b"anew")
        assert ranged(client, key, etags[1], 100_000, SIZE_BYTES) == state_of(0)
        os.fsync(file.fileno())
        etags.append(etag())
        os.ftruncate(file.fileno(), 5)
    etags.append(etag())
    for old in etags[:-1]:
        assert ranged(client, key, old, 10, 5) is None
    assert len(set(etags)) == 4
    path.write_bytes(state_of(0))
    whole_count = 0
    with Telling("generations.py", path) as writer:
        while whole_count < 10:
            writer.wait_for(1)
            found = ranged(client, key, etag(), 300_000, SIZE_BYTES)
            if found is not None:
                number = int(found[:9])
                assert found == state_of(number)
                whole_count += 1
        writer.kill()
        assert path.read_bytes() in [state_of(int(writer.said[-1])), *(state_of(int(writer.said[-1]) + 1),)]
