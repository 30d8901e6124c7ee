"""Small things that nobody else removes."""

from couchestord.clock import Clock
from couchestord.ec.compact import Compactor
from couchestord.ec.segments import SegmentPool, Submit
from couchestord.io import requests as rq
from couchestord.io.catalog.catalog import Catalog
from couchestord.service import Progress


class Housekeeper:
    """A service: forgets old results of uploads, seals segments that nobody appends to again; at its first step removes
    files of segments that are gone.
    """

    name = "housekeeping"
    interval_s = 60.0

    def __init__(
        self,
        catalog: Catalog,
        clock: Clock,
        submit: Submit,
        pool: SegmentPool,
        compactor: Compactor,
        results_kept_s: float,
    ) -> None:
        self._catalog = catalog
        self._clock = clock
        self._submit = submit
        self._pool = pool
        self._compactor = compactor
        self._results_kept_ns = int(results_kept_s * 1e9)
        self._swept = False

    async def work(self) -> Progress:
        if not self._swept:
            await self._compactor.sweep(lambda: self._catalog.applier.next_id)
            self._swept = True
        await self._pool.seal_unfit()
        before_ns = self._clock.now_ns() - self._results_kept_ns
        if self._catalog.accounts.finished_before(before_ns):
            await self._submit(rq.ForgetResults(before_ns))
        return Progress.IDLE
