"""A store served by a real daemon process that a test starts, stops, kills and starts again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import boto3
import botocore.config
import botocore.exceptions
from daemons import FREE_PORTS, environment
from modes import WORKERS, mode

from couchestord.frontends.admin.client import ask

_START_S: Final = 90.0
_END_S: Final = 60.0
_POLL_S: Final = 0.05

QUICK: Final[Mapping[str, str]] = {
    "COUCHESTORD_JOURNAL__DESTAGE_INTERVAL": "0.2 s",
    "COUCHESTORD_JOURNAL__PREALLOCATE": "256 KiB",
    "COUCHESTORD_STORE__MONITOR_INTERVAL": "0.1 s",
    "COUCHESTORD_STORE__REBUILD_GRACE": "0.5 s",
    "COUCHESTORD_STORE__BACKGROUND_RATE": "512 MiB",
}
"""Settings under which background work is done within a test's patience."""
NO_DESTAGE: Final[Mapping[str, str]] = {**QUICK, "COUCHESTORD_JOURNAL__DESTAGE_INTERVAL": "1 d"}
"""Small objects stay in the journal."""
UNCACHED: Final[Mapping[str, str]] = {"COUCHESTORD_CACHE__L1_SIZE": "0"}
"""Beside others: every read is one of the disks."""
PREFERS_UNCACHED: Final[Mapping[str, str]] = {} if mode().caches else UNCACHED
"""As that, where it makes the test stronger and is not what it rests on."""
ONE_PROCESS: Final[Mapping[str, str]] = {WORKERS: "0"}


def with_workers(base: Mapping[str, str], count: int) -> dict[str, str]:
    """Settings of a daemon with so many workers; 0: as the mode says."""
    return {**base, WORKERS: str(count)} if count else dict(base)


class Node:
    """One data folder and the daemon on it, which is not running until `start`. A context manager: kills at the end."""

    def __init__(
        self,
        data: Path,
        *,
        settings: Mapping[str, str] = QUICK,
        prefix: Sequence[str] = (),
        log: Path | None = None,
    ) -> None:
        """`settings`: whether there are workers, and which caches, is as the mode says (`modes`) unless they do.
        `prefix`: a command that runs the daemon as the process it was started as (strace -D, prlimit).
        """
        self.data = data
        self.settings = dict(settings)
        self.prefix = list(prefix)
        self.arguments: list[str] = []
        """More of the command line of `couchestord up`."""
        self.log = log or data.with_name(data.name + ".log")
        self.process: subprocess.Popen[str] | None = None
        self.addresses: dict[str, str] = {}
        self._mount = self.log.with_suffix(".mount")
        self._log_start = 0
        self._key: tuple[str, str] | None = None
        self._clients: dict[tuple[float, int], Any] = {}

    def __enter__(self) -> "Node":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        if mode().is_mounted:  # the kernel has it until its process is gone
            subprocess.run(["umount", "-l", self._mount], check=False, stderr=subprocess.DEVNULL)
        self._close_clients()
        if error is not None:
            error.add_note(f"the daemon's log ends:\n{self.said()[-4000:]}")

    # -- the process -----------------------------------------------------------------------------------------------

    @property
    def disks(self) -> list[Path]:
        """The disk folders, by number, those that should be there."""
        return [self.data / f"disk-{index}" for index in range(6)]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> "Node":
        """Run `couchestord up` on free ports and wait until it says it is ready and /readyz agrees."""
        ready = self.spawn()
        assert ready, f"the daemon ended with {self.process and self.process.wait(_END_S)}: {self.said()[-4000:]}"
        code, page = self.page("readyz")
        assert code == 200, page
        return self

    def spawn(self) -> bool:
        """As `start`, without a word on how it went: False when the process ended before it was ready."""
        assert self.process is None or self.process.poll() is not None, "the daemon runs already"
        self._close_clients()
        line = [*self.prefix, sys.executable, "-m", "couchestord", "up", "--data", str(self.data)]
        with self.log.open("a") as errors:
            self._log_start = errors.tell()
            self.process = subprocess.Popen(
                [*line, *FREE_PORTS, "--json", *mode().arguments(self._mount), *self.arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment(**mode().settings(self.settings, self.log.with_suffix(".l2"))),
            )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        if not ready:
            self.process.wait(_END_S)
            self.process.stdout.close()
            return False
        self.addresses = json.loads(ready)
        return True

    def stop(self) -> None:
        """SIGTERM; the daemon must end well."""
        assert self._end(signal.SIGTERM) == 0, self.said()[-4000:]

    def terminate(self) -> None:
        """SIGTERM, if it runs; how it ends is left open."""
        if self.process is not None:
            self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9, if it runs. Its workers, and the process that writes, go with it."""
        if self.process is not None:
            left = self.children() if self.is_running() else []
            self._end(signal.SIGKILL)
            wait_until(lambda: not any(map(is_alive, left)), _END_S, lambda: left)

    def children(self) -> list[int]:
        """Processes that the one that was started has made."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def _end(self, number: int) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(_END_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def restart(self) -> None:
        self.stop()
        self.start()

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def said(self) -> str:
        """The log since the last start."""
        with self.log.open() as file:
            file.seek(self._log_start)
            return file.read()

    # -- what it tells ---------------------------------------------------------------------------------------------

    def page(self, name: str) -> tuple[int, dict[str, Any]]:
        """A page of the health server: livez, readyz or healthz."""
        url = self.addresses["health"].removesuffix("healthz") + name
        try:
            with urllib.request.urlopen(url, timeout=_END_S) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def ask(self, command: str, **arguments: Any) -> Any:
        """As the command line does, without the half second that a process takes to begin."""
        return ask(self.data, command, arguments)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("status")
        return found

    def info(self, bucket: str, key: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("info", bucket=bucket, key=key)
        return found

    def wait_healthy(self, within_s: float = 60.0) -> None:
        """Until full redundancy is back by itself: every disk used, no shard missing, nothing wrong."""
        wait_until(lambda: self.page("healthz")[1]["state"] == "healthy", within_s, lambda: self.page("healthz")[1])

    def wait_destaged(self, within_s: float = 60.0) -> None:
        """Until no object's bytes are in the journal any more."""
        wait_until(lambda: not self.in_journal(), within_s, self.in_journal)

    def in_journal(self) -> int:
        """Extents whose bytes are in the journal only, as the catalog on disk says."""
        from couchestord.io.sqlite import open_reader

        connection = open_reader(self.data / "catalog.sqlite")
        try:
            count: int = connection.execute("select count(*) from extent where segment = 0").fetchone()[0]
            return count
        finally:
            connection.close()

    # -- clients ---------------------------------------------------------------------------------------------------

    @property
    def key(self) -> tuple[str, str]:
        """(access key, secret key) of the first key."""
        if self._key is None:
            first = self.ask("key list", show_secrets=True)[0]
            self._key = (first["access_key"], first["secret_key"])
        return self._key

    def s3(self, *, timeout_s: float = 30.0, attempts: int = 1) -> Any:
        """A boto3 client, by default one that tries once; the same one until the daemon is started again."""
        if (timeout_s, attempts) in self._clients:
            return self._clients[timeout_s, attempts]
        client = connect(self.addresses["s3"], self.key, timeout_s=timeout_s, attempts=attempts)
        self._clients[timeout_s, attempts] = client
        return client

    def _close_clients(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def tool(self, *line: str | Path, timeout_s: float = 600.0, trusted: Path | None = None) -> str:
        """Run a client program with the store's key in its environment, and perhaps a certificate to trust; returns its
        output.
        """
        access, secret = self.key
        url = self.addresses["s3"]
        rclone = {"RCLONE_S3_PROVIDER": "Other", "RCLONE_S3_ENV_AUTH": "true", "RCLONE_S3_ENDPOINT": url}
        aws = {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": "us-east-1"}
        if trusted is not None:
            aws["AWS_CA_BUNDLE"] = str(trusted)
        done = subprocess.run(
            [str(word) for word in line],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
                **aws,
                **rclone,
                "S3_ENDPOINT_URL": url,
                "RCLONE_S3_REGION": "us-east-1",
                "RCLONE_CONFIG": os.devnull,
            },
        )
        assert done.returncode == 0, f"{line[0]} ended with {done.returncode}: {done.stderr[-2000:]}"
        return done.stdout


def connect(url: str, key: tuple[str, str], *, timeout_s: float = 30.0, attempts: int = 1) -> Any:
    """A boto3 client with an access key and its secret."""
    settings = botocore.config.Config(
        retries={"total_max_attempts": attempts, "mode": "standard"},
        connect_timeout=timeout_s,
        read_timeout=timeout_s,
        max_pool_connections=16,
        signature_version="s3v4",
        s3={"addressing_style": "path"},
    )
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=key[0],
        aws_secret_access_key=key[1],
        region_name="us-east-1",
        config=settings,
    )


def wait_until(holds: Callable[[], bool], within_s: float, tell: Callable[[], object]) -> None:
    """Poll; past the time the test fails with what `tell` says."""
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, f"not within {within_s} s: {tell()}"
        time.sleep(_POLL_S)


def remove(folder: Path) -> None:
    """A folder and all in it, though a daemon may still make files there."""

    def is_gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    wait_until(is_gone, _END_S, lambda: folder)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        # its first thread may be gone before others, which have files open still
        return state not in "ZX" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


def error_of(call: Callable[[], object]) -> tuple[int, str]:
    """(HTTP status, code) that a boto3 call is refused with, (200, "") when it succeeds."""
    try:
        call()
    except botocore.exceptions.ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
    return 200, ""


@contextmanager
def node(data: Path, settings: Mapping[str, str] = QUICK) -> Iterator[Node]:
    """A daemon that is ready."""
    with Node(data, settings=settings) as made:
        yield made.start()
