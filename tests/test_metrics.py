import re

from prometheus_client.parser import text_string_to_metric_families

from couchestord.metrics import Metrics, Snapshot

FULL = Snapshot(
    version="1.2",
    engine="isal",
    health="degraded",
    disks={"present": 5, "missing": 1},
    disks_free_bytes={"disk-0": 9},
    journal_bytes=7,
    journal_bytes_max=8,
    segments={"open": 1, "sealed": 2},
    shards_missing=3,
    jobs={"destage": 1},
    degraded_reads=6,
    caches={
        "l1": {
            **{"bytes": 1, "capacity_bytes": 2, "entries": 3, "hit_ratio": 0.5, "hits": 4, "misses": 4},
            **{"promotions": 5, "evictions": 6, "dropped": 7, "damaged": 8},
        }
    },
)


def samples(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(page.decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_late_clients_are_counted_by_what_was_awaited() -> None:
    metrics = Metrics()
    for awaited in ("body", "head", "body"):
        metrics.count_late(awaited)
    found = samples(metrics.render(Snapshot()))
    counts = [found["couchestord_late_clients_total", (("awaited", of),)] for of in ("body", "head", "response")]
    assert counts == [2, 1, 0]


def test_requests_are_counted_by_operation_and_class() -> None:
    metrics = Metrics()
    for status in (200, 206, 404, 503):
        metrics.count_request("GetObject", status, 0.02, 0, 100)
    metrics.count_request("PutObject", 200, 0.2, 50, 0)
    found = samples(metrics.render(Snapshot()))

    def requests(operation: str, status: str) -> float:
        return found["couchestord_requests_total", (("operation", operation), ("status", status))]

    assert [requests("GetObject", status) for status in ("2xx", "4xx", "5xx")] == [2, 1, 1]
    assert requests("PutObject", "2xx") == 1
    assert found["couchestord_sent_bytes_total", ()] == 400
    assert found["couchestord_received_bytes_total", ()] == 50
    name = "couchestord_request_duration_seconds_bucket"
    assert found[name, (("le", "0.025"), ("operation", "GetObject"))] == 4
    assert found[name, (("le", "0.01"), ("operation", "GetObject"))] == 0


def test_durations_lie_in_buckets_up_to_and_with_their_bounds() -> None:
    metrics = Metrics()
    for seconds in (0.0, 0.01, 0.0101, 0.5, 31.0):
        metrics.count_request("GetObject", 200, seconds, 0, 0)
    metrics.count_request("PutObject", 200, 1.0, 0, 0)
    found = samples(metrics.render(Snapshot()))
    name = "couchestord_request_duration_seconds"

    def up_to(bound: str) -> float:
        return found[f"{name}_bucket", (("le", bound), ("operation", "GetObject"))]

    assert [up_to(bound) for bound in ("0.001", "0.005", "0.01", "0.025", "0.25", "0.5", "30.0", "+Inf")] == [
        *(1, 1, 2, 3, 3, 4, 4, 5)
    ]
    assert found[f"{name}_count", (("operation", "GetObject"),)] == 5
    assert found[f"{name}_sum", (("operation", "GetObject"),)] == 0.01 + 0.0101 + 0.5 + 31.0
    assert found[f"{name}_sum", (("operation", "PutObject"),)] == 1.0


def test_gauges_are_the_snapshot() -> None:
    found = samples(Metrics().render(FULL))
    assert found["couchestord_disks", (("state", "missing"),)] == 1
    assert found["couchestord_health", (("state", "degraded"),)] == 1
    assert found["couchestord_health", (("state", "healthy"),)] == 0
    assert found["couchestord_missing_shards", ()] == 3
    assert found["couchestord_disk_free_bytes", (("disk", "disk-0"),)] == 9
    assert found["couchestord_segments", (("state", "sealed"),)] == 2
    assert found["couchestord_job_running", (("job", "destage"),)] == 1
    assert found["couchestord_degraded_reads_total", ()] == 6
    assert found["couchestord_journal_bytes", ()] == 7
    assert found["couchestord_cache_hit_ratio", (("tier", "l1"),)] == 0.5
    assert found["couchestord_cache_evictions_total", (("tier", "l1"),)] == 6
    assert found["couchestord_build_info", (("engine", "isal"), ("version", "1.2"))] == 1


def test_unknown_is_absent_not_zero() -> None:
    assert not [name for name, _ in samples(Metrics().render(Snapshot())) if name.startswith("couchestord_journal")]


def test_number_of_series_is_bounded() -> None:
    metrics = Metrics()
    for number in range(1000):
        metrics.count_request(f"sent-by-a-client-{number}", 200, 0.0, 0, 0)
    assert len(samples(metrics.render(Snapshot()))) < 128 * 20


def test_names_follow_the_rules_of_prometheus() -> None:
    metrics = Metrics()
    metrics.count_request("GetObject", 200, 0.1, 1, 1)
    families = list(text_string_to_metric_families(metrics.render(FULL).decode()))
    ours = [family for family in families if not family.name.startswith("process_")]
    assert len(ours) > 10
    for family in ours:
        assert re.fullmatch(r"couchestord_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        assert (family.type == "counter") == any(s.name.endswith("_total") for s in family.samples)
        assert not re.search(r"_(ms|kb|mb|percent)$", family.name)


def test_daemons_do_not_share_counts() -> None:
    one, other = Metrics(), Metrics()
    one.count_request("GetObject", 200, 0.1, 1, 1)
    assert ("couchestord_sent_bytes_total", ()) in samples(other.render(Snapshot()))
    assert samples(other.render(Snapshot()))["couchestord_sent_bytes_total", ()] == 0
