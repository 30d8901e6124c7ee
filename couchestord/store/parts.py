"""The seam between what front ends ask of a store and what that works on: a running store, or what another process has
of one.
"""

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol

from couchestord.io.catalog.accounts import AccountReader
from couchestord.io.catalog.files import FileReader
from couchestord.io.catalog.generations import Generations
from couchestord.io.catalog.read import CatalogReader
from couchestord.model import Body
from couchestord.store.athand import ReaderParts
from couchestord.store.intake import Taken


class CatalogView(Protocol):
    """A catalog as readers see it: what is committed."""

    @property
    def reading(self) -> CatalogReader: ...

    @property
    def accounts(self) -> AccountReader: ...

    @property
    def files(self) -> FileReader: ...

    @property
    def generations(self) -> Generations: ...

    @property
    def version(self) -> int:
        """Grows with each change that is seen."""
        ...

    @property
    def sequence(self) -> int:
        """Of a record that was committed. What is asked for from now on comes behind it."""
        ...

    def refresh(self) -> None:
        """Called whenever something begins to be answered: what anybody was told of before is seen."""
        ...

    def snapshot(self) -> AbstractContextManager[CatalogReader]:
        """One read transaction over several questions."""
        ...


class Taker(Protocol):
    """What bodies are handed to."""

    def take(
        self, body: Body, size: int | None, policy: int = 0, *, hashed: bool = True, inlined: bool = True
    ) -> AbstractAsyncContextManager[Taken]:
        """See `Intake.take`."""
        ...


class Parts(Protocol):
    """What objects need of a store: something to look them up in, to read from, and somebody to hand changes to."""

    @property
    def catalog(self) -> CatalogView: ...

    @property
    def intake(self) -> Taker: ...

    @property
    def reader_parts(self) -> ReaderParts: ...

    async def submit(self, request: object) -> Any:
        """Hand a request to the writer; see `Writer.submit`."""
        ...
