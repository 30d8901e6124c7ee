"""The log onto the catalog: the same code that commits, without decisions."""

from contextlib import aclosing

from couchestord.io import mutations as mu
from couchestord.io.catalog.catalog import Catalog
from couchestord.io.journal import Journal
from couchestord.io.records import record_digest

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
                    catalog.begin()
                catalog.applier.apply(mu.decode(meta), sequence, record_digest(meta, body_sum))
                count += 1
        if count:
            catalog.commit()
    except BaseException:
        catalog.rollback()
        raise
    return count
