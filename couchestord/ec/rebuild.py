"""Redundancy restored on disk: shards that are missing, damaged, or on a disk that is away."""

import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import trio

from couchestord import logs
from couchestord.ec.rebuild_shard import ShardRebuild, StripeWalk, check_ends, is_as_long, is_live
from couchestord.ec.segments import Submit
from couchestord.ec.shardfile import remove_shard
from couchestord.ec.shards import FOLDER, parse_shard_name, shard_path
from couchestord.ec.stripes import StripeStore
from couchestord.ec.throttle import Throttle
from couchestord.errors import (
    Corrupt,
    DataLost,
    DiskError,
    DiskFailed,
    NoSpace,
    NoSuchFile,
    ShuttingDown,
    Unavailable,
    UnknownFormat,
)
from couchestord.io.catalog.read import CatalogReader, PlacementRow, SegmentRow
from couchestord.io.catalog.segments import STATE_SEALED
from couchestord.io.cutshort import remove_cut_short
from couchestord.io.disk import Disk
from couchestord.io.disks import Disks, shards_per_disk
from couchestord.io.requests import LoseShards, PlaceShard, SaveJob
from couchestord.io.room import ask_room
from couchestord.model import Policy
from couchestord.service import Progress

log = logs.get(__name__)

JOB = "rebuild"
CANDIDATES_MAX = 64
"""Segments of one placement that are looked at in one step."""
COMPARED_MAX = 256
"""Rows of segments that are held at a time while a disk is compared."""


@dataclass(frozen=True, slots=True)
class RebuildOptions:
    grace_s: float = 600.0
    """How long a disk may be away before its shards are made anew elsewhere."""
    interval_s: float = 5.0
    retry_s: float = 60.0
    """After a shard could not be rebuilt whole; twice as long each further time until a disk returns, up to
    `retry_s_max`: all of it is written anew each time, but what is lost.
    """
    retry_s_max: float = 3600.0
    stripes_per_step: int = 8
    damages_max: int = 4096


class Rebuilder:
    """One shard at a time, that of the most endangered segment first, a few stripes a step.

    A shard goes back to its own disk when that is good, else to a good disk of its policy's class that holds no shard
    of the segment, or fewer of them than an even spread puts there. An open segment is sealed first, unless a stream is
    writing to it: then it waits. What is to be done follows from the catalog and the disks alone, so after a restart it
    is simply found again; the job that is saved only says how far things are.
    """

    name = JOB

    def __init__(
        self,
        catalog: CatalogReader,
        disks: Disks,
        stripes: StripeStore,
        submit: Submit,
        throttle: Throttle,
        options: RebuildOptions = RebuildOptions(),
        retire: Callable[[int], Awaitable[None]] | None = None,
        policies: Callable[[int], Policy] = lambda _: Policy(),
    ) -> None:
        """`retire` seals an open segment that nobody writes to: `SegmentPool.retire`. `policies`: as there."""
        self._catalog = catalog
        self._disks = disks
        self._stripes = stripes
        self._submit = submit
        self._throttle = throttle
        self._options = options
        self._retire = retire
        self._policies = policies
        self._damages: set[tuple[int, int, int]] = set()
        self._away_since: dict[int, float] = {}
        self._not_before: dict[tuple[int, int], float] = {}
        self._pauses_s: dict[tuple[int, int], float] = {}
        """How long it was waited last, of shards of which something is lost."""
        self._current: ShardRebuild | None = None
        self.turn = trio.Lock()
        """Held while a shard is made and put in its place: hold it to judge which files of shards are of use."""
        self._swept = False
        self._unseen: set[int] | None = None
        """Disks of which a start knows no more than what their superblocks say; None before the first step."""
        self._saved = b""
        self.rebuilt_shards_count = 0

    @property
    def interval_s(self) -> float:
        return self._options.interval_s

    def report(self, segment_id: int, index: int, disk: int) -> None:
        """A shard was found damaged on a disk: for `StripeStore`'s `on_damage`."""
        if len(self._damages) < self._options.damages_max:
            self._damages.add((segment_id, index, disk))

    async def work(self) -> Progress:
        """Rebuild a few stripes. Calls take turns: two at once would write the same file."""
        async with self.turn:
            if not self._swept:
                self._swept = True
                for index in self._disks.good():
                    await self._sweep(index)
            return await self._work()

    async def sweep(self, disk_index: int) -> None:
        """Remove shards whose making was cut short from a disk that was away; not the one that is being made."""
        async with self.turn:
            await self._sweep(disk_index)

    async def _sweep(self, disk_index: int) -> None:
        current, disk = self._current, self._disks.get(disk_index)
        kept = shard_path(current.row.id, current.index) if current and current.disk is disk else ""
        await remove_cut_short(self._disks, disk_index, FOLDER, parse_shard_name, kept)

    async def _work(self) -> Progress:
        self._watch_disks()
        try:
            await self._look_at_disks()
            await self._record_damages()
            if self._current is None:
                self._current = await self._choose()
                await self._save()
            current = self._current
            if current is None:
                return Progress.IDLE
            row = self._catalog.segment(current.row.id)
            if row is None:
                await self._abandon(current)
                return Progress.BUSY
            if not self._throttle.is_open(urgent=self._lost(row).bit_count() >= row.m):
                return Progress.THROTTLED
            await self._step(current)
        except ShuttingDown:
            raise
        except (NoSpace, Unavailable) as error:
            log.warning("rebuild was put off", reason=str(error))
            return Progress.IDLE
        return Progress.BUSY

    async def _look_at_disks(self) -> None:
        """Once after a start: a superblock tells of a disk that was away no more once it was told of a new epoch, and
        nothing of an old copy of one. Raises what the store's writer raises.
        """
        if self._unseen is None:
            self._unseen = set(self._disks.good())
        for disk_index in sorted(self._unseen):
            try:
                await self.check_returned(disk_index, listed_too=False)
            except DiskError as error:
                # when it is back it is compared
                log.warning("a disk was not looked at", disk=self._disks.name(disk_index), reason=str(error))
            self._unseen.discard(disk_index)

    async def check_returned(self, disk_index: int, *, open_too: bool = False, listed_too: bool = True) -> int:
        """Compare the files of a disk that was away with what the catalog says it holds; what is missing is queued.

        Of sealed segments; with `open_too` also of those that are written to: a shard that was not begun yet, or is
        being written, may then be made anew for nothing. Without `listed_too` only of those whose files are not there,
        or shorter than they should be. Looks at every header and at the last bytes, not at other payloads: those are
        verified whenever they are read. Returns how many shards are to be rebuilt. Raises DiskFailed when the disk goes
        meanwhile, which says nothing of what lies on it, and what the store's writer raises.
        """
        disk = self._disks.get(disk_index)
        if disk is None:
            return 0
        listed = {} if listed_too else await disk.list(FOLDER)
        sizes = {f"{FOLDER}/{name}": size for name, size in listed.items()}
        count = after = 0
        while rows := self._catalog.segments(after, COMPARED_MAX):
            await trio.lowlevel.checkpoint()
            after = rows[-1].id
            for row in rows:
                if row.state != STATE_SEALED and not open_too:
                    continue
                for index, number in enumerate(row.disks):
                    if number != disk_index or row.missing >> index & 1:
                        continue
                    if not listed_too and is_as_long(row, sizes.get(shard_path(row.id, index), 0)):
                        continue
                    if not await self._has_headers(disk, row, index):
                        is_lost = await self._lose(row.id, index, disk_index)
                        count += is_lost
                        if is_lost and not listed_too:
                            where = f"shard {index} on {disk.name}"
                            log.warning("shard found damaged", shard=where, segment=row.id, reason="it is gone or cut")
        return count

    # -- what is to be done --------------------------------------------------------------------------------------------

    def _watch_disks(self) -> None:
        now = trio.current_time()
        away = set(range(self._disks.count)) - set(self._disks.good())
        if self._away_since.keys() - away or len(self._pauses_s) > self._options.damages_max:
            # one is back: what was lost may be there now
            self._not_before.clear()
            self._pauses_s.clear()
        self._away_since = {disk: self._away_since.get(disk, now) for disk in away}

    async def _record_damages(self) -> None:
        for damage in list(self._damages):
            await self._lose(*damage)
            self._damages.discard(damage)

    async def _lose(self, id_: int, index: int, disk: int) -> bool:
        """A shard is damaged on a disk: into the catalog, so that it outlives a restart.

        Who began to read before it was made anew elsewhere misses it where it lay: that is no damage.
        """
        row = self._catalog.segment(id_)
        if row is None or row.disks[index] != disk or row.missing >> index & 1:
            return False
        await self._submit(LoseShards(id_, 1 << index))
        return True

    def _lost(self, place: SegmentRow | PlacementRow) -> int:
        """Bits of the shards that a read cannot count on now."""
        away = sum(1 << index for index, disk in enumerate(place.disks) if self._disks.get(disk) is None)
        return place.missing | away

    def _endangered(self) -> list[PlacementRow]:
        """Where segments with lost shards lie, those with the least left first. None of which nothing can be made until
        disks are back: of these there may be so many that the others would have no turn.
        """
        found = [place for place in self._catalog.placements() if self._lost(place) and self._is_enough_here(place)]
        return sorted(found, key=lambda place: place.m - self._lost(place).bit_count())

    def _is_enough_here(self, place: PlacementRow) -> bool:
        """Whether as many shards as are needed lie on disks that are here, damaged ones too."""
        here_count = sum(self._disks.get(disk) is not None for disk in place.disks)
        return here_count >= len(place.disks) - place.m

    async def _choose(self) -> ShardRebuild | None:
        now = trio.current_time()
        self._not_before = {which: until for which, until in self._not_before.items() if until > now}
        places = self._endangered()
        free_bytes = await self._room() if places else {}
        for place in places:
            due = {
                index: target for index in self._due(place) if (target := self._target(place, index, free_bytes)) >= 0
            }
            if not due:
                continue
            # those that were put off, and open ones that wait for their streams, are passed over
            for row in self._catalog.segments_placed(place, CANDIDATES_MAX + len(self._not_before)):
                for index, target in due.items():
                    disk = self._disks.get(target)
                    if disk is None or (row.id, index) in self._not_before:
                        continue
                    if row.state == STATE_SEALED:
                        return ShardRebuild(self._stripes, self._catalog, row, index, target, disk)
                    if self._retire is not None:
                        await self._retire(row.id)
                    break
        return None

    def _due(self, place: PlacementRow) -> Iterator[int]:
        now = trio.current_time()
        for index, disk in enumerate(place.disks):
            if not self._lost(place) >> index & 1:
                continue
            if disk < 0 or now - self._away_since.get(disk, -1e18) >= self._options.grace_s:
                yield index

    def _target(self, row: PlacementRow, index: int, free_bytes: dict[int, int]) -> int:
        """The disk to rebuild a shard on, -1 when there is none."""
        own = row.disks[index]
        if own in free_bytes:
            return own
        members = self._disks.of_class(self._policies(row.policy).disk_class)
        per_disk_max = shards_per_disk(len(row.disks), len(members))
        others = [disk for disk in members.intersection(free_bytes) if row.disks.count(disk) < per_disk_max]
        return max(others, key=lambda disk: (-row.disks.count(disk), free_bytes[disk], -disk), default=-1)

    async def _room(self) -> dict[int, int]:
        """Free bytes over the reserve, of disks that have any."""
        found = await ask_room(self._disks)
        roomy = self._disks.roomy()
        return {index: room.left_bytes for index, room in found.items() if index in roomy and room.left_bytes > 0}

    # -- doing it ------------------------------------------------------------------------------------------------------

    async def _step(self, current: ShardRebuild) -> None:
        before = current.written_bytes
        try:
            if not current.written_bytes and current.row.disks[current.index] == current.target:
                await self._refuse_newer(current.row, current.index)
            # never by trusting what is there, however whole it reads: after a failed sync the page cache is no witness
            done = await current.step(self._options.stripes_per_step)
        except NoSuchFile:
            # somebody took it away beneath it: no fault of the disk
            self._put_off(current)
            await self._abandon(current)
            return
        except DiskError as error:
            self._disks.fail(current.target, error, current.disk)
            self._put_off(current)
            await self._abandon(current)
            return
        except (DataLost, UnknownFormat) as error:
            # what a newer program wrote is left as it is
            log.error("shard was not rebuilt", segment=current.row.id, shard=current.index, reason=str(error))
            self._put_off(current)
            await self._abandon(current)
            return
        self._throttle.spend((current.row.k + 1) * (current.written_bytes - before))
        if done:
            self._current = None
            await self._place(current)

    async def _place(self, current: ShardRebuild) -> None:
        row, index = current.row, current.index
        extents = self._catalog.extents_in_segment(row.id, 0, 1 << 20) if current.holes else []
        lost = [page for page in current.holes if is_live(row, extents, page)]
        if lost and row.disks[index] not in (-1, current.target):
            # what could not be made anew, the disk that it was written to may have: when it is back, if it was away
            log.warning("a shard waits for its disk", segment=row.id, shard=index, disk=row.disks[index])
            self._put_off(current, is_lost=True)
            await remove_shard(self._disks, current.target, row.id, index)
            return
        if not await self._submit(PlaceShard(row.id, index, current.target)):
            await remove_shard(self._disks, current.target, row.id, index)
            return
        if lost:
            log.error("stripes are lost", segment=row.id, shard=index, stripes=lost[:16], count=len(lost))
            self._put_off(current, is_lost=True)
            await self._submit(LoseShards(row.id, 1 << index))
            return
        if row.disks[index] != current.target:
            # the disk was full and its copy damaged, or it came back meanwhile
            await remove_shard(self._disks, row.disks[index], row.id, index)
        self._stripes.forget_damage(row.id, index, current.target)
        self.rebuilt_shards_count += 1
        log.info("shard was rebuilt", segment=row.id, shard=index, disk=self._disks.name(current.target))

    async def _refuse_newer(self, row: SegmentRow, index: int) -> None:
        """Raises UnknownFormat when the file in the shard's place is a newer program's: it must not be overwritten."""
        try:
            file = self._stripes.file(row, index)
            await file.segment_header()
            walk = StripeWalk(self._stripes, self._catalog, row)
            while (found := await walk.next()) is not None:
                await file.header(found[0])
        except (Corrupt, DiskFailed, NoSuchFile):
            return

    async def _has_headers(self, disk: Disk, row: SegmentRow, index: int) -> bool:
        try:
            await check_ends(self._stripes, self._catalog, row, index)
        except UnknownFormat:
            return True  # a newer program's: not ours to judge, and not to be overwritten
        except (Corrupt, DiskError) as error:
            if self._disks.get(row.disks[index]) is not disk or disk.failure is not None:
                raise DiskFailed(f"it went while it was compared: {error}") from error
            return False
        return True

    def _put_off(self, current: ShardRebuild, *, is_lost: bool = False) -> None:
        which, options = (current.row.id, current.index), self._options
        pause_s = options.retry_s
        if is_lost:
            pause_s = self._pauses_s[which] = min(2 * self._pauses_s.get(which, pause_s / 2), options.retry_s_max)
        self._not_before[which] = trio.current_time() + pause_s

    async def _abandon(self, current: ShardRebuild) -> None:
        self._current = None
        try:
            await current.abandon()
        except DiskError:
            return  # found by the sweep at the next start

    async def _save(self) -> None:
        """What is being done, for whoever asks for the status."""
        current = self._current
        state = b""
        if current is not None:
            about = {"segment": current.row.id, "shard": current.index, "disk": current.target}
            state = json.dumps(about | {"rebuilt": self.rebuilt_shards_count}).encode()
        if state != self._saved:
            await self._submit(SaveJob(JOB, state))
            self._saved = state
