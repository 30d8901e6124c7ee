"""The second cache of the store's process, as one that reads beside it has it."""

from contextlib import suppress
from functools import partial
from typing import Final

from couchestord.cache import CacheConfig
from couchestord.cache.l2beside import L2Beside
from couchestord.cache.l2folder import L2Options, open_beside
from couchestord.errors import Unavailable
from couchestord.replica import messages as ms
from couchestord.replica.link import Link

_UNSENT_BYTES_MAX: Final = 1 << 20
"""With more than that on its way, chunks are dropped: changes wait behind them."""


class _Owner:
    """`Owner` over a link."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def keep(self, extent: int, chunk: int, data: bytes) -> bool:
        if self._link.is_gone or self._link.channel.unsent_bytes + len(data) > _UNSENT_BYTES_MAX:
            return False
        self._link.tell(ms.KeepChunk(extent, chunk, data))
        return True

    async def flush(self) -> None:
        with suppress(Unavailable):
            await self._link.ask(ms.FlushChunks, None, can_cancel=True)

    def report(self, extent: int, chunk: int, place: int) -> None:
        self._link.tell(ms.ChunkDamage(extent, chunk, place))


def second_tier(link: Link, cache: CacheConfig, opening: int) -> L2Beside | None:
    """For that opening of the store; None when it has no such cache."""
    if cache.l2_map is None or cache.l2_path is None or not opening:
        return None
    options = L2Options(cache.l2_path, cache.l2_bytes)
    return L2Beside(cache.l2_map, opening, _Owner(link), partial(open_beside, options), options.reads_max)
