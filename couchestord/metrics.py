"""What Prometheus reads. The door to prometheus-client.

Counters are counted where things happen; gauges are the store's state at the moment of the scrape, handed in as a
`Snapshot`. There is no bucket and no key in a label: the number of series does not grow with what is stored.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from operator import add
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_CACHE_GAUGES: Final = (
    ("bytes", "Bytes that a tier of the caches holds."),
    ("capacity_bytes", "Bytes that a tier may hold; 0 while it is off."),
    ("entries", "Chunks that a tier holds."),
    ("hit_ratio", "Hits of all look-ups since the start."),
)
_CACHE_COUNTERS: Final = (
    ("hits", "Chunks that were found in a tier."),
    ("misses", "Chunks that were not."),
    ("promotions", "Chunks that a tier got from the one below."),
    ("evictions", "Chunks that went to make room."),
    ("dropped", "Chunks that a tier did not take: it was behind, full or off."),
    ("damaged", "Chunks that were not what was put; each was a miss."),
)
_OPERATIONS_MAX: Final = 128
"""More operations than the front ends have: a bound, should a caller pass what a client sent."""


_L3_GAUGES = (
    ("claimed", "1 when this daemon has claimed the bucket: it may write there."),
    ("blobs", "Objects with data in the bucket."),
    ("bytes", "Bytes of these objects."),
    ("live_bytes", "Bytes of live data in them."),
    ("only_bytes", "Bytes of live data that is in the bucket only, not on the disks."),
    ("dead_bytes", "Bytes of objects in the bucket that no live data takes: packed anew, or deleted, some time."),
    ("waiting_bytes", "Bytes of data in stripes that has no copy in the bucket yet."),
    ("waiting_seconds", "For how long the oldest of it has waited."),
    ("unpublished_records", "Changes of the catalog that are not in the bucket yet: lost with the node."),
)
_L3_COUNTERS = (
    ("uploaded_bytes", "Bytes of data that got a copy, since the start."),
    ("evicted_bytes", "Bytes of data that left the disks, since the start."),
    ("packed_bytes", "Bytes of live data that was packed out of mostly dead objects in the bucket, since the start."),
    ("reads", "Reads from the bucket, since the start."),
    ("read_bytes", "Bytes that they brought."),
    ("lost_copies", "Copies that were missing or damaged, since the start."),
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The store's state at one moment. Mappings go from a state (or name) to a count."""

    version: str = ""
    engine: str = ""
    health: str = ""
    disks: Mapping[str, int] = field(default_factory=dict)
    disks_free_bytes: Mapping[str, int] = field(default_factory=dict)
    journal_bytes: int | None = None
    journal_bytes_max: int | None = None
    segments: Mapping[str, int] = field(default_factory=dict)
    shards_missing: int | None = None
    jobs: Mapping[str, int] = field(default_factory=dict)
    degraded_reads: int | None = None
    redundancy: Mapping[str, int] = field(default_factory=dict)
    caches: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Of each tier by name: bytes, capacity_bytes, entries, hit_ratio, and counts of what happened."""
    l3: Mapping[str, float] = field(default_factory=dict)
    """Of the bucket; empty: there is none."""
    mounts: Mapping[str, int] = field(default_factory=dict)
    """How many show buckets now, and how often one of them was late."""


class Metrics:
    """The metrics of one daemon, in a registry of their own. All methods are quick, and belong to one task context."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = _Requests()
        self._registry.register(self._requests)

    def count_request(self, operation: str, status: int, seconds: float, received_bytes: int, sent_bytes: int) -> None:
        """One request answered. `operation` is a name from a fixed set, never what a client sent."""
        requests = self._requests
        tally = requests.tallies.get(operation) or requests.add(operation)
        tally.statuses[status // 100] += 1
        tally.seconds += seconds
        tally.buckets[bisect_left(_SECONDS_BUCKETS, seconds)] += 1
        requests.received_bytes += received_bytes
        requests.sent_bytes += sent_bytes

    def count_late(self, awaited: str) -> None:
        """One client given up for being slow with its "head", "body", or in taking a "response"."""
        self._requests.late[awaited] = self._requests.late.get(awaited, 0) + 1

    def take(self) -> dict[str, object]:
        """What was counted since the last time, for `add` of another process's metrics; empty: nothing."""
        requests = self._requests
        if not requests.tallies and not any(requests.late.values()):
            return {}
        taken: dict[str, object] = {
            "tallies": {name: [it.statuses, it.seconds, it.buckets] for name, it in requests.tallies.items()},
            "late": dict(requests.late),
            "received": requests.received_bytes,
            "sent": requests.sent_bytes,
        }
        requests.clear()
        return taken

    def add(self, taken: Mapping[str, Any]) -> None:
        """Count what another process has counted and `take` gave."""
        requests = self._requests
        for operation, (statuses, seconds, buckets) in taken["tallies"].items():
            tally = requests.tallies.get(operation) or requests.add(operation)
            tally.statuses = [*map(add, tally.statuses, statuses)]
            tally.seconds += seconds
            tally.buckets = [*map(add, tally.buckets, buckets)]
        for awaited, count in taken["late"].items():
            requests.late[awaited] = requests.late.get(awaited, 0) + count
        requests.received_bytes += taken["received"]
        requests.sent_bytes += taken["sent"]

    def render(self, snapshot: Snapshot) -> bytes:
        """The page of /metrics, with gauges from `snapshot`."""
        once = CollectorRegistry()
        once.register(_Gauges(snapshot))
        return generate_latest(self._registry) + generate_latest(once)


class _Tally:
    """What is counted of one operation."""

    __slots__ = ("buckets", "seconds", "statuses")

    def __init__(self) -> None:
        self.statuses = [0] * 6
        """Requests by the first digit of their status."""
        self.seconds = 0.0
        self.buckets = [0] * (len(_SECONDS_BUCKETS) + 1)


class _Requests(Collector):
    """Counts of requests. The library's own counters lock and look up at each count: four times the price."""

    def __init__(self) -> None:
        self.tallies: dict[str, _Tally] = {}
        self.received_bytes = 0
        self.sent_bytes = 0
        self.late = {"body": 0, "head": 0, "response": 0}

    def clear(self) -> None:
        self.tallies.clear()
        self.received_bytes = self.sent_bytes = 0
        self.late = dict.fromkeys(self.late, 0)

    def add(self, operation: str) -> _Tally:
        if len(self.tallies) >= _OPERATIONS_MAX:
            operation = "other"
        return self.tallies.setdefault(operation, _Tally())

    def collect(self) -> Iterable[Metric]:
        requests = CounterMetricFamily(
            "couchestord_requests",
            "Requests answered, by S3 operation and class of the status.",
            labels=["operation", "status"],
        )
        durations = HistogramMetricFamily(
            "couchestord_request_duration_seconds",
            "Time from the head of a request to the end of its response.",
            labels=["operation"],
        )
        bounds = [*map(str, _SECONDS_BUCKETS), "+Inf"]
        for operation, tally in sorted(self.tallies.items()):
            for digit, count in enumerate(tally.statuses):
                if count:
                    requests.add_metric([operation, f"{digit}xx"], count)
            buckets = list(zip(bounds, accumulate(tally.buckets), strict=True))
            durations.add_metric([operation], buckets, tally.seconds)
        yield requests
        yield durations
        late = CounterMetricFamily(
            "couchestord_late_clients", "Clients given up for being slow, by what was awaited.", labels=["awaited"]
        )
        for awaited, count in self.late.items():
            late.add_metric([awaited], count)
        yield late
        yield CounterMetricFamily("couchestord_received_bytes", "Bytes of request bodies.", value=self.received_bytes)
        yield CounterMetricFamily("couchestord_sent_bytes", "Bytes of response bodies.", value=self.sent_bytes)


class _Gauges(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        state = self._snapshot
        build = GaugeMetricFamily(
            "couchestord_build_info", "1, with version and engine as labels.", labels=["version", "engine"]
        )
        build.add_metric([state.version, state.engine], 1)
        yield build
        health = GaugeMetricFamily("couchestord_health", "1 for the present state of the store.", labels=["state"])
        for name in ("healthy", "degraded", "unhealthy"):
            health.add_metric([name], int(name == state.health))
        yield health
        yield _family("disks", "Disks of the store, by state.", "state", state.disks)
        yield _family("segments", "Segments, by state.", "state", state.segments)
        text = (
            "Segments (of stripes) by what is left: whole, degraded (all can be read), lost (too few shards are here)."
        )
        yield _family("segments_redundancy", text, "state", state.redundancy)
        text = "Room on each disk; folders on one file system share it."
        yield _family("disk_free_bytes", text, "disk", state.disks_free_bytes)
        yield _family("job_running", "Background jobs: 1 while it has work.", "job", state.jobs)
        for name, text, value in (
            ("missing_shards", "Shards of segments that are on no disk and wait for a rebuild.", state.shards_missing),
            ("journal_bytes", "Bytes in the journal, on each of its disks.", state.journal_bytes),
            ("journal_limit_bytes", "Bytes at which the journal is full.", state.journal_bytes_max),
        ):
            if value is not None:
                yield GaugeMetricFamily(f"couchestord_{name}", text, value=value)
        yield from _caches(state.caches)
        yield from _third_tier(state.l3)
        if state.degraded_reads is not None:
            text = "Reads that had to reconstruct, since the start."
            yield CounterMetricFamily("couchestord_degraded_reads", text, value=state.degraded_reads)
        if state.mounts:
            yield GaugeMetricFamily("couchestord_mounts", "Mounts that show buckets.", value=state.mounts["count"])
            text = "Mounts that were not waited for any longer with what S3 had changed, since the start."
            yield CounterMetricFamily("couchestord_mounts_late", text, value=state.mounts["late"])


def _caches(tiers: Mapping[str, Mapping[str, float]]) -> Iterable[Metric]:
    families: list[tuple[str, GaugeMetricFamily | CounterMetricFamily]] = []
    for name, text in _CACHE_GAUGES:
        families.append((name, GaugeMetricFamily(f"couchestord_cache_{name}", text, labels=["tier"])))
    for name, text in _CACHE_COUNTERS:
        families.append((name, CounterMetricFamily(f"couchestord_cache_{name}", text, labels=["tier"])))
    for name, family in families:
        for tier, values in sorted(tiers.items()):
            family.add_metric([tier], values[name])
        yield family


def _third_tier(values: Mapping[str, float]) -> Iterable[Metric]:
    if not values:
        return
    for name, text in _L3_GAUGES:
        yield GaugeMetricFamily(f"couchestord_l3_{name}", text, value=values[name])
    for name, text in _L3_COUNTERS:
        yield CounterMetricFamily(f"couchestord_l3_{name}", text, value=values[name])


def _family(name: str, text: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"couchestord_{name}", text, labels=[label])
    for key in sorted(values):
        family.add_metric([key], values[key])
    return family
