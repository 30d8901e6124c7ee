"""Small things that nobody else removes."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

from couchestord import logs
from couchestord.clock import Clock
from couchestord.ec.segments import SegmentPool, Submit
from couchestord.errors import NotFound
from couchestord.io import requests as rq
from couchestord.io.catalog.catalog import Catalog
from couchestord.service import Progress

log = logs.get(__name__)
UPLOADS_PER_STEP_MAX = 64


class Housekeeper:
    """A service: forgets old results of uploads, aborts uploads that nobody goes on with, seals segments that nobody
    appends to again; at its first step removes files that are of no use.
    """

    name = "housekeeping"
    interval_s = 60.0

    def __init__(
        self,
        catalog: Catalog,
        clock: Clock,
        submit: Submit,
        pool: SegmentPool,
        sweep: Callable[[], Awaitable[object]],
        results_kept_s: float,
        uploads_kept_s: float,
    ) -> None:
        """`sweep` removes files of no use. `uploads_kept_s`: how long an upload may get no part; 0 for ever."""
        self._catalog = catalog
        self._clock = clock
        self._submit = submit
        self._pool = pool
        self._sweep = sweep
        self._results_kept_ns = int(results_kept_s * 1e9)
        self._uploads_kept_ns = int(uploads_kept_s * 1e9)
        self._swept = False
        self.aborted_uploads_count = 0

    async def work(self) -> Progress:
        if not self._swept:
            await self._sweep()
            self._swept = True
        await self._pool.seal_unfit()
        before_ns = self._clock.now_ns() - self._results_kept_ns
        if self._catalog.accounts.finished_before(before_ns):
            await self._submit(rq.ForgetResults(before_ns))
        return Progress.BUSY if await self._reap_uploads() else Progress.IDLE

    async def _reap_uploads(self) -> bool:
        """Abort some uploads that were left; True when there may be more."""
        if not self._uploads_kept_ns:
            return False
        before_ns = max(0, self._clock.now_ns() - self._uploads_kept_ns)
        rows = self._catalog.accounts.uploads_idle_since(before_ns, UPLOADS_PER_STEP_MAX)
        for row in rows:
            with suppress(NotFound):  # completed or aborted meanwhile
                await self._submit(rq.AbortUpload(row.bucket, row.key, row.id, before_ns))
                self.aborted_uploads_count += 1
        if rows:
            log.info("uploads that were left were aborted", count=len(rows))
        return len(rows) == UPLOADS_PER_STEP_MAX
