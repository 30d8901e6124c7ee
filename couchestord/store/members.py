"""The disks of a store, and an empty one in the place of one that is lost for good."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from couchestord.errors import (
    Corrupt,
    DiskError,
    DiskInUse,
    DiskTimeout,
    InvalidArgument,
    StoreExists,
    TooFewDisks,
    UnknownFormat,
)
from couchestord.io import superblock as sb
from couchestord.io.directory import DirectoryDisk
from couchestord.io.newdisk import replace_member
from couchestord.store.core import Core
from couchestord.store.health import status
from couchestord.store.opening import NO_CONTENT, STORE_ID_BYTES

NAMES_SHOWN_MAX: Final = 5
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Replaced:
    """Where disk `index` is now. `is_new` False: it was there already, and nothing was done."""

    index: int
    folder: Path
    is_new: bool


@dataclass(frozen=True, slots=True)
class _Seen:
    """What lies in a folder that a disk may be in."""

    real_path: str
    exists: bool = True
    identity: sb.Identity | None = None
    damage: str = ""
    """What is wrong with it, when it does not answer or its superblock cannot be read."""
    names: tuple[str, ...] = ()

    @property
    def is_free(self) -> bool:
        return self.exists and self.identity is None and not self.damage and not self.names


class Members:
    """The disks of a store, by index. Methods belong to the store's task context."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._turn = trio.Lock()

    async def list(self) -> list[dict[str, Any]]:
        """What `ObjectStore.status` says of each disk, shortened, ready for JSON.

        `state` is missing, comparing (it was away, and what it lacks is being found out), full (no new data goes to it)
        or good; `folder` and `free_bytes` are None of one that is missing.
        """
        rows = (await status(self._core))["disks"]
        return [
            {
                "disk": row["index"],
                "folder": row["name"] if row["state"] != "missing" else None,
                "state": _state(row),
                "class": row["class"],
                "reason": row.get("reason"),
                "free_bytes": row.get("free_bytes"),
                "loses_data_if_lost": row["loses_data_if_lost"],
                "if_lost": row["if_lost"],
            }
            for row in rows
        ]

    async def replace(self, index: int, folder: Path | None = None, *, force: bool = False) -> Replaced:
        """Make the empty disk in `folder` disk `index`, in the place of one that is lost for good.

        `folder` is one of those that the store looks for its disks in; None: the one at place `index` of them. On
        return its superblock is durable, and so is that nothing is known to lie there. The next step of the monitor,
        or the next start, takes the disk in as one that was away and lacks all, and it is filled again in the
        background: until then `health` is degraded. The disk that was there before is an old one from now on: it may
        come back later in the place of the new one, and is compared then as well.

        Raises InvalidArgument when there is no such disk, or the folder cannot be used: it is not the store's, not
        there, not empty, or, unless `force`, most likely not mounted, for other disks are on file systems of their own
        and it is not; StoreExists when it has a superblock, which is never overwritten; DiskInUse when disk `index` is
        here; TooFewDisks when more disks are missing than the code makes good; DiskError; what a commit raises.
        """
        async with self._turn:
            core = self._core
            if not 0 <= index < core.disks.count:
                raise InvalidArgument(f"there is no disk {index}: the store has disks 0 to {core.disks.count - 1}")
            self._check_missing(index)
            found = {each: await self._look(each) for each in core.jobs.monitor.folders}
            target = await self._choose(index, folder, found)
            identity = found[target].identity
            if identity is not None and self._is_member(identity, index):
                return Replaced(index, target, is_new=False)
            self._check_usable(target, found, by_default=folder is None)
            for other, seen in found.items():
                if seen.identity is not None and self._is_member(seen.identity, index):
                    raise DiskInUse(f"disk {index} is in {other}: unmount it, or take it away, first")
            if core.disks.missing_count() > core.disks.m:
                raise TooFewDisks(
                    f"{core.disks.missing_count()} of {core.disks.count} disks are missing, more than {core.disks.m}: "
                    "bring the others back first"
                )
            if not force:
                await self._check_mounted(target)
            await self._make(index, target)
            return Replaced(index, target, is_new=True)

    def _check_missing(self, index: int) -> None:
        here = self._core.disks.get(index)
        if here is not None:
            raise DiskInUse(f"disk {index} is in use, in {here.name}: unmount it first")

    def _is_member(self, identity: sb.Identity, index: int) -> bool:
        return (identity.store_id, identity.index) == (self._core.disks.store_id, index)

    async def _ask(self, folder: Path, question: Callable[[Path], Result]) -> Result:
        """See `Monitor.ask`."""
        return await self._core.jobs.monitor.ask(str(folder), partial(question, folder))

    async def _look(self, folder: Path) -> _Seen:
        try:
            return await self._ask(folder, _see)
        except DiskTimeout:
            return _Seen(str(folder), damage="does not answer")

    async def _choose(self, index: int, folder: Path | None, found: Mapping[Path, _Seen]) -> Path:
        known = ", ".join(map(str, found))
        if folder is None:
            if index < len(found):
                return list(found)[index]
            raise InvalidArgument(f"name the folder of the new disk {index}: one of {known}")
        real_path = (await self._look(folder)).real_path
        for each, seen in found.items():
            if seen.real_path == real_path:
                return each
        raise InvalidArgument(
            f"{folder} is none of the folders that the store looks for its disks in: {known}. Mount the new disk at "
            "one of them, or name its folder in store.disks and start the daemon again"
        )

    def _check_usable(self, target: Path, found: Mapping[Path, _Seen], *, by_default: bool) -> None:
        """Raises InvalidArgument or StoreExists unless it is an empty folder."""
        seen = found[target]
        free = ", ".join(str(each) for each, other in found.items() if other.is_free and each != target)
        hint = f". Name the folder of the new disk; free are: {free or 'none'}" if by_default else ""
        if not seen.exists:
            raise InvalidArgument(f"there is no folder {target}: make it, or mount the new disk there{hint}")
        if seen.damage:
            raise StoreExists(f"{target} {seen.damage}; it is not touched{hint}")
        if seen.identity is not None:
            is_ours = seen.identity.store_id == self._core.disks.store_id
            whose = f"is disk {seen.identity.index} of this store" if is_ours else "belongs to another store"
            raise StoreExists(f"{target} {whose}, and is not touched{hint}")
        if seen.names:
            shown = ", ".join(seen.names[:NAMES_SHOWN_MAX])
            more = f" and {len(seen.names) - NAMES_SHOWN_MAX} more" if len(seen.names) > NAMES_SHOWN_MAX else ""
            raise InvalidArgument(f"{target} is not empty: it holds {shown}{more}")

    async def _check_mounted(self, target: Path) -> None:
        """Raises InvalidArgument when the other disks are on file systems of their own, and this is on none."""
        core = self._core
        others: list[int] = []
        for index in core.disks.good():
            disk = core.disks.get(index)
            if disk is not None:
                others.append((await disk.capacity()).file_system)
        data = core.catalog.path.parent
        device, *around = [await self._ask(each, _device) for each in (target, data, data.resolve().parent, Path("/"))]
        if len(set(others)) == len(others) and around[0] not in others and device in {*around, *others}:
            raise InvalidArgument(
                f"{target} is on no file system of its own, as the other disks are: the new disk is most likely not "
                "mounted. Mount it; --force takes the folder as it is"
            )

    async def _make(self, index: int, target: Path) -> None:
        core = self._core
        disk = await DirectoryDisk.open(target, deadline_s=core.options.disk_deadline_s)
        try:
            # first: what the catalog has there is not there, whenever the new disk is found
            await core.jobs.known.forget(index)
            self._check_missing(index)
            await replace_member(core.disks, index, disk, core.clock.random_bytes(STORE_ID_BYTES))
        finally:
            disk.close()
        core.jobs.monitor.expect(index)


def _state(row: Mapping[str, Any]) -> str:
    for state in ("comparing", "full"):
        if row["state"] == "good" and row[state]:
            return state
    return str(row["state"])


def _device(folder: Path) -> int:
    try:
        return os.stat(folder).st_dev
    except OSError as error:
        raise DiskError(f"{folder}: {error.strerror}") from None


def _see(folder: Path) -> _Seen:
    real_path = os.path.realpath(folder)
    try:
        names = tuple(sorted(set(os.listdir(folder)) - NO_CONTENT))
    except (FileNotFoundError, NotADirectoryError):
        return _Seen(real_path, exists=False)
    except OSError as error:
        return _Seen(real_path, damage=f"cannot be read ({error.strerror})")
    if sb.PATH not in names:
        return _Seen(real_path, names=names)
    try:
        with open(folder / sb.PATH, "rb") as file:
            return _Seen(real_path, identity=sb.unpack_identity(file.read(sb.PAGE_BYTES)))
    except (OSError, Corrupt, UnknownFormat) as error:
        return _Seen(real_path, damage=f"holds a superblock that cannot be read ({error})")
