"""The one door to SQLite: connections opened the way the catalog needs them, and its errors in our tree.

One writer connection belongs to the store's writer and is never used by a reader. Readers have connections of their
own.
"""

import errno
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from couchestord.errors import Corrupt, NotFound, Unavailable

Connection = sqlite3.Connection
Cursor = sqlite3.Cursor
Row = tuple[object, ...]
Execute = Callable[..., Cursor]
"""`execute` or `executemany` of a connection."""
OnError = Callable[[sqlite3.Error], None]
"""Is told of an error of SQLite, and may raise another in its place."""
CACHE_KIB = 32 << 10
_FULL = {sqlite3.SQLITE_FULL}
_FULL_ERRNO = {errno.ENOSPC, errno.EDQUOT}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_OF_DEVICE = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY}
_PASSING = _OF_DEVICE | {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM}


class Shut:
    """In the place of a connection while there is none to be used: every statement raises Unavailable."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.in_transaction = False
        self.total_changes = 0

    def execute(self, *_: object) -> NoReturn:
        raise Unavailable(self.reason)

    executemany = execute

    def close(self) -> None:
        """Nothing is open."""


class Questions:
    """Statements of readers through one connection."""

    def __init__(self, connection: Connection | Shut, on_error: OnError | None = None) -> None:
        self._execute: Execute = connection.execute
        self._on_error = on_error or _pass_over

    def row(self, *statement: Any) -> Any:
        """The first row, None when there is none."""
        try:
            return self._execute(*statement).fetchone()
        except sqlite3.Error as error:
            self._on_error(error)
            raise

    def rows(self, *statement: Any) -> list[Any]:
        """All rows."""
        try:
            return self._execute(*statement).fetchall()
        except sqlite3.Error as error:
            self._on_error(error)
            raise

    def each(self, *statement: Any) -> Iterator[Any]:
        """One row after the other."""
        try:
            yield from self._execute(*statement)
        except sqlite3.Error as error:
            self._on_error(error)
            raise


def _pass_over(_error: sqlite3.Error) -> None:
    """Leaves an error as it is."""


def is_failure(error: BaseException) -> bool:
    """True for an error of SQLite that says that the file failed, or what it lies on; not for a wrong statement."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(
        error, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.DataError | sqlite3.NotSupportedError
    )


def is_full(error: BaseException | None) -> bool:
    """True when there was no room: `error`, an OSError too, or what it was raised from, says so."""
    return error is not None and _code(error) in _FULL


def is_damage(error: BaseException | None) -> bool:
    """True when SQLite says that what the file holds makes no sense (`error`, or what it was raised from)."""
    return error is not None and _code(error) in _DAMAGED


def is_unreadable(error: BaseException) -> bool:
    """True when the file cannot be read, or holds what cannot be; not when somebody is in the way."""
    return _code(error) in _OF_DEVICE | _DAMAGED | _FULL


def may_pass(error: BaseException) -> bool:
    """True when the same call may succeed later on the same file: an error of reading or writing, not of what it
    holds.
    """
    return _code(error) in _FULL | _PASSING


def _code(error: BaseException) -> int:
    found = error if isinstance(error, sqlite3.Error | OSError) else error.__cause__
    if isinstance(found, OSError):
        return sqlite3.SQLITE_FULL if found.errno in _FULL_ERRNO else sqlite3.SQLITE_IOERR
    return getattr(found, "sqlite_errorcode", 0) & 0xFF


@contextmanager
def sqlite_errors(doing: str) -> Iterator[None]:
    """Turns an error of SQLite into Corrupt, saying what was being done."""
    try:
        yield
    except sqlite3.Error as error:
        raise Corrupt(f"{doing}: {error}") from error


def open_writer(path: Path) -> Connection:
    """The writing connection. WAL without autocheckpoint; synchronous=NORMAL, since the journal is the truth."""
    with sqlite_errors(f"opening the catalog {path}"):
        connection = sqlite3.connect(path, isolation_level=None, cached_statements=512, check_same_thread=False)
        for pragma in (
            "journal_mode=wal",
            "synchronous=normal",
            "wal_autocheckpoint=0",
            f"cache_size=-{CACHE_KIB}",
            "foreign_keys=off",
            "temp_store=memory",
            "trusted_schema=off",
        ):
            connection.execute(f"pragma {pragma}")
    path.chmod(0o600)
    return connection


def open_reader(path: Path) -> Connection:
    """A read-only connection."""
    if not path.exists():
        raise NotFound(f"{path} does not exist")
    with sqlite_errors(f"opening the catalog {path}"):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True,
            isolation_level=None,
            cached_statements=512,
            check_same_thread=False,
        )
        connection.execute(f"pragma cache_size=-{CACHE_KIB}")
        connection.execute("pragma query_only=on")
    return connection


def open_main_file(path: Path) -> Connection:
    """A read-only connection to what the main file alone holds, the WAL aside. Nobody may write to it meanwhile."""
    with sqlite_errors(f"opening the catalog {path}"):
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)


def checkpoint(path: Path) -> tuple[int, int]:
    """Move what the WAL holds into the main file and sync it. Blocks: run it in a thread.

    Returns (frames in the WAL, frames moved); equal when everything committed before the call is in the main file. None
    counts as moved when another program is at it, which nobody told how far it gets.
    """
    with sqlite_errors(f"checkpointing the catalog {path}"):
        connection = _connect_to_checkpoint(path, timeout=5.0)
        try:
            connection.execute("pragma synchronous=normal")
            busy, frames, moved = connection.execute("pragma wal_checkpoint(passive)").fetchone()
            return frames, 0 if busy else moved
        finally:
            connection.close()


def _connect_to_checkpoint(path: Path, timeout: float) -> Connection:
    # a file that is gone must not be made anew, empty
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=timeout)


def truncate_wal(path: Path) -> None:
    """Cut the WAL to nothing, when all of it was moved and no reader is in it; else it stays. Blocks."""
    with sqlite_errors(f"checkpointing the catalog {path}"):
        connection = _connect_to_checkpoint(path, timeout=0)
        try:
            connection.execute("pragma synchronous=normal")
            connection.execute("pragma wal_checkpoint(truncate)").fetchone()
        finally:
            connection.close()
