"""How the store is, for people and probes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from couchestord.cache import TierStats
from couchestord.ec.shards import shard_path
from couchestord.errors import Unavailable
from couchestord.io.catalog.read import EntryRow, PlacementRow, SegmentRow
from couchestord.io.disks import Disks, disks_to_spare, shards_per_disk
from couchestord.io.mutations import IN_BLOB, LOST
from couchestord.io.room import Room, ask_room
from couchestord.model import ObjectInfo, Policy
from couchestord.remote.blob import BlobName
from couchestord.store.beside import ReaderStats
from couchestord.store.runs import plan

if TYPE_CHECKING:
    from couchestord.store.core import Core


@dataclass(frozen=True, slots=True)
class Health:
    """`state`: "healthy", "degraded" (less redundancy than there should be), "unhealthy" (something cannot be done)."""

    state: str
    reasons: tuple[str, ...] = ()


def health(core: "Core") -> Health:
    """What is wrong, worst first. Synchronous."""
    reasons = []
    if core.writer.stopped_because:
        reasons.append(f"writes are stopped: {core.writer.stopped_because}")
    if core.jobs.repairer.trouble:
        reasons.append(f"catalog: {core.jobs.repairer.trouble}")
    try:
        return _health(core, reasons)
    except Unavailable as error:
        # nor can be asked what else is wrong
        return Health("unhealthy", (str(error), *reasons))


def _health(core: "Core", before: list[str]) -> Health:
    disks, reasons = core.disks, list(before)
    unhealthy = bool(core.writer.stopped_because)
    policies = _used_policies(core)
    spare = min(disks.m, disks_to_spare(policies[0].k, policies[0].m, disks.count))
    if disks.missing_count() > spare:
        unhealthy = True
        reasons.append(f"{disks.missing_count()} of {disks.count} disks are missing, more than {spare}")
        if len(disks.good()) < disks.writers_needed:
            reasons.append(f"writes are refused: {disks.writers_needed} good disks are needed")
    for index, why in sorted(disks.failures.items()):
        reasons.append(f"disk {index} is not used: {why}")
    for index in sorted(core.jobs.monitor.uncompared):
        reasons.append(f"disk {index} was away and is being compared with the catalog")
    if core.journal.short_file():
        reasons.append("journal files lack copies, which are being made")
    full = [index for index in disks.good() if disks.is_full(index)]
    if full:
        reasons.append(f"disks {', '.join(map(str, full))} are full")
    for policy in policies:
        why = _shortage(disks, policy)
        unhealthy = unhealthy or (policy.id == 0 and _places(disks, policy) < policy.shards_min)
        reasons += [why] if why else []
    places = core.catalog.reading.placements()
    damaged = sum(place.segments_count for place in places if place.missing)
    if damaged:
        reasons.append(f"{damaged} segments lack shards and are being rebuilt")
    if core.jobs.l3 is not None:
        reasons += core.jobs.l3.reasons()
    lost = redundancy(disks, places)["lost"]
    if lost:
        reasons.append(f"{lost} segments have fewer shards left than their data can be read from: bring disks back")
    if core.catalog.reading.has_lost():
        reasons.append("bytes of some objects are lost: fsck names them, delete them or write them again")
    return Health("unhealthy" if unhealthy else "degraded" if reasons else "healthy", tuple(reasons))


def redundancy(disks: Disks, places: list[PlacementRow]) -> dict[str, int]:
    """Segments by what is left of them: all shards (whole), enough to read (degraded), too few (lost)."""
    found = {"whole": 0, "degraded": 0, "lost": 0}
    for place in places:
        missing = _missing_count(disks, place)
        state = "lost" if missing > place.m else "degraded" if missing else "whole"
        found[state] += place.segments_count
    return found


def _missing_count(disks: Disks, place: PlacementRow, without: int = -1) -> int:
    """Shards that cannot be read now, or were disk `without` gone."""
    return sum(
        1
        for shard, disk in enumerate(place.disks)
        if disk == without or place.missing >> shard & 1 or disks.get(disk) is None
    )


def _used_policies(core: "Core") -> list[Policy]:
    """The default policy, and those that buckets name."""
    named = {row.policy for row in core.catalog.reading.buckets()}
    return [policy for policy in core.catalog.accounts.policies() if not policy.id or policy.id in named]


def _places(disks: Disks, policy: Policy) -> int:
    """Shards of a new segment that would have a disk now."""
    members = disks.of_class(policy.disk_class)
    per_disk_max = shards_per_disk(policy.shards_count, len(members))
    return min(policy.shards_count, per_disk_max * len(members.intersection(disks.roomy())))


def _shortage(disks: Disks, policy: Policy) -> str:
    """What missing and full disks keep from new segments of a policy; empty when nothing."""
    places = _places(disks, policy)
    if places == policy.shards_count:
        return ""
    there = f"room for {places} of {policy.shards_count} shards of a segment of policy {policy.name}"
    if places < policy.shards_min:
        return (
            f"there is {there}, {policy.shards_min} are needed: large objects are refused, small ones stay in the log"
        )
    return f"there is {there}: the others are made when disks are back or have room"


async def status(core: "Core", beside: Sequence[ReaderStats] = ()) -> dict[str, Any]:
    """Everything an operator asks, ready for JSON, but for the caches. `beside`: of the processes that read, too."""
    disks, journal = core.disks, core.journal
    rooms = await ask_room(disks)
    state = health(core)
    places = core.catalog.reading.placements()
    count, open_count, live_bytes = core.catalog.reading.segment_totals()
    default = core.catalog.accounts.policy(0)
    return {
        "store": disks.store_id.hex(),
        "health": {"state": state.state, "reasons": list(state.reasons)},
        "engine": {"name": core.engine.name, "note": core.engine.note},
        "redundancy": {"k": default.k, "m": default.m, "stripe_bytes": default.stripe_bytes},
        "policies": [policy_status(disks, policy) for policy in core.catalog.accounts.policies()],
        "epoch": disks.epoch,
        "sequence": core.catalog.committed_sequence,
        "disks": [_disk_status(core, index, rooms.get(index), places) for index in range(disks.count)],
        "journal": {
            "bytes": journal.size_bytes,
            "bytes_max": journal.size_bytes_max,
            "replicas": journal.replicas_wanted,
            "survives_disks": disks.m,
            "first_sequence": journal.first_sequence,
            "syncs": journal.syncs_count,
            "degraded_reads": journal.degraded_reads_count + sum(each.degraded_records_count for each in beside),
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
        "degraded_reads": core.stripes.degraded_reads_count + sum(each.degraded_reads_count for each in beside),
        "l3": core.jobs.l3.status() if core.jobs.l3 else None,
        "writes": {
            "groups": core.writer.stats.groups,
            "mutations": core.writer.stats.mutations,
            "refused": core.writer.stats.refused,
        },
        "jobs": core.jobs.status(),
        "workers": core.jobs.views.workers(),
        "mounts": core.mounts.status(),
    }


def caches_status(tiers: Sequence[TierStats]) -> list[dict[str, Any]]:
    """Counts of the caches since the store was opened, ready for JSON."""
    return [
        {
            "tier": tier.name,
            "bytes": tier.size_bytes,
            "capacity_bytes": tier.capacity_bytes,
            "entries": tier.entries_count,
            "hits": tier.hits_count,
            "misses": tier.misses_count,
            "hit_ratio": round(tier.hit_ratio, 4),
            "promotions": tier.promotions_count,
            "evictions": tier.evictions_count,
            "dropped": tier.dropped_count,
            "damaged": tier.damaged_count,
            "off_because": tier.off_because,
        }
        for tier in tiers
    ]


def policy_status(disks: Disks, policy: Policy) -> dict[str, Any]:
    """A policy, with what it means on these disks, ready for JSON."""
    members = len(disks.of_class(policy.disk_class))
    return {
        "name": policy.name,
        "k": policy.k,
        "m": policy.m,
        "stripe_bytes": policy.stripe_bytes,
        "min_healthy_shards": policy.shards_min,
        "disk_class": policy.disk_class,
        "shards_per_disk": shards_per_disk(policy.shards_count, members),
        "survives_disks": disks_to_spare(policy.k, policy.m, members),
    }


def _disk_status(core: "Core", index: int, room: Room | None, places: list[PlacementRow]) -> dict[str, Any]:
    disks = core.disks
    disk = disks.get(index)
    found: dict[str, Any] = {"index": index, "name": disks.name(index), "class": disks.class_of(index)}
    found["state"] = "good" if disk else "missing"
    if disk is None:
        found["reason"] = disks.failures.get(index, "")
    elif room is not None:
        found |= {"total_bytes": room.total_bytes, "free_bytes": room.free_bytes, "shared_by": room.sharers_count}
    found["full"] = disks.is_full(index)
    found["comparing"] = index in core.jobs.monitor.uncompared
    found["shards"] = sum(place.segments_count for place in places if index in place.disks)
    loses, cost = _cost_of_loss(disks, index, places, core.journal.holders())
    return found | {"loses_data_if_lost": loses, "if_lost": cost}


def _cost_of_loss(disks: Disks, index: int, places: list[PlacementRow], holders: list[list[int]]) -> tuple[bool, str]:
    """Whether data would be gone if this disk went now, on top of what is missing already, and what it would cost."""
    lost = short = 0
    for place in places:
        missing = _missing_count(disks, place, index)
        if index in place.disks and missing > place.m:
            lost += place.segments_count
        elif missing:
            short += place.segments_count
    records = holders.count([index])
    if lost or records:
        parts = [f"data of {lost} segments"] * bool(lost) + [f"records of {records} journal files"] * bool(records)
        return True, f"{' and '.join(parts)} would be lost"
    return False, f"nothing would be lost; {short} segments would lack shards" if short else "nothing would be lost"


def describe_object(core: "Core", row: EntryRow, info: ObjectInfo) -> dict[str, Any]:
    """Where every extent of an object lies."""
    extents = []
    for run in plan(core.catalog.reading, row, 0, row.size):
        if run.extent is None:
            extents.append({"length": run.length, "hole": True})
            continue
        extent = run.extent
        found: dict[str, Any] = {"id": extent.id, "offset": run.offset, "length": run.length}
        copy = core.catalog.copies.copy(extent.id)
        if copy is not None:
            found["blob"] = BlobName(core.disks.store_id, copy.epoch, copy.blob).key
        if extent.segment in (IN_BLOB, LOST):
            found["lost"] = copy is None
        elif extent.segment:
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
