"""The background jobs of a store, wired."""

from dataclasses import dataclass
from typing import Any

from couchestord.clock import Clock
from couchestord.ec.segments import SegmentPool
from couchestord.ec.stripes import StripeStore
from couchestord.io.catalog.catalog import Catalog
from couchestord.io.disks import Disks
from couchestord.io.journal import Journal
from couchestord.io.rejournal import Rejournaler
from couchestord.service import Service
from couchestord.store.maintenance import Checkpointer, Snapshotter
from couchestord.store.monitor import Monitor
from couchestord.store.options import StoreOptions
from couchestord.store.pins import Pins
from couchestord.store.writer import Writer


@dataclass(slots=True)
class Jobs:
    """All services of a store."""

    checkpointer: Checkpointer
    snapshotter: Snapshotter
    rejournaler: Rejournaler
    monitor: Monitor

    def services(self) -> list[Service]:
        return [self.checkpointer, self.snapshotter, self.rejournaler, self.monitor]

    def status(self) -> dict[str, Any]:
        """Progress of each job, ready for JSON."""
        return {
            "snapshot": {"taken": self.snapshotter.taken_count, "sequence": self.snapshotter.sequence},
            "rejournal": {"copied": self.rejournaler.copied_count},
        }

    def on_damage(self, segment: int, missing: int) -> None:
        """A read found shards damaged."""


def build_jobs(
    options: StoreOptions,
    clock: Clock,
    disks: Disks,
    catalog: Catalog,
    journal: Journal,
    writer: Writer,
    stripes: StripeStore,
    pool: SegmentPool,
    pins: Pins,
) -> Jobs:
    checkpointer = Checkpointer(catalog)
    snapshotter = Snapshotter(
        disks, catalog, journal, writer, checkpointer, stripes, pool, pins, options.snapshot_bytes_min
    )

    async def returned(index: int) -> None:
        del index

    monitor = Monitor(disks, options.monitor_interval_s, options.disk_deadline_s, returned)
    return Jobs(checkpointer, snapshotter, Rejournaler(disks, journal), monitor)
