"""Who shows buckets as file systems, and what they have open."""

import json
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from couchestord import logs
from couchestord.ec.segments import Submit
from couchestord.errors import BucketMounted, Unavailable
from couchestord.io import filerequests as fr
from couchestord.io.catalog.changes import Changes
from couchestord.io.catalog.files import FileReader
from couchestord.io.catalog.piecerows import PIECES_DROPPED_MAX
from couchestord.service import Progress

log = logs.get(__name__)
ORPHANS_PER_STEP_MAX: Final = 256
GRACE_S: Final = 60.0
"""So long nothing is freed after a mount has gone, or after a start when there were mounts before it: one that has lost
its link only comes back, and has files open still.
"""
NOTE_NAME: Final = "mounts.json"
_NOTE_MODE: Final = 0o600
WhichOpen = Callable[[Sequence[int]], Awaitable[Sequence[int]]]
"""Which of these files a mount has open. Raises Unavailable when it is gone."""


Show = Callable[[Changes], Awaitable[None]]
"""Returns once the kernel above a mount has forgotten what is otherwise now. Raises Unavailable when the mount is
gone.
"""


@dataclass(slots=True, eq=False)
class Claim:
    """What a mount shows. `bucket` None: all."""

    bucket: str | None
    writes: bool
    which_open: WhichOpen
    show: Show
    owner: object = None
    """Of the claim: what it asks for it knows to be changed."""
    is_late: bool = False
    """It has not shown what it was told to in time: it is told, but not waited for until it has."""

    def covers(self, bucket: str | None) -> bool:
        return None in (self.bucket, bucket) or self.bucket == bucket


def _noted(note: Path) -> set[str | None]:
    """What mounts may have had open when the store before ended; all, when nobody can tell."""
    try:
        found = json.loads(note.read_bytes())
        if isinstance(found, list) and all(bucket is None or isinstance(bucket, str) for bucket in found):
            return set(found)
    except FileNotFoundError:
        return set()
    except (OSError, ValueError) as error:
        log.warning("the note of what was mounted cannot be read", path=str(note), reason=str(error))
    return {None}


class Mounts:
    """One per store. Belongs to its task context.

    The file `note` says of which buckets files may be open, for the next start, which mounts outlive. It is not synced:
    what a power cut takes along, it takes along with the mounts.
    """

    def __init__(self, note: Path) -> None:
        self._note = note
        self._claims: list[Claim] = []
        self._gone = self._is_noted = _noted(note)
        """What those showed that have gone and may have files open still."""
        self.gone_count = len(self._gone)
        """How many so far."""
        self.late_count = 0
        """How often a mount was late."""

    def add(self, claim: Claim) -> None:
        """Raises BucketMounted: what the kernel knows of a file it writes must not be changed by another mount.
        Unavailable: it cannot be noted.
        """
        if claim.writes and any(each.writes and each.covers(claim.bucket) for each in self._claims):
            which = f"bucket {claim.bucket!r}" if claim.bucket else "a bucket"
            raise BucketMounted(f"{which} is mounted already; mount it with --read-only, or unmount the other first")
        self._claims.append(claim)
        try:
            self._write_note()
        except OSError as error:
            self._claims.pop()
            raise Unavailable(f"{self._note}: {error.strerror}; nothing can be mounted until that is mended") from error

    def remove(self, claim: Claim, *, is_over: bool = False) -> None:
        """It has gone. Unless it said that it `is_over`, it may have lost its link only, or this store closes."""
        self._claims.remove(claim)
        if not is_over:
            self._gone = self._gone | {claim.bucket}
            self.gone_count += 1
        self._shorten_note()

    def forget_gone(self) -> None:
        """Those that have gone have no files open any more."""
        self._gone = set()
        self._shorten_note()

    def _shorten_note(self) -> None:
        with suppress(OSError):  # one that names too much is good enough, and written anew the next time
            self._write_note()

    def _write_note(self) -> None:
        buckets = self._gone | {claim.bucket for claim in self._claims}
        if buckets == self._is_noted:
            return
        if buckets:
            new = self._note.with_suffix(".new")
            new.unlink(missing_ok=True)
            with open(new, "x", opener=partial(os.open, mode=_NOTE_MODE)) as file:
                json.dump(sorted(buckets, key=lambda bucket: bucket or ""), file)
            os.replace(new, self._note)
        else:
            self._note.unlink(missing_ok=True)
        self._is_noted = buckets

    def shows(self, bucket: str) -> bool:
        """Whether somebody may have files of a bucket open."""
        return any(claim.covers(bucket) for claim in self._claims) or not self._gone.isdisjoint((bucket, None))

    def writes(self, bucket: str) -> bool:
        """Whether somebody may write files of a bucket."""
        return any(claim.writes and claim.covers(bucket) for claim in self._claims)

    @property
    def are_there(self) -> bool:
        return bool(self._claims)

    def covering(self, bucket: str | None, *, but: object = None) -> tuple[Claim, ...]:
        """Mounts that show a bucket, or with None any, other than those of an owner."""
        return tuple(
            claim for claim in self._claims if claim.covers(bucket) and (but is None or claim.owner is not but)
        )

    def is_late(self, claim: Claim) -> None:
        """It has not shown in time what has changed."""
        claim.is_late = True
        self.late_count += 1
        log.warning("a mount hangs: until it shows what has changed, nobody waits for it", bucket=claim.bucket)

    def status(self) -> dict[str, Any]:
        """For people and programs: what is shown, of how many buckets mounts may come back, how often one was late."""
        shown = [{"bucket": each.bucket, "writes": each.writes, "is_late": each.is_late} for each in self._claims]
        return {"shown": shown, "gone": len(self._gone), "late": self.late_count}

    async def which_open(self, inodes: Sequence[int]) -> set[int]:
        """Those of these files that somebody has open. Raises Unavailable when a mount goes before it has answered."""
        found: set[int] = set()
        for claim in list(self._claims):
            found.update(await claim.which_open(inodes))
        return found


class OrphanReaper:
    """A service: frees files without a name once nobody has them open any more; nothing for some time after a mount
    has gone.
    """

    name = "free-orphans"
    interval_s = 1.0

    def __init__(self, files: FileReader, mounts: Mounts, submit: Submit) -> None:
        self._files = files
        self._mounts = mounts
        self._submit = submit
        self._after = 0
        self._gone_count = 0
        self._quiet_until_s = 0.0
        self.freed_count = 0

    async def work(self) -> Progress:
        now_s = trio.current_time()
        if self._mounts.gone_count != self._gone_count:
            self._gone_count, self._quiet_until_s = self._mounts.gone_count, now_s + GRACE_S
            log.info("a mount has gone; what it had open is kept for a while", seconds=GRACE_S)
        if now_s < self._quiet_until_s:
            return Progress.IDLE
        self._mounts.forget_gone()
        orphans = self._files.orphans(self._after, ORPHANS_PER_STEP_MAX)
        self._after = orphans[-1] if len(orphans) == ORPHANS_PER_STEP_MAX else 0
        if not orphans:
            return Progress.IDLE
        # asked after they were committed: who opens one from now on sees that it has no name
        try:
            held = await self._mounts.which_open(orphans)
        except Unavailable:
            return Progress.IDLE  # whoever does not answer is gone, which is seen the next time
        gone = tuple(id_ for id_ in orphans if id_ not in held)
        await self._free(gone)
        return Progress.BUSY if self._after else Progress.IDLE

    async def _free(self, gone: Sequence[int]) -> None:
        """In records that hold nobody up for long: of a file of many pieces its end goes first."""
        some: list[int] = []
        count = 0
        for id_ in gone:
            while self._pieces_count(id_) > PIECES_DROPPED_MAX:
                size = self._files.start_of_last(id_, PIECES_DROPPED_MAX)
                await self._submit(fr.PublishFile(id_, size, size, (), 0, 0))
            if some and count + self._pieces_count(id_) > PIECES_DROPPED_MAX:
                await self._submit(fr.FreeOrphans(tuple(some)))
                some, count = [], 0
            some.append(id_)
            count += self._pieces_count(id_)
        if some:
            await self._submit(fr.FreeOrphans(tuple(some)))
        self.freed_count += len(gone)

    def _pieces_count(self, id_: int) -> int:
        worn = self._files.worn(id_)
        return worn.pieces if worn is not None else 1
