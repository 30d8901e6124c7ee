"""The background jobs of a store, wired."""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from couchestord.clock import Clock
from couchestord.ec.compact import Compactor
from couchestord.ec.destage import DestageOptions, Destager
from couchestord.ec.rebuild import Rebuilder, RebuildOptions
from couchestord.ec.segments import SegmentPool
from couchestord.ec.stripes import StripeStore
from couchestord.ec.throttle import Throttle
from couchestord.errors import Unavailable
from couchestord.io.catalog.catalog import Catalog
from couchestord.io.catalog.reserve import Reserve
from couchestord.io.disks import Disks
from couchestord.io.indexing import Indexer
from couchestord.io.journal import Journal
from couchestord.io.rejournal import Rejournaler
from couchestord.io.spare import Spares
from couchestord.service import Service
from couchestord.store.athand import ReaderParts
from couchestord.store.fill import Fill
from couchestord.store.finding import Buckets
from couchestord.store.housekeeping import Housekeeper
from couchestord.store.joining import Joiner
from couchestord.store.known import KnownDisks
from couchestord.store.maintenance import Checkpointer, Snapshotter
from couchestord.store.monitor import Monitor
from couchestord.store.mounts import OrphanReaper
from couchestord.store.options import StoreOptions
from couchestord.store.pins import Pins
from couchestord.store.repair import Repairer
from couchestord.store.views import Views
from couchestord.store.writer import Writer

if TYPE_CHECKING:
    from couchestord.store.l3 import L3


@dataclass(slots=True)
class Jobs:
    """All services of a store."""

    checkpointer: Checkpointer
    snapshotter: Snapshotter
    rejournaler: Rejournaler
    indexer: Indexer
    destager: Destager
    compactor: Compactor
    joiner: Joiner
    rebuilder: Rebuilder
    housekeeper: Housekeeper
    orphans: OrphanReaper
    monitor: Monitor
    repairer: Repairer
    spares: Spares
    known: KnownDisks
    views: Views
    """What readers in other processes may still see."""
    throttle: Throttle
    """How fast all of them may read and write together."""
    fill: Fill
    l3: "L3 | None" = None
    running: set[str] = field(default_factory=set)
    """Names of the services whose last step found work."""

    def services(self) -> Iterator[Service]:
        """Each of them, to be run."""
        yield from (self.monitor, self.destager, self.checkpointer, self.snapshotter)
        yield from (self.rejournaler, self.indexer, self.rebuilder, self.compactor, self.joiner, self.housekeeper)
        yield from (self.repairer, self.spares, self.orphans)
        if self.l3 is not None:
            yield from self.l3.services()

    def status(self) -> dict[str, Any]:
        """Progress of each job, ready for JSON."""
        progress = self._progress()
        names = [service.name for service in self.services()]
        return {name: {"running": name in self.running, **progress.get(name, {})} for name in names}

    def _progress(self) -> dict[str, dict[str, Any]]:
        return {
            "destage": {
                "moved_extents": self.destager.moved_extents_count,
                "unreadable_extents": self.destager.unreadable_extents_count,
                "lost_extents": self.destager.losses.lost_extents_count,
            },
            "compact": {
                "dropped_segments": self.compactor.dropped_segments_count,
                "moved_extents": self.compactor.moved_extents_count,
            },
            "join-pieces": {
                "joined_pieces": self.joiner.joined_pieces_count,
                "joined_bytes": self.joiner.joined_bytes,
            },
            "rebuild": {"rebuilt_shards": self.rebuilder.rebuilt_shards_count},
            "rejournal": {"copied_files": self.rejournaler.copied_count},
            "housekeeping": {"aborted_uploads": self.housekeeper.aborted_uploads_count},
            "free-orphans": {"freed": self.orphans.freed_count},
            "repair": {"repaired": self.repairer.repaired_count, "trouble": self.repairer.trouble},
            "snapshot": {"taken": self.snapshotter.taken_count, "sequence": self.snapshotter.sequence},
        }


def build_jobs(
    options: StoreOptions,
    clock: Clock,
    disks: Disks,
    catalog: Catalog,
    journal: Journal,
    writer: Writer,
    stripes: StripeStore,
    pool: SegmentPool,
    parts: ReaderParts,
    pins: Pins,
    reserve: Reserve,
    restore: Callable[[Path], Awaitable[bool]],
    nursery: trio.Nursery,
    orphans: OrphanReaper,
) -> Jobs:
    """Make the services; nothing runs yet. `restore` is the repairer's, `nursery` for disks that return."""
    submit, views = writer.submit, Views()
    throttle = Throttle(options.background_bytes_per_s, lambda: writer.waiting_count > 0)
    checkpointer = Checkpointer(catalog, writer.quiet, writer.fail)
    fill = Fill(catalog.copies, disks)
    compactor = Compactor(
        catalog.reading, disks, pool, submit, throttle, is_unseen=views.is_unseen, is_pressed=fill.is_pressed
    )
    policy_of = Buckets(catalog.files, catalog.generations).policy_of
    joined_of = catalog.files, policy_of, parts, pool, submit, throttle
    joiner = Joiner(*joined_of, fill.is_pressed, lambda: fill.is_scarce() and compactor.can_move)
    fill.is_cleared = lambda: compactor.has_work or joiner.has_work
    rebuilder = Rebuilder(
        catalog.reading,
        disks,
        stripes,
        submit,
        throttle,
        RebuildOptions(grace_s=options.rebuild_grace_s, interval_s=1.0),
        pool.retire,
        catalog.accounts.policy,
    )
    rejournaler, known = Rejournaler(disks, journal), KnownDisks(catalog.accounts.jobs, submit)
    sweep = partial(_sweep, catalog, compactor, rebuilder)
    returned = partial(_compare, disks, known, sweep, journal, pool, rejournaler, rebuilder)
    monitor = Monitor(disks, options.monitor_interval_s, options.disk_deadline_s, known.doubt, returned, nursery)
    kept_s = options.upload_results_kept_s, options.uploads_kept_s
    destage = DestageOptions(options.destage_threshold_percent, options.destage_interval_s)
    snapshot_of = disks, catalog, journal, writer, checkpointer, stripes, pool, pins, views
    return Jobs(
        checkpointer=checkpointer,
        snapshotter=Snapshotter(*snapshot_of, options.snapshot_bytes_min, clock.random_bytes),
        rejournaler=rejournaler,
        indexer=Indexer(disks, journal),
        destager=Destager(catalog.reading, pool, submit, journal.read, journal.fill_percent, destage, monitor.is_whole),
        compactor=compactor,
        joiner=joiner,
        rebuilder=rebuilder,
        orphans=orphans,
        housekeeper=Housekeeper(catalog, clock, submit, pool, sweep, *kept_s),
        monitor=monitor,
        repairer=Repairer(catalog, journal, writer, checkpointer, restore, reserve, disks.default_policy),
        spares=journal.spares,
        known=known,
        views=views,
        throttle=throttle,
        fill=fill,
    )


async def _sweep(catalog: Catalog, compactor: Compactor, rebuilder: Rebuilder, only: int | None = None) -> None:
    """Remove files of shards that are of no use. A shard that has its name, and is not in its place yet, seems so."""
    async with rebuilder.turn:
        await compactor.sweep(lambda: catalog.applier.next_id, only)


async def _compare(
    disks: Disks,
    known: KnownDisks,
    sweep: Callable[[int], Awaitable[None]],
    journal: Journal,
    pool: SegmentPool,
    rejournaler: Rejournaler,
    rebuilder: Rebuilder,
    index: int,
) -> None:
    """A disk that was away is here: remove what is gone, queue what it missed. Raises DiskError, Unavailable."""
    disk, disk_id = disks.get(index), disks.ids[index]
    await known.doubt(index)
    await sweep(index)
    is_sealed = await pool.seal_unfit()
    await rejournaler.sweep(index)
    await rebuilder.sweep(index)
    await journal.check_returned(index)
    is_another = known.is_another(index, disk_id)
    # another disk than before lacks what was written to segments that are open still, too
    await rebuilder.check_returned(index, open_too=is_another)
    if is_another and not is_sealed:
        raise Unavailable("segments wait to be sealed, and only then can be compared")
    if disk is not None and disks.get(index) is disk:
        await known.compared(index, disk_id)
