"""The catalog in a process that does not write it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from couchestord import logs
from couchestord.errors import Error, Unavailable
from couchestord.io.catalog.accounts import AccountReader
from couchestord.io.catalog.copies import CopyReader
from couchestord.io.catalog.files import FileReader
from couchestord.io.catalog.generations import Generations
from couchestord.io.catalog.read import CatalogReader
from couchestord.io.sharedpage import SharedPage
from couchestord.io.sqlite import Connection, Shut, is_unreadable, open_reader

log = logs.get(__name__)
_SHUT = "the catalog is being repaired; try again soon"
_CLOSED = "the store is gone; try again soon"


class _Seen(Generations):
    """The numbers as they were when the present read transaction was about to begin, and slots as they are now."""

    __slots__ = ("_page", "version")

    def __init__(self, page: SharedPage) -> None:
        super().__init__()
        self._page = page
        self.slots = Generations(page.generations).slots
        self.version = page.read(self)

    def is_current(self, changes: int = 0) -> bool:
        # else what is read may be older than the number that its slot has now, or is of a state that is about to go
        # while the number is not
        return not changes & 1 and self.version == self._page.version


class ReplicaCatalog:
    """Reads through a connection of its own. Belongs to one trio loop, whose turns bound its read transactions.

    Whoever begins to answer something calls `refresh` first: what was committed and told to anybody before that is
    seen. Until the next `refresh`, or the end of the loop's turn, all questions are of one state.
    """

    def __init__(self, path: Path, page: SharedPage, on_failure: Callable[[str], None]) -> None:
        """`on_failure` is told why the file cannot be read. As long as it cannot be opened, whoever asks gets
        Unavailable.
        """
        self._path = path
        self._page = page
        self._on_failure = on_failure
        self._is_closed = False
        self.generations = _Seen(page)
        self._reader = self._open()
        self._opened = self.generations.opened
        self.reading = CatalogReader(self._reader, self.generations, self._failed)
        self.accounts = AccountReader(self._reader, self._failed)
        self.copies = CopyReader(self._reader, self._failed)
        self.files = FileReader(self._reader, self._failed)

    @property
    def version(self) -> int:
        """Everything up to it is seen."""
        return self.generations.version

    @property
    def sequence(self) -> int:
        """Of a record that was committed."""
        return self._page.sequence

    def refresh(self) -> None:
        """See what was committed until now."""
        if self.generations.version != self._page.version:
            self.let_go()
            self.generations.version = self._page.read(self.generations)
            if self.generations.opened != self._opened:
                self._reopen()
        if not self._reader.in_transaction:
            if isinstance(self._reader, Connection):
                # it begins with the first question
                self._reader.execute("begin")
            elif not self._page.is_shut:
                self._reopen()

    @contextmanager
    def snapshot(self) -> Iterator[CatalogReader]:
        """One read transaction over several questions. Nothing may be awaited meanwhile."""
        self.refresh()
        yield self.reading

    def close(self) -> None:
        """Who asks from now on gets Unavailable."""
        self._is_closed = True
        self._reopen()

    def _reopen(self) -> None:
        self._opened = self.generations.opened
        self._reader.close()
        self._reader = self._open()
        self.reading.connect(self._reader, self._failed)
        self.accounts.connect(self._reader, self._failed)
        self.copies.connect(self._reader, self._failed)
        self.files.connect(self._reader, self._failed)

    def _open(self) -> Connection | Shut:
        try:
            if self._is_closed:
                return Shut(_CLOSED)
            return Shut(_SHUT) if self._page.is_shut else open_reader(self._path)
        except (Error, OSError) as error:
            # it is being replaced, say, or there is no descriptor: who asks next tries again
            log.warning("the catalog could not be opened", reason=str(error))
            return Shut(_SHUT)

    def let_go(self) -> None:
        """No read transaction is open any more: one that outlives a turn would keep the WAL from being emptied."""
        if self._reader.in_transaction:
            self._reader.execute("rollback")

    def _failed(self, error: Exception) -> None:
        if is_unreadable(error):
            self._on_failure(f"the catalog {self._path} cannot be read: {error}")
            raise Unavailable(_SHUT) from error


class Turns(trio.abc.Instrument):
    """Lets go of the catalog's read transaction at the end of each turn of the loop."""

    def __init__(self, catalog: ReplicaCatalog) -> None:
        self._catalog = catalog

    def before_io_wait(self, timeout: float) -> None:
        """See `trio.abc.Instrument`."""
        self._catalog.let_go()
