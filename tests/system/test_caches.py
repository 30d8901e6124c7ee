"""Caches through a real daemon: settings, the command, metrics.

Seen to fail with: a setting that does not reach the store.
"""

import urllib.request
from pathlib import Path

import pytest
from daemon import ONE_PROCESS, QUICK, Node, wait_until, with_workers
from daemons import command, result
from modes import unmounted
from workload import BUCKET


def metrics(node: Node) -> dict[str, float]:
    with urllib.request.urlopen(node.addresses["metrics"], timeout=60) as response:
        lines = response.read().decode().splitlines()
    rows = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in rows}


@unmounted
def test_warmup_stats_and_evict(tmp_path: Path) -> None:
    with Node(tmp_path / "data", settings={**QUICK, **ONE_PROCESS, "COUCHESTORD_CACHE__L1_SIZE": "1 MiB"}) as node:
        data = ("--data", node.data)
        assert "no daemon runs" in command("cache", "warmup", "box", *data).stderr
        node.start()
        client = node.s3()
        client.create_bucket(Bucket=BUCKET)
        for number in range(20):
            client.put_object(Bucket=BUCKET, Key=f"small/{number:02}", Body=b"%d" % number)
        assert command("cache", "warmup", f"{BUCKET}/small/", *data).stdout.startswith("20 objects, 30 bytes")
        before = metrics(node)
        for number in range(20):
            assert client.get_object(Bucket=BUCKET, Key=f"small/{number:02}")["Body"].read() == b"%d" % number
        after = metrics(node)
        hits, misses = (f'couchestord_cache_{name}_total{{tier="l1"}}' for name in ("hits", "misses"))
        assert (after[hits] - before[hits], after[misses] - before[misses]) == (20, 0)
        [row] = result("cache", "stats", *data)
        assert (row["entries"], row["capacity_bytes"], row["bytes"]) == (
            20,
            1 << 20,
            after['couchestord_cache_bytes{tier="l1"}'],
        )
        assert result("cache", "evict", *data) == {"bytes": row["bytes"]}
        assert "NoSuchBucket" in command("cache", "warmup", "nowhere", *data, "--json").stderr


@unmounted
def test_caches_of_workers_are_warmed_told_and_emptied(tmp_path: Path) -> None:
    settings = with_workers({**QUICK, "COUCHESTORD_CACHE__L1_SIZE": "2 MiB"}, 2)
    with Node(tmp_path / "data", settings=settings) as node:
        data = ("--data", node.data)
        node.start()
        wait_until(lambda: len(node.status()["workers"]) == 2, 60, node.said)
        client = node.s3()
        client.create_bucket(Bucket=BUCKET)
        for number in range(20):
            client.put_object(Bucket=BUCKET, Key=f"small/{number:02}", Body=b"%d" % number)
        assert command("cache", "warmup", f"{BUCKET}/small/", *data).stdout.startswith("20 objects, 30 bytes")
        [row] = result("cache", "stats", *data)
        assert (row["entries"], row["capacity_bytes"]) == (40, 2 << 20), "each has all"
        assert sorted(each["pid"] for each in row["processes"]) == node.status()["workers"]
        assert [each["entries"] for each in row["processes"]] == [20, 20]
        before = metrics(node)
        hits, misses = (f'couchestord_cache_{name}_total{{tier="l1"}}' for name in ("hits", "misses"))
        for number in range(20):
            assert client.get_object(Bucket=BUCKET, Key=f"small/{number:02}")["Body"].read() == b"%d" % number
        wait_until(lambda: metrics(node)[hits] == before[hits] + 20, 60, lambda: metrics(node))
        assert metrics(node)[misses] == before[misses]
        assert "processes" not in command("cache", "stats", *data).stdout
        assert result("cache", "evict", *data) == {"bytes": row["bytes"]}
        assert result("cache", "stats", *data)[0]["bytes"] == 0


@unmounted
@pytest.mark.parametrize("l1_size", ["0", "auto"])
def test_with_and_without(tmp_path: Path, l1_size: str) -> None:
    with Node(tmp_path / "data", settings={**QUICK, "COUCHESTORD_CACHE__L1_SIZE": l1_size}) as node:
        node.start()
        client = node.s3()
        client.create_bucket(Bucket=BUCKET)
        for size in (10, 70_000, 300_000, 2_000_000):
            body = bytes(size % 251 for size in range(size))
            client.put_object(Bucket=BUCKET, Key="key", Body=body)
            for _ in range(2):
                assert client.get_object(Bucket=BUCKET, Key="key")["Body"].read() == body
                part = client.get_object(Bucket=BUCKET, Key="key", Range=f"bytes=3-{size // 2}")["Body"].read()
                assert part == body[3 : size // 2 + 1]
        assert len(result("cache", "stats", "--data", node.data)) == (0 if l1_size == "0" else 1)
        assert "couchestord_cache_hits_total" in str(metrics(node)) or l1_size == "0"
