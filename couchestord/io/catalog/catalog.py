"""The catalog's files and connections."""

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import astuple
from pathlib import Path

from couchestord.errors import Corrupt, Unavailable, UnknownFormat
from couchestord.io.catalog.accounts import AccountReader
from couchestord.io.catalog.apply import Applier
from couchestord.io.catalog.copies import WAITING_INDEX, CopyReader
from couchestord.io.catalog.files import FileReader
from couchestord.io.catalog.generations import Generations
from couchestord.io.catalog.pages import MainFile, store_sums, sums_path
from couchestord.io.catalog.read import CatalogReader
from couchestord.io.catalog.schema import SCHEMA_VERSION, TABLES, statements
from couchestord.io.folder import sync_folder
from couchestord.io.sqlite import (
    Connection,
    Shut,
    is_unreadable,
    open_main_file,
    open_reader,
    open_writer,
    sqlite_errors,
)
from couchestord.model import Policy

FIRST_ID = 16
"""Ids below are reserved: 0 is no id, segment 0 the journal, and so on (`mutations.LOST`)."""

WAL_BYTES_MAX = 256 << 20
"""With a longer WAL writers of new data are refused; checkpoints empty it."""
FILE_SUFFIXES = ("", "-wal", "-shm", ".sums")
"""What the names of a catalog's files end in."""
OPEN_SUFFIXES = ("", "-wal", "-shm")
"""Of those that SQLite has open as long as anybody has the catalog open."""


class Catalog:
    """An open catalog. One per process that writes; everything is synchronous and belongs to the store's task context.

    `writing` sees the transaction that is open, `reading` only what is committed. Readers share one read transaction
    from one commit to the next: taking SQLite's locks and its view of the WAL for each statement doubled their price.
    """

    def __init__(self, path: Path) -> None:
        """Open the catalog at `path`. Raises Corrupt when it is no catalog, UnknownFormat when a newer program made
        it.
        """
        self.path = path
        self._wal = f"{path}-wal"
        self._on_failure: Callable[[Exception], None] | None = None
        with ExitStack() as opened:
            self.main = opened.enter_context(closing(MainFile(path)))
            """To read the main file by."""
            self._reader: Connection | Shut = opened.enter_context(closing(open_reader(path)))
            self._check_version()
            writer = opened.enter_context(closing(open_writer(path)))
            with sqlite_errors(f"reading the catalog {path}"):
                self.applier = Applier(writer)
            opened.pop_all()
        self._writer: Connection | Shut = writer
        self._files = _identities(path)
        self.committed_sequence = self.applier.sequence
        """Sequence of the last record that readers see."""
        self.generations = Generations()
        """Of what readers see."""
        self.writing = CatalogReader(writer, self.applier.generations)
        self.writing_accounts = AccountReader(writer)
        self.writing_copies = CopyReader(writer)
        self.writing_files = FileReader(writer)
        self.reading = CatalogReader(self._reader, self.generations, self._reader_failed)
        self.accounts = AccountReader(self._reader, self._reader_failed)
        self.copies = CopyReader(self._reader, self._reader_failed)
        self.files = FileReader(self._reader, self._reader_failed)
        self._on_change: Callable[[Catalog], None] | None = None
        self._finds_waiting = False
        self._changes_before = 0
        self._hold()

    def tell(self, on_change: Callable[["Catalog"], None] | None) -> None:
        """Call it after every commit, and whenever readers get another connection or none, before anybody is answered.
        For readers in other processes.
        """
        self._on_change = on_change

    @property
    def version(self) -> int:
        """Everything up to it is seen by readers."""
        return self.committed_sequence

    @property
    def sequence(self) -> int:
        """Of the last record that readers see."""
        return self.committed_sequence

    @property
    def is_shut(self) -> bool:
        """True while readers get Unavailable."""
        return isinstance(self._reader, Shut)

    def watch(self, on_failure: Callable[[Exception], None]) -> None:
        """Call it, in the task of the reader, when a reader finds that the file cannot be read. Readers get Unavailable
        then, and Corrupt while nobody watches.
        """
        self._on_failure = on_failure

    def _reader_failed(self, error: Exception) -> None:
        if not is_unreadable(error):
            return
        if self._on_failure is None:
            raise Corrupt(f"the catalog {self.path} cannot be read: {error}") from error
        self._on_failure(error)
        raise Unavailable("the catalog cannot be read and is being repaired; try again soon") from error

    # -- another connection under those who use this one ---------------------------------------------------------------

    def reopen_writer(self) -> None:
        """A new writing connection: an open transaction is dropped, the counters are read again. Raises Corrupt; then
        there is none until the next call succeeds. Readers are not touched.
        """
        self._write_through(Shut(f"the catalog {self.path} cannot be written"))
        writer = open_writer(self.path)
        try:
            with sqlite_errors(f"reading the catalog {self.path}"):
                if self._finds_waiting:
                    writer.execute(WAITING_INDEX)  # the file may be another one
                self.applier.connect(writer)
                self.applier.load()
        except BaseException:
            writer.close()
            raise
        self._write_through(writer)
        self._files = _identities(self.path)

    def check_in_place(self) -> None:
        """Raises Corrupt when a file that SQLite has open has lost its name, or another one has it: SQLite goes on with
        the one it opened, and whoever opens the name, a checkpoint say, does not find what was committed.
        """
        for suffix, opened, found in zip(OPEN_SUFFIXES, self._files, _identities(self.path), strict=True):
            if found != opened:
                raise Corrupt(f"{self.path}{suffix} is not the file that was opened: somebody took it away")

    def reopen_reader(self) -> None:
        """A new reading connection for all readers, between two of their statements. Raises Corrupt; then they go on
        with the one before.
        """
        reader = open_reader(self.path)
        try:
            with sqlite_errors(f"reading the catalog {self.path}"):
                reader.execute("select sequence from state").fetchone()
        except BaseException:
            reader.close()
            raise
        self._read_through(reader)

    def shut(self, reason: str) -> None:
        """Close the connections; readers get Unavailable until `reopen_reader`, the writer until `reopen_writer`."""
        self._write_through(Shut(reason))
        self._read_through(Shut(reason))

    def replace_by(self, made: Path) -> None:
        """Put the catalog that lies at `made`, closed, checkpointed and synced, in the place of this one, whose files
        stay beside it as `.discarded`. A crash in between leaves none, or the new one. Raises Corrupt, OSError.
        """
        self.shut("the catalog is being replaced")
        put_in_place(made, self.path)
        self.main.replaced()
        self.reopen_writer()
        self.committed_sequence = self.applier.sequence
        self.reopen_reader()

    def _write_through(self, writer: Connection | Shut) -> None:
        self._writer.close()
        self._writer = writer
        self.applier.connect(writer)
        self.writing.connect(writer)
        self.writing_accounts.connect(writer)
        self.writing_copies.connect(writer)
        self.writing_files.connect(writer)

    def _read_through(self, reader: Connection | Shut) -> None:
        self._reader.close()
        self._reader = reader
        self.generations.open()
        self.reading.connect(reader, self._reader_failed)
        self.accounts.connect(reader, self._reader_failed)
        self.copies.connect(reader, self._reader_failed)
        self.files.connect(reader, self._reader_failed)
        self._hold()
        if self._on_change is not None:
            self._on_change(self)

    def _check_version(self) -> None:
        with sqlite_errors(f"reading the catalog {self.path}"):
            version = self._reader.execute("select schema_version from state").fetchone()
        if version is None:
            raise Corrupt(f"the catalog {self.path} has no state")
        if version[0] != SCHEMA_VERSION:
            use = "a newer couchestord" if version[0] > SCHEMA_VERSION else "the one that wrote it: it is not converted"
            raise UnknownFormat(
                f"the catalog {self.path} has schema {version[0]}; this program knows {SCHEMA_VERSION}. Use {use}."
            )

    @staticmethod
    def create(path: Path, store_id: bytes, default: Policy) -> None:
        """Make an empty catalog at `path`, replacing whatever lies there, with the policy the store began with. Raises
        Corrupt, OSError.
        """
        remove(path)
        with sqlite_errors(f"making the catalog {path}"), closing(open_writer(path)) as connection:
            connection.execute("begin immediate")
            for statement in statements():
                connection.execute(statement)
            connection.execute(
                "insert into state values (?, ?, 0, ?, ?, 0)",
                (store_id, SCHEMA_VERSION, struct.pack("<Q", 0), FIRST_ID),
            )
            connection.execute("insert into policy values (?, ?, ?, ?, ?, ?, ?, ?)", astuple(default))
            connection.execute("commit")
        # the last connection left everything in the main file: rot is found from the first day on
        store_sums(path)

    def main_file_sequence(self) -> int:
        """Sequence that the main file alone is at, the WAL aside. Before anything is written.

        More than `committed_sequence` says that the WAL was cut short after a checkpoint: its frames then hide newer
        pages, and the two together are no state that ever was. Raises Corrupt.
        """
        with sqlite_errors(f"reading the catalog {self.path}"), closing(open_main_file(self.path)) as connection:
            (sequence,) = connection.execute("select sequence from state").fetchone()
        return int(sequence)

    def find_waiting(self) -> None:
        """Let `copies.waiting` be quick from now on; a million extents take a third of a second. Between two
        transactions. Raises Corrupt.
        """
        with sqlite_errors(f"making an index in the catalog {self.path}"):
            self._writer.execute(WAITING_INDEX)
        self._finds_waiting = True

    def begin(self) -> None:
        """Open the writing transaction."""
        self._writer.execute("begin immediate")
        self._changes_before = self._writer.total_changes

    @property
    def changed_rows(self) -> int:
        """How many rows the open transaction has changed so far."""
        return self._writer.total_changes - self._changes_before

    def commit(self) -> None:
        """Write the counters and commit. Raises Corrupt; the transaction may then be open or gone."""
        with sqlite_errors(f"committing to the catalog {self.path}"):
            self.applier.save()
            # before it too, for a commit that raises may have happened
            self.generations.follow(self.applier.generations)
            # before it too, for a commit that begins the WAL anew waits for no reader
            self._let_go()
            try:
                self._writer.execute("commit")
                self.committed_sequence = self.applier.sequence
            finally:
                self._hold()
                if self._on_change is not None:
                    self._on_change(self)
                # and again: what others read meanwhile may be of before
                self.generations.follow(self.applier.generations)
        self.applier.generations.settle()

    def rollback(self) -> None:
        """Drop the open transaction, if one is open, and take the counters back."""
        if self._writer.in_transaction:
            self._writer.execute("rollback")
        self.applier.load()
        self.applier.generations.settle()
        self.writing.forget()

    def refresh(self) -> None:
        """See what was committed until now: nothing to do in the process that commits."""

    @contextmanager
    def snapshot(self) -> Iterator[CatalogReader]:
        """One read transaction over several questions. Nothing may be awaited, nor committed, meanwhile."""
        if self._reader.in_transaction:
            yield self.reading
            return
        self._reader.execute("begin")
        try:
            yield self.reading
        finally:
            self._let_go()

    @contextmanager
    def out_of_wal(self) -> Iterator[None]:
        """Readers hold no transaction meanwhile, but run each statement by itself: no other keeps the WAL from being
        emptied. Nothing may be committed.
        """
        self._let_go()
        try:
            yield
        finally:
            self._hold()

    def _hold(self) -> None:
        """Let what readers ask from now on be one transaction. It begins with their first statement."""
        if isinstance(self._reader, Connection) and not self._reader.in_transaction:
            self._reader.execute("begin")

    def _let_go(self) -> None:
        if self._reader.in_transaction:
            self._reader.execute("rollback")

    def wal_bytes(self) -> int:
        """Size of the WAL."""
        try:
            return os.stat(self._wal).st_size
        except FileNotFoundError:
            return 0

    def close(self) -> None:
        """Close the connections; what was committed is kept."""
        self._writer.close()
        # the last one, and it cannot write: closing never moves the WAL into a main file whose sums then are wrong
        self._reader.close()
        self.main.close()


def _identities(path: Path) -> list[tuple[int, int]]:
    """What tells the files at `path` that are open from others of their names; (0, 0) for one that is not there."""
    return [_identity(Path(f"{path}{suffix}")) for suffix in OPEN_SUFFIXES]


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_dev, found.st_ino


def remove(path: Path) -> None:
    """Unlink what there is of a catalog at `path`, which nobody has open."""
    for suffix in FILE_SUFFIXES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Set what lies at `path` aside, under names that end in `.discarded`."""
    for suffix in FILE_SUFFIXES:
        old = Path(f"{path}{suffix}")
        if old.exists():
            old.replace(f"{path}{suffix}.discarded")


def put_in_place(made: Path, path: Path) -> None:
    """Give the catalog at `made`, which nobody has open and whose WAL is empty, the name `path`; what lies there is set
    aside. A crash in between leaves none, or the new one. Raises OSError.
    """
    discard(path)
    # a WAL that came back beside the new one would be taken for its own
    sync_folder(path.parent)
    # a catalog without its sums would not be looked through at a start
    sums_path(made).replace(sums_path(path))
    made.replace(path)
    sync_folder(path.parent)


def dump(connection_or_path: Connection | Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables, ordered: two catalogs of one log are equal here."""
    connection = open_reader(connection_or_path) if isinstance(connection_or_path, Path) else connection_or_path
    try:
        return {name: sorted(connection.execute(f"select * from {name}").fetchall(), key=repr) for name in TABLES}
    finally:
        if isinstance(connection_or_path, Path):
            connection.close()
