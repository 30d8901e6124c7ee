"""Runs the command line and the daemon as processes of their own."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modes import mode

ROOT: Final = Path(__file__).resolve().parents[2]
FREE_PORTS: Final = tuple(f"--{name}-addr=127.0.0.1:0" for name in ("s3", "metrics", "health"))
_TIMEOUT_S: Final = 60


def environment(**more: str) -> dict[str, str]:
    """Ours without settings that would change what is tested."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COUCHESTORD_", "NOTIFY_"))}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def command(*arguments: str | Path, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """Runs `couchestord ARGUMENTS` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "couchestord", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment(**more),
        timeout=_TIMEOUT_S,
        check=False,
    )


def result(*arguments: str | Path, **more: str) -> Any:
    """What a command that must succeed prints with --json."""
    done = command(*arguments, "--json", **more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon that said it is ready. `addresses` is the line it printed."""

    process: subprocess.Popen[str]
    addresses: dict[str, str]
    log: Path

    def get(self, url: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def health(self, page: str) -> tuple[int, dict[str, Any]]:
        """A page of the health server: livez, readyz or healthz."""
        status, body = self.get(self.addresses["health"].removesuffix("healthz") + page)
        return status, json.loads(body)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and waits for the end; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(_TIMEOUT_S)


@contextmanager
def running(command_name: str, *arguments: str | Path, log: Path, **more: str) -> Iterator[Daemon]:
    """`couchestord up` or `serve` on free ports, from the moment it is ready; killed at the end if it still runs.

    `more`: settings; whether there are workers, and which caches, is as the mode says (`modes`) unless they do.
    """
    settings = mode().settings(more, log.with_suffix(".l2"))
    line = [sys.executable, "-m", "couchestord", command_name, *map(str, arguments), *FREE_PORTS, "--json"]
    with log.open("w") as errors:
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment(**settings))
    with process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            assert ready, f"the daemon ended: {log.read_text()}"
            yield Daemon(process, json.loads(ready), log)
        finally:
            if process.poll() is None:
                process.kill()
