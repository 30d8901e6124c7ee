"""A daemon with a second cache: killed, with every segment of the cache rotten, and shared by workers.

Seen to fail with: the settings not handed to the store, or to workers; sums not compared; a worker that ends and hands
nothing over.
"""

import os
import random
import signal
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import pytest
from daemon import QUICK, Node, remove, wait_until
from modes import WORKERS, unmounted

BODIES = {f"key-{number}": random.Random(number).randbytes(50_000) for number in range(25)}
FEW = list(BODIES)[:4]


def metric(node: Node, name: str) -> float:
    with urllib.request.urlopen(node.addresses["metrics"], timeout=30) as page:
        lines = page.read().decode().splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(f'couchestord_cache_{name}{{tier="l2"}}')))


def read_all(node: Node, keys: Iterable[str] = BODIES) -> bool:
    """False, for who reads on until something holds."""
    for key in keys:
        assert node.s3().get_object(Bucket="box", Key=key)["Body"].read() == BODIES[key]
    return False


def start(node: Node) -> None:
    node.start()
    wait_until(lambda: metric(node, "capacity_bytes") > 0, 60, node.said)


def settings(tmp_path: Path, workers: int) -> dict[str, str]:
    return {
        **QUICK,
        WORKERS: str(workers),
        "COUCHESTORD_CACHE__L1_SIZE": "1 MiB",
        "COUCHESTORD_CACHE__L2_PATH": str(tmp_path / "l2"),
        "COUCHESTORD_CACHE__L2_SIZE": "16 MiB",
        "COUCHESTORD_CACHE__L2_SHARED_DEVICE": "true",
    }


def fill(node: Node) -> None:
    """Until the second tier holds what was asked for more than once."""
    node.s3().create_bucket(Bucket="box")
    for key, body in BODIES.items():
        node.s3().put_object(Bucket="box", Key=key, Body=body)
    wait_until(lambda: read_all(node) or metric(node, "entries") > 10, 60, node.said)


@pytest.mark.parametrize("workers", [0, 2])
def test_is_warm_after_a_kill_and_never_wrong(tmp_path: Path, workers: int) -> None:
    with Node(tmp_path / "data", settings=settings(tmp_path, workers)) as node:
        start(node)
        fill(node)
        node.kill()
        start(node)
        assert metric(node, "entries") > 5
        wait_until(lambda: read_all(node) or metric(node, "hits_total") > 0, 60, node.said)
        assert metric(node, "damaged_total") == 0
        node.kill()
        for path in (tmp_path / "l2" / "segments").iterdir():
            data = bytearray(path.read_bytes())
            for at in range(5000, len(data), 10_000):
                data[at] ^= 1
            path.write_bytes(data)
        start(node)
        wait_until(lambda: read_all(node) or metric(node, "damaged_total") > 0, 60, node.said)


@unmounted
def test_workers_share_it_hand_over_what_they_hold_and_go_on_without_it(tmp_path: Path) -> None:
    with Node(tmp_path / "data", settings=settings(tmp_path, 2)) as node:
        start(node)
        fill(node)
        node.ask("cache evict")
        for _ in range(3):  # two of them by the same worker; so little that nothing leaves its memory
            read_all(node, FEW)
        assert metric(node, "entries") == 0
        # new ones, one by one: what the others had in memory is there
        old = set(node.status()["workers"])
        os.kill(node.pid, signal.SIGHUP)
        wait_until(lambda: len(set(node.status()["workers"]) - old) == 2, 60, node.said)
        wait_until(lambda: not old & set(node.status()["workers"]), 60, node.said)
        assert metric(node, "entries") > 0
        hits = metric(node, "hits_total")
        wait_until(lambda: read_all(node) or metric(node, "hits_total") > hits, 60, node.said)
        [row] = [each for each in node.ask("cache stats") if each["tier"] == "l2"]
        assert row["capacity_bytes"] == 16 << 20
        assert [each["entries"] for each in row["processes"]] == [0, 0]
        # forgotten by all; how much there was is as clients were shared out among the workers
        held_bytes = metric(node, "bytes")
        assert node.ask("cache evict", tier="l2")["bytes"] >= held_bytes > 0
        assert metric(node, "entries") == 0
        wait_until(lambda: read_all(node) or metric(node, "entries") > 10, 60, node.said)
        # taken away
        remove(tmp_path / "l2")
        read_all(node)
        wait_until(lambda: metric(node, "capacity_bytes") == 0, 60, node.said)
        read_all(node)
        assert metric(node, "damaged_total") == 0
