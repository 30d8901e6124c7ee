"""How full the disks are, and that new data waits while there is something to clear away."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from couchestord.ec.shards import PAGE_BYTES
from couchestord.errors import NoSpace
from couchestord.io.catalog.copies import CopyReader
from couchestord.io.disks import Disks, replicas_needed

PRESSED_PERCENT: Final = 80.0
"""Of the room that the store has or may have. From here on less is let lie that could be given back."""
ENOUGH_BYTES: Final = 16 << 30
"""With so much left no store is full in that sense: what compaction needs does not grow with it."""
_USED_BYTES_MAX: Final = round(ENOUGH_BYTES * PRESSED_PERCENT / (100 - PRESSED_PERCENT))
_SEGMENTS_MAX: Final = 4096
"""So many are counted: more have more than counts."""
HELD_PERCENT: Final = 92.0
"""From here on new data waits while there is such: what is left is for whoever clears away ..."""
SCARCE_PERCENT: Final = 96.0
"""... and from here on for compaction alone, without which no room is made on the disks."""
HELD_S_MAX: Final = 20.0
"""So long new data waits at most."""
BLIND_S: Final = 3.0
"""So long it takes at most until all jobs have looked what there is to do, and could."""
_LOOK_S: Final = 0.1
_FRESH_S: Final = 0.05
"""So long a look at the disks is good for: each write asks."""
_USED_S: Final = 1.0
"""And so long a count of what is used."""


class Fill:
    """One per store. Belongs to its task context."""

    def __init__(self, catalog: CopyReader, disks: Disks) -> None:
        self._catalog = catalog
        self._disks = disks
        self._percent = 0.0
        self._looked_s = self._counted_s = float("-inf")
        self._used_bytes = 0
        self._held_s = 0.0
        """Since when so little is left that new data waits, if it is."""
        self.is_cleared: Callable[[], bool] = lambda: False
        """Whether a job found something to do that makes room."""

    @property
    def percent(self) -> float:
        """How much of the room that the store takes or may take is taken, as though a large one had no more than 80
        GiB; 100 while new data would be refused.
        """
        now_s, is_full = trio.current_time(), self._is_full()
        if now_s - self._looked_s >= _FRESH_S or is_full != (self._percent == 100):
            was_held, self._looked_s = self._percent >= HELD_PERCENT, now_s
            self._percent = 100.0 if is_full else min(99.9, self._look(now_s))
            if not was_held:
                self._held_s = now_s
        return self._percent

    def _look(self, now_s: float) -> float:
        left_bytes = self._disks.account.left_bytes
        if left_bytes is None or left_bytes >= ENOUGH_BYTES:
            return 0.0
        if now_s - self._counted_s >= _USED_S:
            used_bytes = self._catalog.bytes_on_disks(PAGE_BYTES, _SEGMENTS_MAX)
            self._used_bytes, self._counted_s = min(used_bytes, _USED_BYTES_MAX), now_s
        return 100 * self._used_bytes / max(1, self._used_bytes + left_bytes)

    def _is_full(self) -> bool:
        """Whether new data would be refused now."""
        disks = self._disks
        if disks.have_room:
            return False  # each PUT asks
        shards_count = -(-disks.default_policy.shards_min // disks.shards_per_disk)
        needed = max(replicas_needed(disks.m, disks.missing_count()), shards_count)
        return len(disks.roomy()) < needed <= len(disks.good())

    def is_pressed(self) -> bool:
        """Whether room is so scarce that more work is worth it."""
        return self.percent >= PRESSED_PERCENT

    def is_scarce(self) -> bool:
        """Whether no more than compaction needs is left."""
        return self.percent >= SCARCE_PERCENT

    def is_held(self) -> bool:
        """Whether new data is to wait: little is left, and more may be made."""
        return self.percent >= HELD_PERCENT and (self.is_cleared() or trio.current_time() - self._held_s < BLIND_S)

    async def await_room(self) -> None:
        """Called before new data is taken: waits while it is to."""
        if self.is_held():
            with trio.move_on_after(HELD_S_MAX):
                while self.is_held():
                    await trio.sleep(_LOOK_S)

    async def with_room(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """What `ask` answers, once new data need not wait. When it finds no room, and more is being made, it is called
        again: it has done nothing then, or what the next one makes void. Raises what it raises.
        """
        asked_s = trio.current_time()
        await self.await_room()
        while True:
            try:
                return await ask()
            except NoSpace:
                if not self.is_held() or not await self.await_more(asked_s):
                    raise

    async def await_more(self, since_s: float) -> bool:
        """Called when new data found no room, for the first time at `since_s`: waits a moment. Answers whether it is to
        look again.
        """
        await trio.sleep(_LOOK_S)
        waited_s = trio.current_time() - since_s
        return waited_s < BLIND_S or (waited_s < HELD_S_MAX and self.is_cleared())
