"""What is lost in the journal is given up in the end: nothing behind it could be trimmed, and writes would stop."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from couchestord import logs
from couchestord.ec.moves import MOVES_PER_REQUEST_MAX
from couchestord.ec.segments import Submit
from couchestord.errors import DataLost
from couchestord.io.catalog.read import ExtentRow
from couchestord.io.mutations import LOST
from couchestord.io.requests import ExtentMove, MoveExtents

log = logs.get(__name__)

KEPT_S: Final = 600.0
"""How long every disk is here and none has a good replica, before an extent is given up."""


class Losses:
    """Extents in the journal that cannot be read, and since when. One is given up by a record that says it lies
    nowhere: its object stays, and reading it is answered as before.

    Only while the journal must be trimmed, and only when no disk is away that may have what is missing.
    """

    def __init__(
        self, submit: Submit, read: Callable[[ExtentRow], Awaitable[object]], is_whole: Callable[[], bool]
    ) -> None:
        """`read` raises DataLost. `is_whole`: every disk is here, and it is known what each holds."""
        self._submit = submit
        self._read = read
        self._is_whole = is_whole
        self._since: dict[int, float] = {}
        self.lost_extents_count = 0

    async def settle(self, unreadable: Iterable[ExtentRow], is_pressed: bool) -> None:
        """A pass over the journal ended that could not read these. `is_pressed`: the journal must be trimmed."""
        now = trio.current_time()
        if not self._is_whole():
            self._since.clear()  # a disk that comes back may have them
            return
        extents = list(unreadable)
        self._since = {extent.id: self._since.get(extent.id, now) for extent in extents}
        if not is_pressed:
            return
        overdue = [extent for extent in extents if now - self._since[extent.id] >= KEPT_S]
        lost = [extent for extent in overdue if await self._is_lost(extent)]
        for at in range(0, len(lost), MOVES_PER_REQUEST_MAX):
            await self._give_up(lost[at : at + MOVES_PER_REQUEST_MAX])

    async def _is_lost(self, extent: ExtentRow) -> bool:
        try:
            await self._read(extent)
        except DataLost:
            return True
        return False

    async def _give_up(self, lost: list[ExtentRow]) -> None:
        if not self._is_whole():
            return  # one went while they were read once more
        moves = [ExtentMove(it.id, (it.segment, it.stripe, it.stripe_start), (LOST, 0, 0)) for it in lost]
        self.lost_extents_count += await self._submit(MoveExtents(tuple(moves)))
        for extent in lost:
            log.error(
                "a small body is lost and was given up, so that the journal can be trimmed: fsck names its object",
                extent=extent.id,
                record=extent.stripe,
                bytes=extent.length,
            )
