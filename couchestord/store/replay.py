"""The log onto the catalog: the same code that commits, without decisions."""

from contextlib import aclosing

import trio

from couchestord import logs
from couchestord.errors import Corrupt
from couchestord.io import mutations as mu
from couchestord.io.catalog.catalog import WAL_BYTES_MAX, Catalog
from couchestord.io.catalog.pages import checkpoint_with_sums
from couchestord.io.journal import Journal
from couchestord.io.records import record_digest

log = logs.get(__name__)
RECORDS_PER_TRANSACTION = 2000


async def follows_log(catalog: Catalog, journal: Journal) -> bool:
    """False when the record that the catalog ends with is another one in the log. Raises DataLost."""
    applier = catalog.applier
    if not journal.holds(applier.sequence):
        return True
    meta, _, body_sum = await journal.record(applier.sequence)
    return record_digest(meta, body_sum) == applier.digest


async def replay(catalog: Catalog, journal: Journal) -> int:
    """Apply the records that the catalog has not, and commit; returns how many. Raises DataLost, Corrupt."""
    count = 0
    try:
        async with aclosing(journal.records(catalog.applier.sequence + 1)) as records:
            async for sequence, meta, _, body_sum in records:
                if count % RECORDS_PER_TRANSACTION == 0:
                    if count:
                        catalog.commit()
                        await bound_wal(catalog)
                    catalog.begin()
                catalog.applier.apply(mu.decode(meta), sequence, record_digest(meta, body_sum))
                count += 1
        if count:
            catalog.commit()
    except BaseException:
        catalog.rollback()
        raise
    return count


async def bound_wal(catalog: Catalog) -> None:
    """Between two transactions of a replay: empty a WAL that has grown long. Each of them writes pages all over the
    catalog, so of a long log it would be many times as long as the catalog, and the room for it nobody has.
    """
    if catalog.wal_bytes() <= WAL_BYTES_MAX:
        return
    try:
        with catalog.out_of_wal():
            await trio.to_thread.run_sync(checkpoint_with_sums, catalog.main)
    except (Corrupt, OSError) as error:
        # what is lacking, a commit will say
        log.warning("the catalog was not checkpointed while the log was applied", reason=str(error))
