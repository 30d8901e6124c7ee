"""From what the store says of itself to the gauges of /metrics. Pure."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from couchestord.metrics import Snapshot


def snapshot_of(version: str, health: str, status: Mapping[str, Any]) -> Snapshot:
    """The gauges in a store's status; what a status does not hold is left out, not zero."""
    if not status:
        return Snapshot(version=version, health=health)
    disks, journal, segments = status["disks"], status["journal"], status["segments"]
    return Snapshot(
        version=version,
        engine=status["engine"]["name"],
        health=health,
        disks=Counter(disk["state"] for disk in disks),
        disks_free_bytes={disk["name"]: disk["free_bytes"] for disk in disks if "free_bytes" in disk},
        journal_bytes=journal["bytes"],
        journal_bytes_max=journal["bytes_max"],
        segments={"open": segments["open"], "sealed": segments["count"] - segments["open"]},
        shards_missing=segments["missing_shards"],
        redundancy={state: segments[state] for state in ("whole", "degraded", "lost")},
        jobs={name: int(job["running"]) for name, job in status["jobs"].items()},
        degraded_reads=status["degraded_reads"] + journal["degraded_reads"],
        caches={tier["tier"]: tier for tier in status["caches"]},
        l3=status["l3"] or {},
        mounts={"count": len(status["mounts"]["shown"]), "late": status["mounts"]["late"]},
    )
