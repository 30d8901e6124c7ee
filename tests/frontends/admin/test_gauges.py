from couchestord.cache import TierStats
from couchestord.frontends.admin.gauges import snapshot_of
from couchestord.metrics import Metrics
from couchestord.store.health import caches_status

STATUS = {
    "engine": {"name": "isal", "note": ""},
    "disks": [
        {"name": "disk-0", "state": "good", "free_bytes": 10},
        {"name": "disk-1", "state": "good", "free_bytes": 20},
        {"name": "disk-2", "state": "missing"},
    ],
    "journal": {"bytes": 5, "bytes_max": 50, "degraded_reads": 1},
    "segments": {"count": 7, "open": 2, "missing_shards": 3, "whole": 4, "degraded": 2, "lost": 1},
    "jobs": {"rebuild": {"running": True, "rebuilt_shards": 4}, "destage": {"running": False}},
    "degraded_reads": 4,
    "l3": None,
    "mounts": {"shown": [{"bucket": None, "writes": True, "is_late": False}], "late": 3},
    "caches": caches_status([TierStats("l1", 100, 70, 7, 30, 10, 5, promotions_count=4)]),
}


def test_gauges_are_read_from_a_status() -> None:
    found = snapshot_of("1.0", "degraded", STATUS)
    assert found.disks == {"good": 2, "missing": 1}
    assert found.disks_free_bytes == {"disk-0": 10, "disk-1": 20}
    assert found.segments == {"open": 2, "sealed": 5}
    assert (found.journal_bytes, found.journal_bytes_max) == (5, 50)
    assert (found.shards_missing, found.degraded_reads) == (3, 5)
    assert found.redundancy == {"whole": 4, "degraded": 2, "lost": 1}
    assert found.jobs == {"rebuild": 1, "destage": 0}
    page = Metrics().render(found).decode()
    for name, value in (("bytes", 70), ("capacity_bytes", 100), ("entries", 7), ("hit_ratio", 0.75)):
        assert f'couchestord_cache_{name}{{tier="l1"}} {value}' in page
    for name, value in (("hits", 30), ("misses", 10), ("evictions", 5), ("promotions", 4), ("dropped", 0)):
        assert f'couchestord_cache_{name}_total{{tier="l1"}} {value}.0' in page
    assert 'couchestord_segments_redundancy{state="lost"} 1.0' in page
    assert 'couchestord_job_running{job="rebuild"} 1.0' in page
    assert "couchestord_mounts 1.0" in page
    assert "couchestord_mounts_late_total 3.0" in page
    assert (found.version, found.engine, found.health) == ("1.0", "isal", "degraded")


def test_store_that_cannot_say_its_status_still_has_a_page() -> None:
    page = Metrics().render(snapshot_of("1.0", "unhealthy", {})).decode()
    assert 'couchestord_health{state="unhealthy"} 1.0' in page
    assert "couchestord_journal_bytes" not in page


def test_gauges_of_the_bucket() -> None:
    names = (
        "claimed",
        "blobs",
        "bytes",
        "live_bytes",
        "only_bytes",
        "dead_bytes",
        "waiting_bytes",
        "waiting_seconds",
        "unpublished_records",
    )
    counts = ("uploaded_bytes", "evicted_bytes", "packed_bytes", "reads", "read_bytes", "lost_copies")
    l3 = {name: float(number) for number, name in enumerate(names + counts, start=1)} | {"mode": "cache"}
    page = Metrics().render(snapshot_of("1.0", "healthy", STATUS | {"l3": l3})).decode()
    for name in names:
        assert f"couchestord_l3_{name} {l3[name]}" in page
    for name in counts:
        assert f"couchestord_l3_{name}_total {l3[name]}" in page
    assert "couchestord_l3" not in Metrics().render(snapshot_of("1.0", "healthy", STATUS)).decode()
