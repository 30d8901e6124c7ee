"""The catalog made again from the disks, on request."""

from dataclasses import dataclass, replace
from pathlib import Path

from couchestord.clock import SystemClock
from couchestord.io.catalog.catalog import FILE_SUFFIXES
from couchestord.store.core import run_core
from couchestord.store.opening import CATALOG_NAME, load_directories
from couchestord.store.options import StoreOptions
from couchestord.store.start import told_by_its_file_system

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

    When this fails, the old catalog is put back; when it is cut off, the next attempt begins with that. Raises
    DiskLocked, and touches nothing, while a daemon runs on it; NotAStore, JournalDamaged, TooFewDisks, ...
    """
    catalog = path / CATALOG_NAME
    # the locks of the disks come first: who holds them has the catalog open
    disks = await load_directories(path, options)
    try:
        with told_by_its_file_system(catalog):
            if not catalog.exists():
                _take_back(catalog)
            was_there = catalog.exists()
            _set_aside(catalog)
    except BaseException:
        disks.close()
        raise
    try:
        async with run_core(disks, catalog, replace(options, services=False), SystemClock()) as core:
            return Recovered(
                core.catalog.committed_sequence,
                core.started.replayed_count,
                core.disks.missing_count(),
                f"{catalog}{SET_ASIDE}" if was_there else None,
            )
    except BaseException:
        _put_back(catalog)
        raise


def _set_aside(catalog: Path) -> None:
    for suffix in FILE_SUFFIXES:
        # of an older one nothing may stay: a WAL beside a main file that is not its own is replayed into it
        Path(f"{catalog}{suffix}{SET_ASIDE}").unlink(missing_ok=True)
    for suffix in FILE_SUFFIXES:
        file = Path(f"{catalog}{suffix}")
        if file.exists():
            file.replace(f"{file}{SET_ASIDE}")


def _put_back(catalog: Path) -> None:
    # the main file first: what is there of the failed attempt is no catalog from now on
    for suffix in FILE_SUFFIXES:
        Path(f"{catalog}{suffix}").unlink(missing_ok=True)
    _take_back(catalog)


def _take_back(catalog: Path) -> None:
    """Give the catalog that was set aside its name, which no other has."""
    if Path(f"{catalog}{SET_ASIDE}").exists():
        # the main file last: while it has not its name, there is no catalog
        for suffix in reversed(FILE_SUFFIXES):
            file = Path(f"{catalog}{suffix}{SET_ASIDE}")
            if file.exists():
                file.replace(f"{catalog}{suffix}")
