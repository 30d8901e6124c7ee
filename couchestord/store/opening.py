"""Folders into a running store."""

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from couchestord import logs
from couchestord.clock import Clock
from couchestord.ec.placement import check_policy
from couchestord.errors import AccessDenied, ConfigError, DiskError, DiskLocked, InvalidArgument, NotAStore, TooFewDisks
from couchestord.io.directory import DirectoryDisk
from couchestord.io.disk import Disk
from couchestord.io.disks import Disks, load_disks
from couchestord.io.folder import LOCK_NAME
from couchestord.io.newdisk import NEW_PATH, create_store, may_be_cut_off
from couchestord.io.superblock import PATH as SUPERBLOCK
from couchestord.store.core import Core, run_core
from couchestord.store.options import StoreOptions

log = logs.get(__name__)
CATALOG_NAME = "catalog.sqlite"
STORE_ID_BYTES = 16
NO_CONTENT = frozenset((LOCK_NAME, NEW_PATH, "lost+found"))
"""What an empty disk may hold: what mkfs makes, and what an attempt that was cut short leaves."""


def disk_folders(path: Path, options: StoreOptions) -> list[Path]:
    """Where the disks of the store in the data folder `path` are expected."""
    if options.disks:
        return list(options.disks)
    numbers = set(range(options.disks_count))
    try:
        numbers |= {int(found.name[5:]) for found in path.glob("disk-*") if found.name[5:].isdecimal()}
    except PermissionError as error:
        raise _may_not_look(path, error) from None
    except OSError as error:
        raise ConfigError(f"cannot look at {path}: {error.strerror}") from None
    return [path / f"disk-{number}" for number in sorted(numbers)]


async def create_directories(path: Path, options: StoreOptions, clock: Clock) -> None:
    """Make the folders and the superblocks of a new store. Raises InvalidArgument, StoreExists, DiskError."""
    folders = disk_folders(path, options)
    check_policy(options.policy(), len(folders), options.shards_per_disk)
    if len(options.disk_classes) not in (0, len(folders)):
        raise InvalidArgument(f"there are {len(options.disk_classes)} classes for {len(folders)} disks")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    disks: list[Disk] = []
    try:
        for folder in folders:
            disks.append(await DirectoryDisk.open(folder, deadline_s=options.disk_deadline_s, create=True))
        await create_store(
            disks,
            store_id=clock.random_bytes(STORE_ID_BYTES),
            disk_ids=[clock.random_bytes(STORE_ID_BYTES) for _ in disks],
            k=options.k,
            m=options.m,
            created_ns=clock.now_ns(),
            stripe_bytes=options.stripe_bytes,
            min_healthy_shards=options.min_healthy_shards,
            shards_per_disk=options.shards_per_disk,
            classes=options.disk_classes,
        )
    finally:
        for disk in disks:
            disk.close()


async def load_directories(path: Path, options: StoreOptions) -> Disks:
    """Open and lock the disks that are there. Raises NotAStore, TooFewDisks, DiskLocked, ForeignDisk, UnknownFormat."""
    opened: list[Disk] = []
    try:
        for folder in disk_folders(path, options):
            disk = await _open_disk(folder, options)
            if disk is not None:
                opened.append(disk)
        if not opened:
            raise NotAStore(
                f"no store lies in {path}: mount its disks, or make one with `couchestord init --data {path}`"
            )
        disks = await load_disks(opened)
        if may_be_cut_off(disks) and disks.missing_count() > disks.m:
            raise TooFewDisks(
                f"{disks.missing_count()} of {disks.count} disks are missing, and nothing was written to the others. "
                f"Mount them; or, if the making of this store was cut off, run `couchestord init --data {path}` again"
            )
        return disks
    except BaseException:
        for disk in opened:
            disk.close()
        raise


@asynccontextmanager
async def open_directories(path: Path, options: StoreOptions, clock: Clock) -> AsyncIterator[Core]:
    """Open the disks that are there and run the store on them. Raises as `load_directories` and `run_core` do."""
    disks = await load_directories(path, options)
    async with run_core(disks, path / CATALOG_NAME, options, clock) as core:
        # folders of disks that are missing may not be there, and how many there are the superblocks know
        count = max(options.disks_count, disks.count)
        core.jobs.monitor.watch(disk_folders(path, replace(options, disks_count=count)))
        yield core


async def _open_disk(folder: Path, options: StoreOptions) -> Disk | None:
    is_there = await _ask(_is_there, folder, options.disk_deadline_s)
    if not is_there:
        log.warning("disk is missing" if is_there is False else "disk does not answer", disk=str(folder))
        return None
    try:
        return await DirectoryDisk.open(folder, deadline_s=options.disk_deadline_s)
    except DiskLocked:
        raise
    except DiskError as error:
        log.error("disk cannot be opened", disk=str(folder), reason=str(error))
        return None


async def folders_there(disks: Sequence[Path], data: Path, deadline_s: float) -> list[Path]:
    """Those of `disks` that are there, or do not say so in time; none named: those below `data`. Raises ConfigError."""
    try:
        folders = disks or data.glob("disk-*")
        return [folder for folder in folders if await _ask(Path.exists, folder, deadline_s) is not False]
    except OSError as error:
        raise ConfigError(f"cannot look at {error.filename}: {error.strerror}") from None


async def _ask(question: Callable[[Path], bool], folder: Path, deadline_s: float) -> bool | None:
    """What a folder says, None when it hangs: a disk that does may hang whoever only looks at it."""
    with trio.move_on_after(deadline_s):
        return await trio.to_thread.run_sync(question, folder, abandon_on_cancel=True)
    return None


def _is_there(folder: Path) -> bool:
    """Raises AccessDenied where this user may not look, and when root would leave files that the owner cannot read."""
    try:
        if not folder.is_dir():
            return False
        owner = (folder / SUPERBLOCK).stat().st_uid
    except FileNotFoundError:
        return True
    except PermissionError as error:
        raise _may_not_look(folder, error) from None
    except OSError:
        return True  # who opens the disk will say
    if os.geteuid() == 0 != owner:
        raise AccessDenied(
            f"{folder} belongs to the user {owner}, who could not read what root writes there: run this as that user, "
            f"for instance with sudo -u '#{owner}'"
        )
    return True


def _may_not_look(folder: Path, error: OSError) -> AccessDenied:
    return AccessDenied(f"cannot look at {folder}: {error.strerror}; run this as the user that the store belongs to")
