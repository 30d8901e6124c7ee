"""The catalog made again from the disks, on request."""

from dataclasses import dataclass
from pathlib import Path

from couchestord.clock import SystemClock
from couchestord.io.catalog.catalog import FILE_SUFFIXES
from couchestord.store.opening import CATALOG_NAME, open_directories
from couchestord.store.options import StoreOptions

SET_ASIDE = ".set-aside"


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a recovery did."""

    sequence: int
    replayed_records: int
    missing_disks: int
    set_aside: str | None
    """The catalog that was there, under its new name."""


async def recover_catalog(path: Path, options: StoreOptions) -> Recovered:
    """Set the catalog of the store in the data folder `path` aside and make it again from its snapshot and the log.

    No daemon may run on it. When this fails, the old catalog is put back. Raises DiskLocked, NotAStore, JournalDamaged.
    """
    catalog = path / CATALOG_NAME
    was_there = catalog.exists()
    _rename(catalog, "", SET_ASIDE)
    try:
        async with open_directories(path, options, SystemClock()) as core:
            return Recovered(
                core.catalog.committed_sequence,
                core.started.replayed_count,
                core.disks.missing_count(),
                f"{catalog}{SET_ASIDE}" if was_there else None,
            )
    except BaseException:
        if was_there:
            _rename(catalog, SET_ASIDE, "")
        raise


def _rename(catalog: Path, old: str, new: str) -> None:
    for suffix in FILE_SUFFIXES:
        file = Path(f"{catalog}{suffix}{old}")
        if file.exists():
            file.replace(f"{catalog}{suffix}{new}")
