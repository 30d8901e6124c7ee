"""What readers of this process hold, and how the process that frees space hears of it."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from couchestord.io.sharedpage import SharedPage
from couchestord.replica import messages as ms

TELL_S: Final = 0.25
"""How often it is told what is held longer than that."""
_Kind = tuple[bool, int]
"""(is it a segment, its id or the record's sequence)."""


@dataclass(slots=True)
class _Held:
    since: int
    """Version that was seen when it was held first."""
    count: int = 1
    is_old: bool = False
    """It was held already when it was looked last."""
    is_told: bool = False
    is_kept: bool = False
    """The store's process holds it, too, until it is released."""


class ReplicaPins:
    """`Holds` of a process that reads. Short reads cost no message: the word in the shared page protects them."""

    def __init__(self, page: SharedPage, number: int, version: Callable[[], int]) -> None:
        """Of reader `number`; `version` says what it sees now."""
        self._page = page
        self._number = number
        self._version = version
        self._held: dict[_Kind, _Held] = {}
        self._released: list[_Kind] = []

    def hold(self, segments: Iterable[int], records: Iterable[int] = ()) -> None:
        """Keep segments and journal records where they are. What was looked up just now is still there."""
        for segment in segments:
            self._hold((True, segment))
        for record in records:
            self._hold((False, record))

    def release(self, segments: Iterable[int], records: Iterable[int] = ()) -> None:
        """Undo one `hold` of the same."""
        for segment in segments:
            self._release((True, segment))
        for record in records:
            self._release((False, record))

    def _hold(self, what: _Kind) -> None:
        held = self._held.get(what)
        if held is None:
            self._held[what] = _Held(self._version())
        else:
            held.count += 1

    def _release(self, what: _Kind) -> None:
        held = self._held[what]
        held.count -= 1
        if not held.count:
            del self._held[what]
            if held.is_told:
                self._released.append(what)

    async def tell(
        self, send: Callable[[ms.Release], None], ask: Callable[[list[int], list[int]], Awaitable[None]]
    ) -> None:
        """Every `TELL_S`, after a refresh: what is held for long is told, and then the word says what is seen now."""
        released, self._released = self._released, []
        if released:
            send(ms.Release(_of(released, segments=True), _of(released, segments=False)))
        tell = {what: held for what, held in self._held.items() if held.is_old and not held.is_told}
        for held in self._held.values():
            held.is_old = True
        if tell:
            for held in tell.values():
                held.is_told = True
            await ask(_of(tell, segments=True), _of(tell, segments=False))
            for held in tell.values():
                held.is_kept = True
        seen = [held.since for held in self._held.values() if not held.is_kept]
        self._page.see(self._number, min([self._version(), *seen]))


def _of(what: Iterable[_Kind], *, segments: bool) -> list[int]:
    return [id_ for is_segment, id_ in what if is_segment == segments]
