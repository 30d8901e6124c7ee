"""The folder of the second cache: may it be used, and is what lies there still true of this store?

An extent's id stands for the same bytes as long as the log keeps what it was told. A start may find that the log lost
its end, or take up a part of a store that was torn, or an older copy of its disks: then ids that were in use are given
to other bytes. Each epoch of a store has a random token, which lies in the superblocks, and the folder notes the newest
(epoch, token) that chunks in it may come from, before one is written. A start that finds just this as the newest on the
store's disks, and may write, follows upon all that the folder has seen; but for the end of the log, if it was lost,
whose ids are at or above the next one that the catalog would give. So the folder notes that next id with each opening,
and a record counts only if its extent's id is below those of all openings since it was written. Whatever else a start
finds, the folder is emptied.
"""

import os
import re
import stat
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio
from msgspec.structs import replace

from couchestord import logs
from couchestord.cache import l2format as fmt
from couchestord.cache.l2map import L2Map
from couchestord.cache.l2reading import Records
from couchestord.cache.l2ring import OTHER_BYTES, SEGMENTS_MIN, Ring, segment_bytes_for
from couchestord.errors import Corrupt, DiskFailed, DiskFull, DiskTimeout, NoSuchFile, UnknownFormat
from couchestord.io.directory import DirectoryDisk
from couchestord.io.disk import Disk
from couchestord.io.folder import FOLDER_MODE, LOCK_NAME

log = logs.get(__name__)
STATE: Final = "state"
FOLDER_ID_BYTES: Final = 16
DESCRIPTORS_MAX: Final = 1024
OPENINGS_MAX: Final = 256
"""What was written more openings ago is not found any more."""
_OURS: Final = frozenset((LOCK_NAME, STATE, fmt.FOLDER, "lost+found"))
_SEGMENT_NAME: Final = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class L2Options:
    """What the second cache can be told; sizes in bytes, times in seconds."""

    path: Path
    """Its folder, made if it is missing; the one above it must be there."""
    size_bytes: int
    """All that it may take there. Rounded down to whole segments."""
    allow_shared_device: bool = False
    """Lie on the device of a data disk, too: then reads of both wait for each other."""
    deadline_s: float = 2.0
    """A call that takes longer turns the cache off: it is there to save time."""
    threads_count: int = 4
    queue_bytes_max: int = 8 << 20
    """Chunks that wait to be written."""
    reads_max: int = 64
    """Cold reads at a time; more are misses."""
    retry_s_min: float = 10.0
    retry_s_max: float = 600.0
    """Between tries to turn a cache that failed on again: twice as long each time."""
    look_interval_s: float = 10.0
    """Between looks whether the files are still there."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the store stands that the cache is of."""

    store_id: bytes
    before: fmt.Mark
    """The newest epoch on its disks when it was started, before it took its own."""
    next_id: int
    """Of its catalog, when that was brought up to the log: ids below it stand for what they always did."""
    now: Callable[[], fmt.Mark]
    """The epoch it is in."""


def segments_for(size_bytes: int) -> tuple[int, int]:
    """(bytes of a segment, how many) of a cache of that size. Raises DiskFailed when it is too small."""
    segment_bytes = segment_bytes_for(size_bytes)
    count = (size_bytes - OTHER_BYTES) // segment_bytes
    if count < SEGMENTS_MIN:
        raise DiskFailed(f"a cache of {size_bytes} bytes is too small: give it 5 MiB or more")
    return segment_bytes, count


async def open_folder(options: L2Options, devices: Collection[int], threads: trio.CapacityLimiter) -> Disk:
    """The folder, locked for this process. `devices` are the file systems of the data disks (`Capacity.file_system`).
    `threads`, of one, is for all tries: while a folder hangs they wait for it in one thread, which no one else lacks.

    Raises DiskError, and says why, when it holds what is not a cache's or shares a device and may not; DiskLocked.
    """
    _, count = segments_for(options.size_bytes)
    prepare = partial(_prepare, options.path, frozenset() if options.allow_shared_device else frozenset(devices))
    with trio.move_on_after(options.deadline_s) as waiting:
        await trio.to_thread.run_sync(prepare, abandon_on_cancel=True, limiter=threads)
    if waiting.cancelled_caught:
        raise DiskTimeout(f"{options.path}: no answer within {options.deadline_s:g} s")
    return await _open(options, count, read_only=False)


async def open_beside(options: L2Options) -> Disk:
    """The folder beside the process that has it, to be read. Raises DiskError."""
    return await _open(options, segments_for(options.size_bytes)[1], read_only=True)


async def _open(options: L2Options, segments_count: int, *, read_only: bool) -> Disk:
    return await DirectoryDisk.open(
        options.path,
        threads_count=options.threads_count,
        deadline_s=options.deadline_s,
        descriptors_max=min(segments_count + 8, DESCRIPTORS_MAX),
        read_only=read_only,
    )


def _prepare(path: Path, devices: Collection[int]) -> None:
    try:
        path.mkdir(FOLDER_MODE, exist_ok=True)
        found = path.stat()
        if found.st_dev in devices:
            raise DiskFailed(
                f"{path} lies on the device of a data disk, and would take time from it: name a folder on another "
                "one, or set cache.l2_shared_device"
            )
        foreign = {entry.name for entry in os.scandir(path)} - _OURS
        segments = path / fmt.FOLDER
        if segments.is_dir():
            foreign |= {entry.name for entry in os.scandir(segments) if not _SEGMENT_NAME.fullmatch(entry.name)}
        if foreign:
            raise DiskFailed(f"{path} holds what no cache put there ({min(foreign)}): name an empty folder")
        if stat.S_IMODE(found.st_mode) != FOLDER_MODE:
            path.chmod(FOLDER_MODE)
    except OSError as error:
        raise DiskFailed(f"{path} cannot be used as a cache: {error.strerror}") from error


class Attached:
    """A folder that is open, for one store. `ring` changes when it is emptied. Raises DiskError, all of it."""

    def __init__(self, disk: Disk, standing: Standing, ring: Ring, state: fmt.State, make_ring: "_MakeRing") -> None:
        self.disk = disk
        self.ring = ring
        self._standing = standing
        self._state = state
        self._make_ring = make_ring

    @property
    def mark(self) -> fmt.Mark:
        """The newest epoch that chunks here may come from."""
        return self._state.mark

    async def keep_up(self) -> None:
        """Before chunks are written: note the epoch that they may come from, if it is a new one."""
        now = self._standing.now()
        if now != self._state.mark:
            await self._save(self._state.folder_id, now)

    async def empty(self, folder_id: bytes) -> None:
        """Forget everything. `folder_id`: random."""
        await self._save(folder_id, self._standing.now())
        self.ring = await self._make_ring(self._state)

    async def _save(self, folder_id: bytes, mark: fmt.Mark) -> None:
        before = self._state
        state = replace(before, folder_id=folder_id, mark=mark)
        await _write_state(self.disk, state)
        self._state = state

    async def look(self) -> None:
        """Raises DiskFailed when files were taken away."""
        self.ring.check(await self.disk.list(fmt.FOLDER))
        await self.keep_up()

    async def close(self) -> None:
        """Leave all as the next start wants it. The disk stays open."""
        await self.keep_up()
        await self.ring.close()


_MakeRing = Callable[[fmt.State], Awaitable[Ring]]


async def attach(
    disk: Disk,
    size_bytes: int,
    standing: Standing,
    noted: Collection[fmt.Mark],
    folder_id: bytes,
    shared: L2Map | None = None,
) -> Attached:
    """Take what lies there into use if it is still true of this store, else empty it.

    `noted` are epochs that this very run of the store noted here; `folder_id` is random, for a folder that is emptied.
    `shared`, which is closed, is told what there is. Raises DiskError.
    """
    segment_bytes, count = segments_for(size_bytes)
    await _check_room(disk, size_bytes)
    before = await _read_state(disk)
    state = fmt.State(standing.store_id, folder_id, segment_bytes, 1, (), standing.now())
    if before is not None:
        reason = _why_void(before, standing, segment_bytes, noted)
        if reason:
            log.warning("cache is emptied", folder=disk.name, reason=reason)
        else:
            # in one run ids only grow
            limit = fmt.ID_MAX if before.mark in noted else standing.next_id
            openings = (*before.openings, limit)[-OPENINGS_MAX:]
            state = replace(before, session=before.session + 1, openings=openings, mark=standing.now())
    # before a chunk is written that comes from the epoch of now
    await _write_state(disk, state)
    make_ring = partial(_load_ring, disk, count, shared)
    return Attached(disk, standing, await make_ring(state), state, make_ring)


async def _load_ring(disk: Disk, segments_count: int, shared: L2Map | None, state: fmt.State) -> Ring:
    if shared is not None:
        await shared.clear()
    records = Records(state.salt, state.session, tuple(state.limits))
    ring = Ring(disk, segment_bytes=state.segment_bytes, segments_count=segments_count, records=records, shared=shared)
    await ring.load()
    return ring


def _why_void(state: fmt.State, standing: Standing, segment_bytes: int, noted: Collection[fmt.Mark]) -> str:
    """Why nothing that lies there can be used, empty when it may be."""
    if state.store_id != standing.store_id:
        return "it is another store's"
    if state.segment_bytes != segment_bytes:
        return "its size is another one now"
    if state.mark in noted:
        return ""
    if not state.mark.token or state.mark != standing.before:
        return "the store has run without it, or is a copy or a part of the one that it was of"
    return ""


async def _check_room(disk: Disk, size_bytes: int) -> None:
    own_bytes = sum((await disk.list(fmt.FOLDER)).values())
    left_bytes = own_bytes + (await disk.capacity()).free_bytes
    if left_bytes < size_bytes:
        raise DiskFull(
            f"{disk.name} has no room for a cache of {size_bytes >> 20} MiB: {left_bytes >> 20} MiB are left"
        )


async def _read_state(disk: Disk) -> fmt.State | None:
    try:
        return fmt.unpack_state(await disk.read(STATE, 0, fmt.PAGE_BYTES))
    except (NoSuchFile, Corrupt):
        return None
    except UnknownFormat as error:
        raise DiskFailed(f"{disk.name}: {error}") from error


async def _write_state(disk: Disk, state: fmt.State) -> None:
    # torn, it is no state, and the folder is emptied: so it can be written in place
    await disk.write_at(STATE, 0, [fmt.pack_state(state)], sync=True)
    await disk.sync_dir("")
