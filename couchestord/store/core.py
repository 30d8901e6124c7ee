"""A running store's parts, wired. Everything long-lived below the front ends is built here and nowhere else."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from couchestord import logs
from couchestord.cache import CacheManager, make_compressor
from couchestord.cache.l2 import L2
from couchestord.cache.l2folder import L2Options, Standing, open_folder
from couchestord.cache.l2format import Mark
from couchestord.clock import Clock
from couchestord.ec.choice import choose_engine
from couchestord.ec.codec import Engine
from couchestord.ec.segments import SegmentPool, seal_left_open
from couchestord.ec.stripes import StripeStore
from couchestord.errors import Corrupt, DataLost, NoSpace, ShuttingDown, Unavailable
from couchestord.io import filerequests as fr
from couchestord.io.catalog.catalog import Catalog
from couchestord.io.catalog.pages import verify_pages
from couchestord.io.catalog.reserve import Reserve
from couchestord.io.disks import Disks
from couchestord.io.journal import Journal
from couchestord.io.room import ask_room
from couchestord.model import OBJECT_BYTES_MAX
from couchestord.service import Progress, Service
from couchestord.store.athand import ReaderParts
from couchestord.store.decide import Decider
from couchestord.store.doubts import answer_again, find_done
from couchestord.store.intake import Intake
from couchestord.store.jobs import Jobs, build_jobs
from couchestord.store.mounts import NOTE_NAME, Mounts, OrphanReaper
from couchestord.store.options import StoreOptions
from couchestord.store.pins import Pins
from couchestord.store.snapshot import JOB as SNAPSHOT_JOB
from couchestord.store.snapshot import protected_segments, restore_snapshot
from couchestord.store.start import Started, start
from couchestord.store.waiting import Answered
from couchestord.store.writer import CATALOG_ROOM_BYTES_MIN, Writer

if TYPE_CHECKING:
    from couchestord.store.l3 import L3

log = logs.get(__name__)
DRAIN_S = 30.0
SETTLE_S = 5.0
"""For what is in memory to get to the cache below it, at the end."""
THROTTLED_S = 0.05


@dataclass(slots=True)
class Core:
    """The parts of a running store. Belongs to one trio loop."""

    options: StoreOptions
    clock: Clock
    disks: Disks
    engine: Engine
    catalog: Catalog
    journal: Journal
    writer: Writer
    pins: Pins
    stripes: StripeStore
    pool: SegmentPool
    intake: Intake
    reader_parts: ReaderParts
    cache: CacheManager
    l2: L2 | None
    jobs: Jobs
    mounts: Mounts
    started: Started
    better: trio.Event
    """Set once a store that was started read only may be written when it is started again."""

    async def submit(self, request: object, origin: object = None) -> Any:
        """Hand a request to the writer; see `Writer.submit`. What was done is not done when it is asked for again."""
        if isinstance(request, fr.Once) and request.asked_after is not None:
            # behind whatever waits already, the first one as well
            await self.writer.submit(fr.FreeOrphans(()))
            done = await find_done(self.journal, request, self.catalog.committed_sequence)
            if done is not None:
                return answer_again(self.catalog.files, done)
        return await self.writer.submit(request, origin)

    def hand_in(self, request: object, answered: Answered, origin: object = None) -> bool:
        """As `submit`, without a task that waits; see `Writer.hand_in`. False for what may have been done, too."""
        if isinstance(request, fr.Once) and request.asked_after is not None:
            return False
        return self.writer.hand_in(request, answered, origin)

    async def destage_all(self) -> None:
        """Step destage until nothing is left to move, then snapshot and trim."""
        self.jobs.destager.force()
        while await self.jobs.destager.work() in (Progress.BUSY, Progress.THROTTLED):
            await trio.lowlevel.checkpoint()
        await self.jobs.snapshotter.take()
        await self.jobs.snapshotter.trim()


@asynccontextmanager
async def run_core(disks: Disks, catalog_path: Path, options: StoreOptions, clock: Clock) -> AsyncIterator[Core]:
    """Start a store over disks that are open, and stop it: drain, checkpoint, close. Raises as `start` does.

    The disks are closed at the end, whatever happens.
    """
    core: Core | None = None
    try:
        async with trio.open_nursery() as nursery:
            core = await _build(nursery, disks, catalog_path, options, clock)
            try:
                nursery.start_soon(core.writer.run)
                before = core.catalog.reading.segments_open()
                try:
                    await seal_left_open(before, core.submit)
                except (Unavailable, NoSpace, Corrupt) as error:
                    if isinstance(error, Corrupt) and not core.writer.broken_because:
                        raise
                    # no reason not to serve: what is open from before is not appended to
                    log.warning("segments were not sealed yet", reason=str(error))
                    core.pool.seal_later(before)
                # before anybody is answered: until they are compared, they are no redundancy
                strangers = [i for i in disks.good() if core.jobs.known.is_stranger(i, disks.ids[i])]
                core.jobs.monitor.welcome([*disks.stale, *strangers])
                if options.services:
                    # what no job may change, none need look at, but for disks that go and a catalog that cannot be read
                    few = (core.jobs.monitor, core.jobs.repairer)
                    for service in few if core.started.read_only else core.jobs.services():
                        nursery.start_soon(run_service, service, core.jobs.running)
                yield core
            finally:
                with trio.move_on_after(DRAIN_S, shield=True):
                    await _stop(core)
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # what the caller's block raised reaches it as it was, not wrapped by our nursery
        raise _sole(group) from None
    finally:
        # only when the last task is gone: a job that was cancelled in a disk call still reads on to its next checkpoint
        if core is not None:
            if core.jobs.l3 is not None:
                with trio.CancelScope(shield=True):
                    await core.jobs.l3.aclose()
            core.catalog.close()
        disks.close()


def _sole(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _build(nursery: trio.Nursery, disks: Disks, catalog_path: Path, options: StoreOptions, clock: Clock) -> Core:
    engine = choose_engine(options.engine)
    rooms = await ask_room(disks)
    options = options.clipped(rooms.values())
    for index, room in rooms.items():
        disks.set_tight(index, room.free_bytes * room.sharers_count < options.reserve_bytes)
    jobs: list[Jobs] = []

    def on_damage(segment: int, index: int, disk: int) -> None:
        if jobs:
            jobs[0].rebuilder.report(segment, index, disk)

    stripes = StripeStore(disks, engine, nursery, on_damage=on_damage)

    async def restore(path: Path) -> bool:
        try:
            return await restore_snapshot(path, disks, stripes)
        except (Corrupt, DataLost) as error:
            # the log may still reach back to the beginning; if it does not, the start says so
            log.error("snapshot of the catalog is unreadable", reason=str(error))
            return False

    before = _mark(disks)
    if options.cache.l2_bytes:
        disks.random_bytes = clock.random_bytes
    started = await start(disks, catalog_path, options.journal, restore, verify_pages)
    catalog, journal = started.catalog, started.journal
    reserve = Reserve(catalog_path, options.catalog_reserve_bytes)

    def kept_bytes(file_system: int) -> int:
        if not reserve.lies_on(file_system):
            return options.reserve_bytes
        return options.reserve_bytes + 2 * CATALOG_ROOM_BYTES_MIN + reserve.lacking_bytes()

    disks.kept_bytes = kept_bytes
    mounts = Mounts(catalog_path.with_name(NOTE_NAME))
    writer = Writer(catalog, journal, disks, Decider(catalog, clock, lambda: disks.epoch, mounts), reserve)
    catalog.watch(writer.fail)
    if started.read_only is not None:
        writer.stop(started.read_only)
    pool = SegmentPool(stripes, disks, writer.submit, options.segments(), catalog.accounts.policy)
    pins = Pins(pool)
    pins.hold(protected_segments(catalog.accounts.jobs().get(SNAPSHOT_JOB)))
    intake = Intake(pool, OBJECT_BYTES_MAX)
    l2 = _second_tier(nursery, options, disks, before, started, clock)
    cache = CacheManager(options.cache, nursery, l2)
    l3 = _third_tier(options, catalog, disks, clock)
    parts = ReaderParts(catalog.reading, journal, stripes, pins, cache, l3.copies if l3 else None, {} if l3 else None)
    orphans = OrphanReaper(catalog.files, mounts, writer.submit)
    built = build_jobs(
        options, clock, disks, catalog, journal, writer, stripes, pool, parts, pins, reserve, restore, nursery, orphans
    )
    jobs.append(built)
    writer.stuck = lambda: built.destager.stuck
    if l3 is None or not l3.is_tiered:  # else what the disks have no room for goes past them
        intake.fill = writer.fill = built.fill
    built.l3 = l3
    if l3 is not None and started.read_only is None:
        from couchestord.store.history import StoreHistory

        history = StoreHistory(disks, catalog, journal, stripes, pins, built.snapshotter.ask)
        intake.overflow = l3.overflow
        l3.employ(parts, pool, built.views, writer.submit, built.throttle, history)
    better = trio.Event()
    if started.read_only is not None:
        built.monitor.hold(better.set)
    return Core(
        options, clock, disks, engine, catalog, journal, writer, pins,
        stripes, pool, intake, parts, cache, l2, built, mounts, started, better,
    )  # fmt: skip


def _mark(disks: Disks) -> Mark:
    return Mark(disks.epoch, disks.slot.token)


def _second_tier(
    nursery: trio.Nursery, options: StoreOptions, disks: Disks, before: Mark, started: Started, clock: Clock
) -> L2 | None:
    """None when there is none, or nothing may be written: what is read then may be void for the next start."""
    config = options.cache
    if config.l2_map is not None:
        config.l2_map.begin()
    if not config.l2_bytes or config.l2_path is None or started.read_only is not None:
        return None
    chosen = L2Options(config.l2_path, config.l2_bytes, allow_shared_device=config.l2_shared_device)
    standing = Standing(disks.store_id, before, started.catalog.applier.next_id, lambda: _mark(disks))
    opening = partial(open_folder, chosen, disks.account.file_systems, trio.CapacityLimiter(1))
    tier = L2(chosen, standing, make_compressor(config.compression), clock.random_bytes, opening, config.l2_map)
    nursery.start_soon(tier.run)
    return tier


def _third_tier(options: StoreOptions, catalog: Catalog, disks: Disks, clock: Clock) -> "L3 | None":
    """Raises ConfigError."""
    if options.l3 is None:
        return None
    # most stores have none, and need not load all that it takes
    from couchestord.store.l3 import L3

    return L3(options.l3, options.l3.open_backend(clock), catalog, disks, clock)


async def _stop(core: Core) -> None:
    # segments stay open: the next start seals them, and streams may still be at them now
    await core.writer.drain()
    if not core.writer.broken_because:
        try:
            await core.jobs.checkpointer.checkpoint()
        except (Corrupt, OSError) as error:
            # the WAL and the log hold what the main file lacks
            log.error("catalog was not checkpointed at the end", reason=str(error))
    with trio.move_on_after(SETTLE_S):
        await core.cache.settle()


async def run_service(service: Service, running: set[str]) -> None:
    """Step a service for ever; its name is in `running` while it has work. An error is logged, and the step is tried
    again after the interval.
    """
    while True:
        try:
            progress = await service.work()
        except ShuttingDown:
            return
        except Unavailable as error:
            log.warning("background job was put off", job=service.name, reason=str(error))
            progress = Progress.IDLE
        except Exception:
            log.exception("background job failed; it is tried again", job=service.name)
            progress = Progress.IDLE
        (running.add if progress in (Progress.BUSY, Progress.THROTTLED) else running.discard)(service.name)
        if progress is Progress.DONE:
            return
        if progress is Progress.BUSY:
            await trio.lowlevel.checkpoint()
        else:
            await trio.sleep(THROTTLED_S if progress is Progress.THROTTLED else service.interval_s)
