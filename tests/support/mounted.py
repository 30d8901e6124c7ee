"""A bucket that is really mounted, by a process that a test starts, stops and kills."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import pytest
from daemon import QUICK, Node, with_workers
from daemons import environment
from modes import mode

_END_S: Final = 60.0
needs_mounts = pytest.mark.skipif(
    not Path("/dev/fuse").exists() or os.geteuid() != 0 or mode().is_mounted,
    reason="needs /dev/fuse, root, and a bucket that nothing else has mounted",
)


class Mounted:
    """Mounted while the block runs; unmounted at its end whatever happens."""

    def __init__(
        self,
        data: Path,
        folder: Path,
        bucket: str | None = "box",
        options: Sequence[str] = (),
        *,
        prefix: Sequence[str] = (),
    ) -> None:
        """`data`: the folder of a daemon that runs. `folder` is made; it is what the bucket is seen in. `prefix`: words
        that begin the command line.
        """
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._line = [
            *prefix,
            sys.executable,
            "-m",
            "couchestord",
            "mount",
            os.fspath(folder),
            "--data",
            os.fspath(data),
        ]
        self._line += ["--bucket", bucket] if bucket is not None else []
        self._line += options
        self._log = folder.with_name(folder.name + ".log")
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Mounted":
        return self.start()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> "Mounted":
        """Mount, again after `stop` or `kill`."""
        with self._log.open("a") as errors:
            self.process = subprocess.Popen(
                self._line, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment()
            )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert "mounted on" in said, self.said()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"the mount's log ends:\n{self.said()[-4000:]}")
        code = self.stop()
        if error is None:
            assert code == 0, self.said()

    def said(self) -> str:
        """Its log."""
        return self._log.read_text() if self._log.exists() else ""

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends the process, if it runs, and whatever it left mounted; its exit code."""
        code = self._end(number)
        subprocess.run(["umount", "-l", os.fspath(self.folder)], check=False, stderr=subprocess.DEVNULL)
        return code

    def kill(self) -> None:
        """kill -9; what it mounted is left, dead, until `start` or `stop`."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        with suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            code = process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait(_END_S)
        assert process.stdout is not None
        process.stdout.close()
        return code


@contextmanager
def mounted_box(folder: Path, workers_count: int = 0) -> Iterator[tuple[Node, Mounted]]:
    """A daemon with a bucket `box`, mounted on `folder`/box."""
    with Node(folder / "data", settings=with_workers(QUICK, workers_count)).start() as node:
        node.s3().create_bucket(Bucket="box")
        with Mounted(node.data, folder / "box") as mounted:
            yield node, mounted


def orphans(node: Node) -> int:
    """Files without a name."""
    with closing(sqlite3.connect(f"file:{node.data}/catalog.sqlite?mode=ro", uri=True)) as connection:
        (count,) = connection.execute("select count(*) from orphan").fetchone()
        return int(count)


def listed(client: Any, prefix: str = "") -> dict[str, tuple[str, int]]:
    """(etag, size) of what S3 lists below a prefix, by the rest of the key."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="box", Prefix=prefix)
    rows = [row for page in pages for row in page.get("Contents", ())]
    return {row["Key"].removeprefix(prefix): (row["ETag"], row["Size"]) for row in rows}


def fetched(client: Any, key: str, etag: str, size: int) -> bytes:
    """An object that was listed so. HEAD and GET agree."""
    head, answer = client.head_object(Bucket="box", Key=key), client.get_object(Bucket="box", Key=key)
    with closing(answer["Body"]) as body:  # used as a context itself, it compares no checksum
        data: bytes = body.read()
    told = [(each["ETag"], each["ContentLength"]) for each in (head, answer)]
    assert [*told, (etag, len(data))] == [(etag, size)] * 3, key
    return data


def objects(client: Any, prefix: str = "") -> dict[str, bytes]:
    """What S3 has below a prefix, by the rest of the key. Listing, HEAD and GET agree."""
    return {key: fetched(client, prefix + key, *row) for key, row in listed(client, prefix).items()}


def tree_of(folder: Path) -> dict[str, object]:
    """What lies below a folder: bytes, targets and modes by path."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = os.fspath(path.relative_to(folder))
        mode = path.lstat().st_mode & 0o7777
        if path.is_symlink():
            found[name] = "link", os.readlink(path)
        elif path.is_dir():
            found[name] = "folder", mode, path.lstat().st_nlink
        elif not path.is_file():
            found[name] = "special", path.lstat().st_mode
        else:
            found[name] = "file", mode, path.lstat().st_nlink, path.read_bytes()
    return found
