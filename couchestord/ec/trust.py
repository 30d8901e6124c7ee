"""Which shard to ask first, and who hears of those that fail."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import trio

from couchestord import logs
from couchestord.ec.gather import ShardError, ShardRange
from couchestord.errors import Corrupt, DataLost, DiskError, DiskGone, UnknownFormat
from couchestord.io.catalog.read import SegmentRow
from couchestord.io.disks import Disks

log = logs.get(__name__)

NOTED_AGAIN_S = 60.0
"""After so long a damage that is still found is told again: it may be another one, found after the first was made good
by a process that nobody told of that.
"""

Result = TypeVar("Result")
Damage = Callable[[int, int, int], None]
"""Called with (segment id, index of the shard that could not be read, disk it was looked for on). Must not block, must
not raise.
"""


class ShardTrust:
    """Knows disks that keep reads waiting longer than `late_s` seconds, and shards that were reported as damaged."""

    def __init__(self, disks: Disks, late_s: float, damages_noted_max: int, on_damage: Damage | None) -> None:
        self._disks = disks
        self._late_s = late_s
        self._damages_noted_max = damages_noted_max
        self._on_damage = on_damage
        self._damaged: dict[tuple[int, int, int], float] = {}
        """When each was noted."""
        self._under_way: dict[int, dict[object, float]] = {}

    async def timed(
        self, segment: SegmentRow, index: int, read: Callable[[], Awaitable[Result]], *, report: bool = True
    ) -> Result:
        """Run a read of a shard; while it is under way its disk's answer is waited for. A failure is noted.

        Raises DiskGone when it was that of the disk as a whole, which is given up then.
        """
        disk = segment.disks[index]
        member = self._disks.get(disk)
        under_way = self._under_way.setdefault(disk, {})
        ticket = object()
        under_way[ticket] = trio.current_time()
        try:
            return await read()
        except (Corrupt, DiskError) as error:
            if isinstance(error, DiskError) and self._disks.judge(disk) is not member:
                raise DiskGone(str(error)) from error
            if report:
                self.note(segment, index, error)
            raise
        finally:
            del under_way[ticket]

    def note(self, segment: SegmentRow, index: int, error: ShardError) -> None:
        """A shard that should be whole is not. What a newer program wrote is no damage, and is left alone; nor is what
        cannot be read because its disk is gone, which may have come back by now.
        """
        damage = segment.id, index, segment.disks[index]
        now = trio.current_time()
        known = segment.missing >> index & 1 or now - self._damaged.get(damage, -1e18) < NOTED_AGAIN_S
        if known or isinstance(error, UnknownFormat | DiskGone) or self._disks.get(segment.disks[index]) is None:
            return
        if len(self._damaged) >= self._damages_noted_max:
            self._damaged.clear()
        self._damaged[damage] = now
        log.warning("shard found damaged", shard=self.where(segment, index), segment=segment.id, reason=str(error))
        if self._on_damage is not None:
            self._on_damage(*damage)

    def forget_damage(self, segment_id: int, index: int, disk: int) -> None:
        """Note the shard again at once when it fails again on a disk."""
        self._damaged.pop((segment_id, index, disk), None)

    def is_trusted(self, segment: SegmentRow, index: int) -> bool:
        """Whether a shard is whole, for all we know, on a disk that answers."""
        disk = segment.disks[index]
        return not segment.missing >> index & 1 and self._disks.get(disk) is not None and not self.is_late(disk)

    def by_trust(self, segment: SegmentRow, first: int = 0) -> list[int]:
        """All shards on disks that are good, the best first; `first` before its equals."""
        found = []
        for index, disk in enumerate(segment.disks):
            if self._disks.get(disk) is not None:
                found.append((segment.missing >> index & 1, self.is_late(disk), index != first, index))
        return [index for *_, index in sorted(found)]

    def is_late(self, disk: int) -> bool:
        """True while the oldest read under way on a disk takes longer than it should."""
        for started in self._under_way.get(disk, {}).values():
            return trio.current_time() - started >= self._late_s
        return False

    def where(self, segment: SegmentRow, index: int) -> str:
        """For people: the shard and the disk it lies on."""
        disk = segment.disks[index]
        return f"shard {index} on {self._disks.name(disk) if disk >= 0 else 'no disk'}"

    def lost(self, segment: SegmentRow, stripe: int, good_count: int, bad: Mapping[ShardRange, ShardError]) -> DataLost:
        """The error that says which shards are missing, and why."""
        reasons = {each.shard: str(error) for each, error in bad.items()}
        for index, disk in enumerate(segment.disks):
            if self._disks.get(disk) is None:
                reasons[index] = self._disks.failures.get(disk, "never written")
        listed = "; ".join(f"{self.where(segment, index)}: {reasons[index]}" for index in sorted(reasons))
        return DataLost(
            f"segment {segment.id}, stripe {stripe}: {good_count} of {segment.k}+{segment.m} shards can be read, "
            f"{segment.k} are needed ({listed})"
        )
