"""Answers to those whose requests were committed: at once, or once all mounts show what they have changed.

A kernel keeps what it once looked up in a mount until it is told to forget it. Whoever is answered may look there next,
so the kernels are told first. That happens beside the writer and holds nothing up but the answer: a kernel that is to
forget an entry may have to wait until a call in that directory has ended, which may itself wait for the writer.

What S3 asks and what changes nothing, a DELETE of what is gone say, rests on what others have changed: it is answered
after those of them whom mounts still keep waiting.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import trio

from couchestord import logs
from couchestord.errors import Unavailable
from couchestord.io.catalog.changes import Changes, join
from couchestord.store.mounts import Claim, Mounts
from couchestord.store.waiting import Waiting

log = logs.get(__name__)
SHOWN_S_MAX: Final = 2.0
"""So long an answer waits for mounts at most."""
_EVERYTHING: Final = Changes(everything=True)


class Answering:
    """The writer's. Its tasks end with the nursery."""

    def __init__(self, nursery: trio.Nursery, mounts: Mounts) -> None:
        self._nursery = nursery
        self._mounts = mounts
        self._under_way: dict[trio.Event, Sequence[Claim]] = {}
        """Mounts that are waited for, and what is set once those who wait for them were answered."""

    def answer(self, group: Iterable[Waiting]) -> None:
        """Each of them once."""
        by_claims: dict[Sequence[Claim], list[Waiting]] = {}
        for waiting in group:
            by_claims.setdefault(self._claims(waiting), []).append(waiting)
        at_once = by_claims.pop((), ())
        for claims, few in by_claims.items():
            self._under_way[answered := trio.Event()] = claims
            self._nursery.start_soon(self._answer_when_shown, claims, few, answered)
        for waiting in at_once:
            if before := self._before(waiting):
                self._nursery.start_soon(self._answer_after, before, waiting)
            else:
                waiting.tell()

    def doubt_everything(self) -> None:
        """Changes were made that nobody has noted: kernels forget all that they keep."""
        for claim in self._mounts.covering(None):
            self._tell(claim, _EVERYTHING)

    def _claims(self, waiting: Waiting) -> Sequence[Claim]:
        """Mounts that show what it has changed, but for the one that asked: its kernel knows, and may hold what would
        have to be waited for until it is answered.
        """
        if waiting.changes is None:
            return ()
        return self._mounts.covering(getattr(waiting.request, "bucket", None), but=waiting.origin)

    def _before(self, waiting: Waiting) -> list[trio.Event]:
        """Set once all were answered who may have changed what a request of S3 rests on. Those of mounts name no bucket
        and wait for nobody: a kernel may hold what the others wait for until it is answered itself.
        """
        bucket = getattr(waiting.request, "bucket", None)
        if bucket is None:
            return []
        under_way = self._under_way.items()
        return [answered for answered, claims in under_way if any(claim.covers(bucket) for claim in claims)]

    async def _answer_after(self, before: list[trio.Event], waiting: Waiting) -> None:
        # which takes `SHOWN_S_MAX` at most, as these do
        with trio.CancelScope(shield=True):
            for answered in before:
                await answered.wait()
        waiting.tell()

    async def _answer_when_shown(self, claims: Sequence[Claim], group: list[Waiting], answered: trio.Event) -> None:
        changes = join(waiting.changes for waiting in group if waiting.changes)
        prompt = [claim for claim in claims if not claim.is_late]
        shown = {claim: self._tell(claim, changes) for claim in claims}
        # who was committed is answered, whatever ends
        with trio.move_on_after(SHOWN_S_MAX, shield=True):
            for claim in prompt:
                await shown[claim].wait()
        for claim in prompt:
            if not shown[claim].is_set():
                self._mounts.is_late(claim)
        for waiting in group:
            waiting.tell()
        del self._under_way[answered]
        answered.set()

    def _tell(self, claim: Claim, changes: Changes) -> trio.Event:
        """Set once that mount shows them, or is gone."""
        shown = trio.Event()
        self._nursery.start_soon(self._wait_until_shown, claim, changes, shown)
        return shown

    async def _wait_until_shown(self, claim: Claim, changes: Changes, shown: trio.Event) -> None:
        try:
            await claim.show(changes)
        except Unavailable:
            log.debug("a mount is gone; what it has looked up with it")
        claim.is_late = False
        shown.set()
