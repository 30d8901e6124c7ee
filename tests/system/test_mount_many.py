"""Many files in one directory, many that are open at once, and names of all kinds, through the kernel.

Seen to fail with the bugs of `planted_bugs.py` that name a test of this file.
"""

import ctypes
import errno
import os
import random
import re
import resource
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from daemon import Node, wait_until
from loops import need
from mounted import Mounted, listed, mounted_box, needs_mounts
from raw_s3 import Raw
from telling import Telling

from couchestord.model import AccessKey

pytestmark = needs_mounts


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Mounted]]:
    with mounted_box(tmp_path_factory.mktemp("many")) as both:
        yield both


def put_many(node: Node, prefix: str, source: Path, count: int) -> None:
    """`count` files of ten bytes, which say their numbers."""
    need("s5cmd")
    source.mkdir()
    for number in range(count):
        (source / f"{number}").write_bytes(b"%010d" % number)
    node.tool("s5cmd", "--endpoint-url", node.addresses["s3"], "cp", f"{source}/", f"s3://box/{prefix}/")


def many_in_one_directory(node: Node, mount: Mounted, folder: Path, count: int) -> None:
    """Made through S3, listed, looked at and removed through the mount, while others come."""
    top = mount.folder / "many"
    put_many(node, "many", folder / "source", count)
    (top / "new").write_bytes(b"new")
    with os.scandir(top) as entries:
        found = {entry.name: entry.stat().st_size for entry in entries}
    assert found == {**{f"{number}": 10 for number in range(count)}, "new": 3}
    for number in random.Random(1).sample(range(count), 50):
        assert (top / f"{number}").read_bytes() == b"%010d" % number
    before = {name: row[1] for name, row in listed(node.s3(timeout_s=60), "many/").items()}
    assert before == found
    subprocess.run(["rm", "-rf", top], check=True)
    assert not top.exists()
    assert listed(node.s3(), "many/") == {}


def test_a_directory_of_many_files(mounted: tuple[Node, Mounted], tmp_path: Path) -> None:
    many_in_one_directory(*mounted, tmp_path, 500)


@pytest.mark.soak
def test_a_directory_of_a_hundred_thousand_files(mounted: tuple[Node, Mounted], tmp_path: Path) -> None:
    many_in_one_directory(*mounted, tmp_path, 100_000)


def about(mount: Mounted) -> tuple[int, int]:
    """(bytes of memory, open files) of a mount's process."""
    process = Path(f"/proc/{mount.pid}")
    found = re.search(r"^VmRSS:\s+(\d+) kB", (process / "status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10, len(os.listdir(process / "fd"))


def many_open(node: Node, mount: Mounted, folder: Path, count: int, memory_bytes_max: int) -> None:
    prefix = f"open-{count}"
    put_many(node, prefix, folder / "source", count)
    before = about(mount)
    with Telling("opener.py", mount.folder / prefix, count) as opener:
        opener.wait_for(1)
        during = about(mount)
        assert during[0] - before[0] < memory_bytes_max
        assert during[1] - before[1] < 50
        node.restart()
        opener.finish()
    found = {name: row[1] for name, row in listed(node.s3(), f"{prefix}/").items()}
    written = {number: len(b"%010dwritten %d" % (number, number)) for number in range(0, count, 3)}
    assert found == {f"{number}": written.get(number, 10) for number in range(count) if number % 5}


def test_many_open_files(mounted: tuple[Node, Mounted], tmp_path: Path) -> None:
    many_open(*mounted, tmp_path, 500, 16 << 20)


@pytest.mark.soak
def test_ten_thousand_open_files(mounted: tuple[Node, Mounted], tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 12_000:
        pytest.skip("needs ten thousand open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (12_000, before[1]))
    try:
        many_open(*mounted, tmp_path, 10_000, 64 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_memory_is_given_back(mounted: tuple[Node, Mounted]) -> None:
    """What passed through is kept for what comes next, but not for long."""
    _, mount = mounted
    before = about(mount)[0]
    line = ["dd", "if=/dev/zero", "of=large", "bs=1M", "count=96", "conv=fsync", "status=none"]
    subprocess.run(line, check=True, cwd=mount.folder)
    assert about(mount)[0] - before > 48 << 20
    wait_until(lambda: about(mount)[0] - before < 24 << 20, 60, lambda: about(mount))


UTF8_NAMES = (
    b"n" * 255,
    "\u6587".encode() * 85,
    "\U0001f4be".encode() * 63 + b"abc",
    b"e\xcc\x81" * 85,
    b" " * 255,
    b"." * 255,
    b"\\" * 255,
)
NAMES = (
    *UTF8_NAMES,
    "\u6587\u4ef6".encode("shift-jis") * 63 + b"abc",
    "\u00e9".encode("latin-1") * 255,
    bytes(range(0x80, 0x100)) + b"x" * 127,
    bytes(each for each in range(1, 0x80) if each != 0x2F) + b"x" * 129,
)


def test_names_of_255_bytes_in_any_encoding(mounted: tuple[Node, Mounted]) -> None:
    """What is made through the mount S3 shows, byte for byte; names of UTF-8 may come from there, too."""
    node, mount = mounted
    top, client = os.fsencode(mount.folder) + b"/names/", node.s3()
    os.mkdir(top)
    for name in NAMES:
        assert len(name) == 255
        with open(top + name, "wb") as file:
            file.write(name)
        with pytest.raises(OSError, match=re.escape(os.strerror(errno.ENAMETOOLONG))):
            os.mkdir(top + name + b"x")
    with closing(Raw(int(node.addresses["s3"].rpartition(":")[2]))) as raw:
        key = AccessKey("", *node.key, 0)
        for name in NAMES:
            assert raw.ask(key, "GET", b"/box/names/" + name).body == name
    for name in UTF8_NAMES:
        client.put_object(Bucket="box", Key="names/" + name.decode(), Body=name[::-1])
    assert set(os.listdir(top)) == set(NAMES)
    rows = client.list_objects_v2(Bucket="box", Prefix="names/", EncodingType="url")["Contents"]
    assert {unquote_to_bytes(row["Key"]) for row in rows} == {b"names/" + name for name in NAMES}
    for name in NAMES:
        os.rename(top + name, top + b"new")
        with open(top + b"new", "rb") as file:
            assert file.read() == (name[::-1] if name in UTF8_NAMES else name)
    os.unlink(top + b"new")
    assert os.listdir(top) == []


class _Entry(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("length", ctypes.c_ushort),
        ("kind", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


class Directory:
    """An open directory, as readdir(3) and its kin have it."""

    def __init__(self, path: Path) -> None:
        self._c = ctypes.CDLL(None)
        self._c.opendir.restype = ctypes.c_void_p
        self._c.readdir.restype = ctypes.POINTER(_Entry)
        self._c.telldir.restype = ctypes.c_long
        self._stream = ctypes.c_void_p(self._c.opendir(os.fsencode(path)))

    def read(self, count: int) -> list[tuple[str, int]]:
        """The next entries, and where to go on behind each; fewer at the end."""
        found: list[tuple[str, int]] = []
        while len(found) < count and (entry := self._c.readdir(self._stream)):
            found.append((os.fsdecode(entry.contents.name), self._c.telldir(self._stream)))
        return found

    def seek(self, place: int) -> None:
        self._c.seekdir(self._stream, ctypes.c_long(place))

    def close(self) -> None:
        self._c.closedir(self._stream)


def test_a_listing_goes_on_where_it_was_whatever_comes_and_goes(mounted: tuple[Node, Mounted]) -> None:
    """Each entry that is there all the time is listed once, none that is gone, from any place that was told before."""
    node, mount = mounted
    top, client, rng = mount.folder / "listed", node.s3(), random.Random(5)
    top.mkdir()
    for number in range(300):
        (top / f"{number}").touch()
    directory = Directory(top)
    entries = directory.read(1000)
    assert {name for name, _ in entries} == {".", "..", *(f"{number}" for number in range(300))}
    there = {f"{number}" for number in range(300)}
    for turn in range(12):
        gone = rng.sample(sorted(there), 10)
        there -= set(gone)
        for name in gone[:3]:
            (top / name).unlink()
        for name in gone[3:6]:
            client.delete_object(Bucket="box", Key=f"listed/{name}")
        for name in gone[6:]:
            (top / name).rename(mount.folder / f"renamed-{name}")
        client.put_object(Bucket="box", Key=f"listed/put-{turn}", Body=b"")
        (top / f"made-{turn}").touch()
        at = rng.randrange(len(entries))
        directory.seek(0)
        directory.read(1)
        directory.seek(entries[at][1])
        found = [name for name, _ in directory.read(1000)]
        assert len(set(found)) == len(found)
        assert [name for name in found if name in there] == [name for name, _ in entries[at + 1 :] if name in there]
        assert not set(found) & set(gone)
    directory.close()
