"""The caches of a store, as its operators see them."""

from collections.abc import Sequence
from typing import Any

import trio

from couchestord import logs
from couchestord.cache import TierStats, sum_tiers
from couchestord.errors import DataLost, InvalidArgument, NoSuchKey
from couchestord.model import LIST_KEYS_MAX
from couchestord.store.beside import Beside, Nobody, Warmed
from couchestord.store.decide.context import find_version
from couchestord.store.health import caches_status
from couchestord.store.listing import list_page
from couchestord.store.parts import Parts
from couchestord.store.reader import open_reader
from couchestord.store.uploads import find_bucket
from couchestord.store.values import object_info

log = logs.get(__name__)
WARM_BYTES_MAX = 64 << 20
"""Of one step."""
WARM_S_MAX = 2.0


class Caches:
    """What is kept of what was read, since the store was opened, in this process and in those that read beside it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._cache = parts.reader_parts.cache
        self.beside: Beside = Nobody()

    def stats(self) -> list[dict[str, Any]]:
        """Counts of each tier in all processes, ready for JSON; none when caches are off."""
        beside = [tier for each in self.beside.stats() for tier in each.tiers]
        return caches_status(sorted(sum_tiers([*self._cache.stats(), *beside]), key=lambda tier: tier.name))

    def stats_of_each(self) -> list[dict[str, Any]]:
        """As `stats`, with what each process that reads beside this one has of a tier, under `processes`."""
        beside = [(each.pid, row) for each in self.beside.stats() if each.pid for row in caches_status(each.tiers)]
        return [
            row | ({"processes": [{"pid": pid, **one} for pid, one in beside if one["tier"] == row["tier"]]})
            if beside
            else row
            for row in self.stats()
        ]

    def warm_bytes_max(self) -> int:
        """More than this need not be brought: what is kept for the same requests. Any process is asked for any object,
        so what the one of them that has least room holds, with what is below all of them.
        """
        beside = [_capacity(each.tiers) for each in self.beside.stats() if each.pid and each.is_worker]
        return _capacity(self._cache.stats()) + min(beside, default=0)

    async def evict(self, tier: str | None = None) -> int:
        """Forget what a tier (`l1`, `l2`) or, with None, all of them hold, in all processes. Answers how many bytes
        went.
        """
        # first: what the others drop comes here
        beside = await self.beside.evict(tier)
        return beside + await self._cache.evict(tier)

    async def warm(self, bucket: str, prefix: bytes = b"", start_after: bytes = b"") -> Warmed:
        """A step of bringing objects into the caches, in order of keys: at most 1000 of them, 64 MiB (which is all that
        is brought of a larger one), and about 2 s.

        What does not fit pushes out what came before: end when as much was brought as `warm_bytes_max`. Every process
        that has caches brings the same; told is what the one did that came least far, and the next step of all begins
        there. Raises NoSuchBucket, InvalidArgument when caches are off.
        """
        steps = [*await self.beside.warm(bucket, prefix, start_after)]
        if self._cache.is_on:
            steps.append(await self._warm(bucket, prefix, start_after))
        if not steps:
            raise InvalidArgument("caches are off (cache.l1_size)")
        return min(steps, key=lambda step: (step.next_start is None, step.next_start or b"", -step.size_bytes))

    async def _warm(self, bucket: str, prefix: bytes, start_after: bytes) -> Warmed:
        row = find_bucket(self._parts, bucket)
        catalog, reading = self._parts.catalog, self._parts.catalog.reading
        with catalog.snapshot() as reader:
            page = list_page(
                reader, row.root, prefix=prefix, delimiter=b"", start_after=start_after, max_keys=LIST_KEYS_MAX
            )
        objects_count = size_bytes = lost_count = 0
        deadline = trio.current_time() + WARM_S_MAX
        for entry in page.entries:
            # what is in memory already takes no wait: a step over it must not hold up the loop
            await trio.lowlevel.checkpoint()
            catalog.refresh()
            try:
                _, _, found = find_version(reading, row, entry.key, None)
                info = object_info(row, entry.key, found)
                async with open_reader(reading, self._parts.reader_parts, info, found, None) as opened:
                    size_bytes += await opened.warm(WARM_BYTES_MAX - size_bytes)
                objects_count += 1
            except NoSuchKey:
                pass  # deleted since it was listed
            except DataLost as error:
                lost_count += 1
                log.warning("object could not be read into the caches", reason=str(error))
            if size_bytes >= WARM_BYTES_MAX or trio.current_time() > deadline:
                return Warmed(objects_count, size_bytes, lost_count, entry.key)
        return Warmed(objects_count, size_bytes, lost_count, page.next_start)


def _capacity(tiers: Sequence[TierStats]) -> int:
    return sum(tier.capacity_bytes for tier in tiers)
