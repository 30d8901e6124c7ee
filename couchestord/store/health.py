"""How the store is, for people and probes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from couchestord.ec.shards import shard_path
from couchestord.errors import DiskError
from couchestord.io.catalog.read import EntryRow, PlacementRow, SegmentRow
from couchestord.io.disks import Disks
from couchestord.model import ObjectInfo
from couchestord.store.reader import plan

if TYPE_CHECKING:
    from couchestord.store.core import Core

SEGMENTS_SHOWN_MAX = 1000


@dataclass(frozen=True, slots=True)
class Health:
    """`state`: "healthy", "degraded" (less redundancy than there should be), "unhealthy" (something cannot be done)."""

    state: str
    reasons: tuple[str, ...] = ()


def health(core: "Core") -> Health:
    """What is wrong, worst first. Synchronous."""
    disks, reasons = core.disks, []
    unhealthy = False
    if core.writer.stopped_because:
        unhealthy = True
        reasons.append(f"writes are stopped: {core.writer.stopped_because}")
    if core.jobs.repairer.trouble:
        reasons.append(f"catalog: {core.jobs.repairer.trouble}")
    if core.catalog.shut_because:
        return Health("unhealthy", (core.catalog.shut_because, *reasons))
    if disks.missing_count() > disks.m:
        unhealthy = True
        reasons.append(f"{disks.missing_count()} of {disks.count} disks are missing, more than {disks.m}")
        if len(disks.good()) < disks.writers_needed:
            reasons.append(f"writes are refused: {disks.writers_needed} good disks are needed")
    for index, why in sorted(disks.failures.items()):
        reasons.append(f"disk {index} is not used: {why}")
    full = [index for index in disks.good() if disks.is_full(index)]
    if full:
        unhealthy = unhealthy or len(disks.roomy()) < disks.k
        reasons.append(f"disks {', '.join(map(str, full))} are full")
    places = core.catalog.reading.placements()
    damaged = sum(place.segments_count for place in places if place.missing)
    if damaged:
        reasons.append(f"{damaged} segments lack shards and are being rebuilt")
    lost = redundancy(disks, places)["lost"]
    if lost:
        reasons.append(f"{lost} segments have fewer shards left than their data can be read from: bring disks back")
    return Health("unhealthy" if unhealthy else "degraded" if reasons else "healthy", tuple(reasons))


def redundancy(disks: Disks, places: list[PlacementRow]) -> dict[str, int]:
    """Segments by what is left of them: all shards (whole), enough to read (degraded), too few (lost)."""
    found = {"whole": 0, "degraded": 0, "lost": 0}
    for place in places:
        missing = _missing_count(disks, place)
        state = "lost" if missing > disks.m else "degraded" if missing else "whole"
        found[state] += place.segments_count
    return found


def _missing_count(disks: Disks, place: PlacementRow, without: int = -1) -> int:
    """Shards that cannot be read now, or were disk `without` gone."""
    return sum(
        1
        for shard, disk in enumerate(place.disks)
        if disk == without or place.missing >> shard & 1 or disks.get(disk) is None
    )


async def status(core: "Core") -> dict[str, Any]:
    """Everything an operator asks, ready for JSON."""
    disks, journal = core.disks, core.journal
    state = health(core)
    places = core.catalog.reading.placements()
    count, open_count, live_bytes = core.catalog.reading.segment_totals()
    return {
        "store": disks.store_id.hex(),
        "health": {"state": state.state, "reasons": list(state.reasons)},
        "engine": {"name": core.engine.name, "note": core.engine.note},
        "redundancy": {"k": disks.k, "m": disks.m, "stripe_bytes": core.options.stripe_bytes},
        "epoch": disks.epoch,
        "sequence": core.catalog.committed_sequence,
        "disks": [await _disk_status(core, index, places) for index in range(disks.count)],
        "journal": {
            "bytes": journal.size_bytes,
            "bytes_max": journal.size_bytes_max,
            "first_sequence": journal.first_sequence,
            "syncs": journal.syncs_count,
            "degraded_reads": journal.degraded_reads_count,
        },
        "catalog": {
            "bytes": core.catalog.path.stat().st_size,
            "wal_bytes": core.catalog.wal_bytes(),
            "rebuilt_because": core.started.rebuilt,
            "snapshot_sequence": core.jobs.snapshotter.sequence,
        },
        "segments": {
            "count": count,
            "open": open_count,
            "missing_shards": sum(place.missing.bit_count() * place.segments_count for place in places),
            "live_bytes": live_bytes,
            **redundancy(disks, places),
        },
        "degraded_reads": core.stripes.degraded_reads_count,
        "writes": {
            "groups": core.writer.stats.groups,
            "mutations": core.writer.stats.mutations,
            "refused": core.writer.stats.refused,
        },
        "jobs": core.jobs.status(),
    }


async def _disk_status(core: "Core", index: int, places: list[PlacementRow]) -> dict[str, Any]:
    disks = core.disks
    disk = disks.get(index)
    found: dict[str, Any] = {"index": index, "name": disks.name(index), "state": "good" if disk else "missing"}
    if disk is None:
        found["reason"] = disks.failures.get(index, "")
    else:
        try:
            capacity = await disk.capacity()
            found |= {"total_bytes": capacity.total_bytes, "free_bytes": capacity.free_bytes}
        except DiskError as error:
            found |= {"state": "failing", "reason": str(error)}
    found["full"] = disks.is_full(index)
    found["shards"] = sum(place.segments_count for place in places if index in place.disks)
    found["if_lost"] = _cost_of_loss(disks, index, places)
    return found


def _cost_of_loss(disks: Disks, index: int, places: list[PlacementRow]) -> str:
    """What would be gone if this disk went now, on top of what is missing already."""
    lost = short = 0
    for place in places:
        missing = _missing_count(disks, place, index)
        if index in place.disks and missing > disks.m:
            lost += place.segments_count
        elif missing:
            short += place.segments_count
    if lost:
        return f"data of {lost} segments would be lost"
    return f"nothing would be lost; {short} segments would lack shards" if short else "nothing would be lost"


def describe_object(core: "Core", row: EntryRow, info: ObjectInfo) -> dict[str, Any]:
    """Where every extent of an object lies."""
    extents = []
    for run in plan(core.catalog.reading, row, 0, row.size):
        if run.extent is None:
            extents.append({"length": run.length, "hole": True})
            continue
        extent = run.extent
        found: dict[str, Any] = {"id": extent.id, "offset": run.offset, "length": run.length}
        if extent.segment:
            found |= {"segment": extent.segment, "stripe": extent.stripe, "start": extent.stripe_start}
            segment = core.catalog.reading.segment(extent.segment)
            if segment is not None:
                found["shards"] = _shards(core, segment)
        else:
            path, replicas = core.journal.replicas(extent.stripe)
            found |= {
                "journal_record": extent.stripe,
                "replicas": [{"disk": core.disks.name(index), "file": path} for index in replicas],
            }
        extents.append(found)
    return {
        "bucket": info.bucket,
        "key": info.key.decode("utf-8", "surrogateescape"),
        "size_bytes": info.size_bytes,
        "etag": info.etag,
        "inode": row.inode,
        "extents": extents,
    }


def _shards(core: "Core", segment: SegmentRow) -> list[dict[str, Any]]:
    return [
        {
            "index": index,
            "disk": core.disks.name(disk) if disk >= 0 else None,
            "file": shard_path(segment.id, index),
            "whole": disk >= 0 and not segment.missing >> index & 1 and core.disks.get(disk) is not None,
        }
        for index, disk in enumerate(segment.disks)
    ]
