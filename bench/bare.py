"""What a request costs without a store: nginx that serves files, a server that only calls sendfile, bare hashing and
writing. All on loopback, without signatures.

nginx is the distribution's package: the program on PATH, else `apt-get download` unpacked beside the Python that runs
this, so that no service of it is set up or started.
"""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from bench.load import Plain
from bench.peers import ROOT, Popen, Server
from bench.process import stop

K, M = 4, 2
MIB: Final = 1 << 20
READY_TIMEOUT_S: Final = 20.0
NGINX_CONF: Final = """\
worker_processes 1;
pid nginx.pid;
error_log error.log;
{user}
events {{ worker_connections 1024; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  server {{
    listen 127.0.0.1:{port};
    root files;
  }}
}}
"""


def nginx_program() -> str | None:
    """Path of nginx, got with apt-get where it is missing and that is possible; None: there is none."""
    unpacked = Path(sys.prefix) / "nginx"
    program = unpacked / "usr/sbin/nginx"
    found = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None and not program.exists() and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        if os.geteuid() == 0 and not _download(unpacked):
            subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True)
        if not program.exists():
            _download(unpacked)
    candidate = found or str(program)
    works = (
        Path(candidate).exists() and not subprocess.run([candidate, "-v"], capture_output=True, check=False).returncode
    )
    return candidate if works else None


def _download(unpacked: Path) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        line = ["apt-get", "download", "-qq", "nginx"]
        if subprocess.run(line, cwd=folder, check=False, capture_output=True).returncode:
            return False
        for package in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)
    return True


@contextmanager
def nginx(program: str, folder: Path, files: dict[str, bytes]) -> Iterator[Server]:
    """nginx with one worker, no log of accesses, else its defaults, which read rather than sendfile: for 4 KiB that is
    cheaper. `files` are by path below its root.
    """
    for name, content in files.items():
        path = folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # the folder is its owner's alone
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(NGINX_CONF.format(port=port, user=user))
    line = [program, "-p", str(folder), "-c", "nginx.conf", "-e", "error.log", "-g", "daemon off;"]
    process = subprocess.Popen(line, text=True)
    try:
        _wait_for(port, process)
        yield Server("nginx", process, port, Plain(port), folder)
    finally:
        stop(process)


def _wait_for(port: int, process: Popen) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise SystemExit("nginx did not start")


@contextmanager
def sendfile(folder: Path, body: bytes) -> Iterator[Server]:
    """`bench/sendfile.py` with one file."""
    folder.mkdir()
    (folder / "body").write_bytes(body)
    line = [sys.executable, "-m", "bench.sendfile", str(folder / "body")]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield Server("sendfile", process, port, Plain(port), folder)
    finally:
        stop(process)


def md5(body: bytes) -> None:
    """What a PUT cannot do without: its ETag."""
    hashlib.md5(body, usedforsecurity=False).digest()


def write_shards(body: bytes, folder: Path) -> None:
    """What a PUT of `body` as 4+2 cannot do without: the bytes of its shards in six new files, synced. The files stay,
    as an object does: memory that was just freed is cheaper to write to than fresh memory.
    """
    folder.mkdir()
    view, shard_bytes, batch_bytes = memoryview(body), MIB // K, 4 * MIB
    numbers = [os.open(folder / str(index), os.O_RDWR | os.O_CREAT) for index in range(K + M)]
    for at in range(0, len(body), batch_bytes):
        for index, number in enumerate(numbers):
            starts = range(at + index % K * shard_bytes, at + batch_bytes, MIB)
            os.pwritev(number, [view[start : start + shard_bytes] for start in starts], at // K)
    for number in numbers:
        os.fdatasync(number)
        os.close(number)
