"""What a store can be told."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from couchestord.cache import CacheConfig
from couchestord.clock import Clock
from couchestord.ec.choice import Preference
from couchestord.ec.segments import SegmentOptions
from couchestord.io.journalfile import JournalOptions
from couchestord.io.room import Room
from couchestord.model import Policy
from couchestord.remote.backend import Backend
from couchestord.remote.options import PublishOptions, UploadOptions

INLINE_BYTES_MAX = 128 << 10
"""Bodies up to this ride in the journal record; longer ones are written to stripes while they arrive."""
JOURNAL_BYTES_MIN = 4 << 20
SEGMENT_BYTES_MIN = 4 << 20


@dataclass(frozen=True, slots=True)
class Watermarks:
    """How much of the room that the store may use is used, in percent."""

    high: int = 80
    """Data leaves the disks from here on ..."""
    low: int = 60
    """... until no more than this is used."""
    bypass: int = 95
    """Long bodies go past the disks from here on, straight to the bucket."""


@dataclass(frozen=True, slots=True)
class L3Options:
    """A bucket of another store, or a folder, as third tier. `open_backend` raises ConfigError."""

    open_backend: Callable[[Clock], Backend]
    mode: Literal["cache", "tiered"] = "cache"
    """`cache`: everything stays on the disks as well; `tiered`: while there is room."""
    upload: UploadOptions = field(default_factory=UploadOptions)
    watermarks: Watermarks = field(default_factory=Watermarks)
    backlog_age_s_max: float = 3600.0
    """Health is degraded when something waits for its copy for longer than this, beside `upload.linger_s`."""
    publish: PublishOptions = field(default_factory=PublishOptions)


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Options of a store; sizes in bytes, times in seconds.

    k, m, stripe_bytes, min_healthy_shards, shards_per_disk and disks_count count when a store is made: they are its
    default policy.
    """

    k: int = 4
    m: int = 2
    disks_count: int = 6
    disks: tuple[Path, ...] = ()
    """Folders of the disks; empty: `disk-0`, `disk-1`, ... in the data folder."""
    disk_classes: tuple[str, ...] = ()
    """Class of each disk, when a store is made; empty: all are of `default`."""
    stripe_bytes: int = 1 << 20
    segment_bytes: int = 256 << 20
    """Data after which a segment is sealed; at most so much that its shard takes a 64th of the smallest disk."""
    min_healthy_shards: int = 0
    """Shards that a stripe needs at least when it is written; 0: k."""
    shards_per_disk: int = 1
    """Most shards of one segment on a disk: more than 1 lets a store have fewer than k+m disks."""
    engine: Preference = "auto"
    reserve_bytes: int = 16 << 20
    """Room on each file system that is kept for deletes, compaction and the catalog; at most 4 % of it."""
    journal: JournalOptions = field(default_factory=JournalOptions)
    destage_threshold_percent: int = 80
    destage_interval_s: float = 30.0
    disk_deadline_s: float = 5.0
    monitor_interval_s: float = 1.0
    rebuild_grace_s: float = 10.0
    background_bytes_per_s: int = 64 << 20
    upload_results_kept_s: float = 86_400.0
    uploads_kept_s: float = 7 * 86_400.0
    """Uploads without a new part for so long are aborted; 0: never."""
    snapshot_bytes_min: int = 64 << 20
    """A snapshot is written when the log since the last one outgrows this and half the catalog."""
    catalog_reserve_bytes: int = 16 << 20
    """Room kept beside the catalog for its repair."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    l3: L3Options | None = None
    """A third tier in a bucket; None: there is none."""
    services: bool = True
    """Run background jobs. Tests step them by hand."""

    def policy(self) -> Policy:
        """The default policy of a store that is made with these options."""
        return Policy(k=self.k, m=self.m, stripe_bytes=self.stripe_bytes, min_healthy_shards=self.min_healthy_shards)

    def clipped(self, rooms: Collection[Room]) -> "StoreOptions":
        """These options on disks of that room: a small disk gets a small journal and small segments, so that deletes
        empty some of them, and a small file system a small reserve.
        """
        disk_bytes = min((room.total_bytes for room in rooms), default=0)
        file_system_bytes = min((room.total_bytes * room.sharers_count for room in rooms), default=0)
        size = min(self.journal.size_bytes, max(disk_bytes // 20, JOURNAL_BYTES_MIN))
        file = min(self.journal.file_bytes, size // 8)
        journal = replace(
            self.journal,
            size_bytes=size,
            file_bytes=file,
            preallocate_bytes=min(self.journal.preallocate_bytes, file // 4),
            spare_bytes=min(self.journal.spare_bytes, disk_bytes // 50),
        )
        segment = min(self.segment_bytes, max(disk_bytes * self.k // 64, SEGMENT_BYTES_MIN))
        return replace(
            self,
            journal=journal,
            segment_bytes=segment,
            reserve_bytes=min(self.reserve_bytes, file_system_bytes // 25),
        )

    def segments(self) -> SegmentOptions:
        """The part that the segment pool wants."""
        return SegmentOptions(
            segment_bytes=self.segment_bytes,
        )
