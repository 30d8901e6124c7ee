"""Processes that tell what they have done, a line for each thing: a test waits for it, and knows it after a kill."""

import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from daemons import environment

_SUPPORT: Final = Path(__file__).parent
_PATIENCE_S: Final = 60.0


class Telling:
    """A program of `tests/support`, which runs from now on. A context manager: kills at the end.

    Who has files of a mount open should be such a process: one that a test's own process starts closes the files that
    are open there, and a close publishes.
    """

    def __init__(self, program: str, *arguments: object, folder: Path | None = None) -> None:
        """It runs in `folder`."""
        self.process = subprocess.Popen(
            [sys.executable, str(_SUPPORT / program), *map(str, arguments)],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self.said: list[str] = []
        """All lines so far."""
        self._changed = threading.Condition()
        self._has_ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> "Telling":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        if error is not None:
            error.add_note(f"{self.process.args!r} said last {self.said[-5:]}")

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with self._changed:
                    self.said.append(line.removesuffix("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def wait_for(self, count: int, is_wanted: Callable[[str], bool] = lambda line: True) -> None:
        """Until it has said so many more lines of a kind, each within a minute of the one before."""
        with self._changed:
            start = len(self.said)

            def counted() -> int:
                return sum(map(is_wanted, self.said[start:]))

            def says_more(than: int) -> bool:
                return self._changed.wait_for(lambda: self._has_ended or counted() > than, _PATIENCE_S)

            goes_on = True
            while goes_on and counted() < count and not self._has_ended:
                goes_on = says_more(counted())
            found = counted()
        assert goes_on, f"{found} of {count} lines, and no other one within {_PATIENCE_S} s"
        assert found >= count, f"it ended with {self.process.wait(_PATIENCE_S)} after {found} of {count} lines"

    def tell(self, line: str) -> None:
        """Give it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, line: str) -> str:
        """Give it a line, and wait for the one that it says then."""
        count = len(self.said)
        self.tell(line)
        with self._changed:
            assert self._changed.wait_for(lambda: self._has_ended or len(self.said) > count, _PATIENCE_S), line
            assert len(self.said) > count, f"it ended at {line!r}"
            return self.said[count]

    def close_input(self) -> None:
        """It ends once it has done what it has begun."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def finish(self) -> list[str]:
        """Closes its input and waits for a good end; all that it said."""
        self.close_input()
        code = self.process.wait(_PATIENCE_S)
        self._reader.join()
        assert code == 0, f"it ended with {code}"
        return self.said

    def kill(self) -> None:
        """kill -9, if it runs."""
        self.process.kill()
        self.process.wait(_PATIENCE_S)
        self._reader.join()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # what it was told and has not read
            self.process.stdin.close()
