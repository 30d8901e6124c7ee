"""The caches of a store, as its operators see them."""

from dataclasses import dataclass
from typing import Any

import trio

from couchestord import logs
from couchestord.errors import DataLost, InvalidArgument, NoSuchBucket, NoSuchKey
from couchestord.model import LIST_KEYS_MAX
from couchestord.store.core import Core
from couchestord.store.decide.context import find_version
from couchestord.store.health import caches_status
from couchestord.store.listing import list_page
from couchestord.store.reader import open_reader
from couchestord.store.values import object_info

log = logs.get(__name__)
WARM_BYTES_MAX = 64 << 20
"""Of one step."""
WARM_S_MAX = 2.0


@dataclass(frozen=True, slots=True)
class Warmed:
    """What a step of a warm-up did."""

    objects_count: int
    size_bytes: int
    lost_count: int
    """Objects that could not be read."""
    next_start: bytes | None
    """The next step begins after this key; None: there is none."""


class Caches:
    """What is kept of what was read, since the store was opened."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def stats(self) -> list[dict[str, Any]]:
        """Counts of each tier, ready for JSON; none when caches are off."""
        return caches_status(self._core.cache.stats())

    async def evict(self, tier: str | None = None) -> int:
        """Forget what a tier (`l1`, `l2`) or, with None, all of them hold. Answers how many bytes went."""
        return await self._core.cache.evict(tier)

    async def warm(self, bucket: str, prefix: bytes = b"", start_after: bytes = b"") -> Warmed:
        """A step of bringing objects into the caches, in order of keys: at most 1000 of them, 64 MiB (which is all that
        is brought of a larger one), and about 2 s.

        What does not fit pushes out what came before: end when as much was brought as the tiers may hold.
        Raises NoSuchBucket, InvalidArgument when caches are off.
        """
        if not self._core.cache.is_on:
            raise InvalidArgument("caches are off (cache.l1_size), or those of workers, which cannot be warmed")
        reading = self._core.catalog.reading
        row = reading.bucket(bucket)
        if row is None:
            raise NoSuchBucket(f"there is no bucket {bucket!r}")
        with self._core.catalog.snapshot() as reader:
            page = list_page(
                reader, row.root, prefix=prefix, delimiter=b"", start_after=start_after, max_keys=LIST_KEYS_MAX
            )
        objects_count = size_bytes = lost_count = 0
        deadline = trio.current_time() + WARM_S_MAX
        for entry in page.entries:
            # what is in memory already takes no wait: a step over it must not hold up the loop
            await trio.lowlevel.checkpoint()
            try:
                _, _, found = find_version(reading, row, entry.key, None)
                info = object_info(row, entry.key, found)
                async with open_reader(reading, self._core.reader_parts, info, found, None) as opened:
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
