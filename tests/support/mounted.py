"""A bucket that is really mounted, by a process that a test starts, stops and kills."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from daemons import environment

_END_S: Final = 60.0


class Mounted:
    """Mounted while the block runs; unmounted at its end whatever happens."""

    def __init__(self, data: Path, folder: Path, bucket: str | None = "box", options: Sequence[str] = ()) -> None:
        """`data`: the folder of a daemon that runs. `folder` is made; it is what the bucket is seen in."""
        self.folder = folder
        self._line = [sys.executable, "-m", "couchestord", "mount", os.fspath(folder), "--data", os.fspath(data)]
        self._line += ["--bucket", bucket] if bucket is not None else []
        self._line += options
        self._log = folder.with_name(folder.name + ".log")
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Mounted":
        self.folder.mkdir(exist_ok=True)
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
        subprocess.run(["umount", "-l", os.fspath(self.folder)], check=False, stderr=subprocess.DEVNULL)
        return code


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
        else:
            found[name] = "file", mode, path.lstat().st_nlink, path.read_bytes()
    return found
