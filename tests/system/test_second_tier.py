"""A daemon with a second cache: killed, and with every segment of the cache rotten.

Seen to fail with: the settings not handed to the store; sums not compared.
"""

import random
import urllib.request
from pathlib import Path

from daemon import ONE_PROCESS, QUICK, Node, wait_until

BODIES = {f"key-{number}": random.Random(number).randbytes(50_000) for number in range(25)}


def metric(node: Node, name: str) -> float:
    with urllib.request.urlopen(node.addresses["metrics"], timeout=30) as page:
        lines = page.read().decode().splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(f'couchestord_cache_{name}{{tier="l2"}}')))


def read_all(node: Node) -> None:
    for key, body in BODIES.items():
        assert node.s3().get_object(Bucket="box", Key=key)["Body"].read() == body


def start(node: Node) -> None:
    node.start()
    wait_until(lambda: metric(node, "capacity_bytes") > 0, 60, node.said)


def test_is_warm_after_a_kill_and_never_wrong(tmp_path: Path) -> None:
    settings = {
        **QUICK,
        **ONE_PROCESS,
        "COUCHESTORD_CACHE__L1_SIZE": "1 MiB",
        "COUCHESTORD_CACHE__L2_PATH": str(tmp_path / "l2"),
        "COUCHESTORD_CACHE__L2_SIZE": "16 MiB",
        "COUCHESTORD_CACHE__L2_SHARED_DEVICE": "true",
    }
    with Node(tmp_path / "data", settings=settings) as node:
        start(node)
        node.s3().create_bucket(Bucket="box")
        for key, body in BODIES.items():
            node.s3().put_object(Bucket="box", Key=key, Body=body)
        for _ in range(3):
            read_all(node)
        wait_until(lambda: metric(node, "entries") > 10, 60, node.said)
        node.kill()
        start(node)
        assert metric(node, "entries") > 5
        read_all(node)
        assert metric(node, "hits_total") > 0
        assert metric(node, "damaged_total") == 0
        node.kill()
        for path in (tmp_path / "l2" / "segments").iterdir():
            data = bytearray(path.read_bytes())
            for at in range(5000, len(data), 10_000):
                data[at] ^= 1
            path.write_bytes(data)
        start(node)
        read_all(node)
        assert metric(node, "damaged_total") > 0
