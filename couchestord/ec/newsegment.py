"""Where a new segment lies on the disks as they are now, and whether an open one is as good as a new one would be."""

from couchestord.ec.opensegment import OpenSegment
from couchestord.ec.placement import choose_disks
from couchestord.ec.shards import PAGE_BYTES, shard_length
from couchestord.io.disks import Disks, shards_per_disk
from couchestord.io.room import ask_room
from couchestord.model import Policy


class NewSegments:
    """Looks at the disks of a policy's class: which are good, and how much room they have."""

    def __init__(self, disks: Disks, segment_bytes: int) -> None:
        """`segment_bytes`: data of a full segment."""
        self._disks = disks
        self._segment_bytes = segment_bytes
        self._turn = disks.epoch

    def is_fit(self, segment: OpenSegment, policy: Policy, *, dips: bool = False) -> bool:
        """May it be appended to, and would a new one not be another, or have more shards?"""
        row = segment.row
        if segment.broken or segment.replaced() or segment.data_bytes >= self._segment_bytes:
            return False
        if (row.k, row.m, row.stripe_bytes) != (policy.k, policy.m, policy.stripe_bytes):
            return False
        members = self._disks.of_class(policy.disk_class)
        roomy = members.intersection(self._usable(dips))
        used = [row.disks[index] for index in segment.whole()]
        wanted = min(len(roomy) * shards_per_disk(policy.shards_count, len(members)), policy.shards_count)
        return len(used) >= max(wanted, policy.shards_min) and roomy.issuperset(used)

    async def choose_disks(self, policy: Policy, *, dips: bool = False) -> tuple[int, ...]:
        """The disk of each shard of a new one, -1 for none. Raises NoSpace, TooFewDisks."""
        members = self._disks.of_class(policy.disk_class)
        per_disk_max = shards_per_disk(policy.shards_count, len(members))
        free_bytes = await self._room(policy, members, per_disk_max, dips)
        self._turn += 1
        return choose_disks(
            free_bytes,
            shards_count=policy.shards_count,
            per_disk_max=per_disk_max,
            least_count=policy.shards_min,
            good_count=len(members.intersection(self._disks.good())),
            turn=self._turn,
        )

    async def _room(self, policy: Policy, members: set[int], per_disk_max: int, dips: bool) -> dict[int, int]:
        """Free bytes over the reserve, or over half of it, of the disks that may take new data."""
        least = (2 * PAGE_BYTES + shard_length(policy.stripe_bytes, policy.k)) * per_disk_max
        again = max(least, self._segment_bytes // policy.k * per_disk_max)

        free_bytes: dict[int, int] = {}
        for index, room in (await ask_room(self._disks)).items():
            if index not in members:
                continue
            if self._disks.is_full(index) and room.left_bytes >= again:
                self._disks.room_again(index)
            left_bytes = room.left_bytes + ((room.free_bytes - room.left_bytes) // 2 if dips else 0)
            if index in self._usable(dips) and left_bytes >= least:
                free_bytes[index] = left_bytes
        return free_bytes

    def _usable(self, dips: bool) -> list[int]:
        """Disks that new data may go to, those of which only the reserve is left too for who dips into it."""
        return self._disks.spare() if dips else self._disks.roomy()
