"""A daemon whose third tier is a bucket of another daemon: copies, full disks, kill -9 of either.

Seen to fail with: the bucket not handed to workers; no body that goes past the disks; bytes that are packed anew in
another order.
"""

import hashlib
import random
from collections.abc import Collection
from functools import partial
from pathlib import Path

import pytest
from backends import Bucket, couchestord_bucket, seaweedfs_bucket
from daemon import QUICK, Node, error_of, wait_until, with_workers
from daemons import result
from loops import LoopStore, need

from couchestord.remote.location import Location, parse_location

__all__ = ["couchestord_bucket", "seaweedfs_bucket"]

BODIES = {f"key-{number}": random.Random(number).randbytes(300_000 * number % 2_000_000 + 100) for number in range(16)}


def settings_for(location: Location, key: tuple[str, str], folder: Path, workers: int = 0) -> dict[str, str]:
    access_key, secret_key = key
    (folder / "secret").write_text(secret_key + "\n")
    return {
        **with_workers(QUICK, workers),
        "COUCHESTORD_STORE__SEGMENT_SIZE": "4 MiB",
        "COUCHESTORD_CACHE__L1_SIZE": "0",
        "COUCHESTORD_L3__MODE": "tiered",
        "COUCHESTORD_L3__URL": str(location),
        "COUCHESTORD_L3__ACCESS_KEY": access_key,
        "COUCHESTORD_L3__SECRET_KEY_FILE": str(folder / "secret"),
        "COUCHESTORD_L3__DELAY": "100 ms",
        "COUCHESTORD_L3__PUBLISH_DELAY": "200 ms",
        "COUCHESTORD_L3__BLOB_SIZE": "2 MiB",
        "COUCHESTORD_L3__EVICT_FROM_PERCENT": "0",
        "COUCHESTORD_L3__EVICT_TO_PERCENT": "0",
    }


def of_bucket(node: Node, name: str) -> float:
    found: float = node.status()["l3"][name]
    return found


def wrong(node: Node, keys: Collection[str] = BODIES.keys()) -> list[str]:
    """Those that do not read as they should."""
    s3 = node.s3()
    return [key for key in keys if s3.get_object(Bucket="box", Key=key)["Body"].read() != BODIES[key]]


def place_in(bucket: Node) -> Location:
    return parse_location(f"{bucket.addresses['s3'].rstrip('/')}/tier/node-1")


def fill(node: Node) -> None:
    """All of the bodies are in the bucket, and nearly all of them there only."""
    node.start().s3().create_bucket(Bucket="box")
    for key, body in BODIES.items():
        node.s3().put_object(Bucket="box", Key=key, Body=body)
    wait_until(lambda: not node.in_journal() and of_bucket(node, "waiting_bytes") == 0, 60, node.said)
    node.kill()
    node.start()  # the segments that were open are sealed now, and may leave
    wait_until(lambda: of_bucket(node, "only_bytes") > 0.9 * sum(map(len, BODIES.values())), 60, node.said)


@pytest.mark.parametrize("workers", [0, 2])
def test_data_leaves_the_disks_and_is_read_from_the_bucket(tmp_path: Path, workers: int) -> None:
    with Node(tmp_path / "bucket") as bucket, Node(tmp_path / "data") as node:
        bucket.start().s3().create_bucket(Bucket="tier")
        node.settings = settings_for(place_in(bucket), bucket.key, tmp_path, workers)
        fill(node)
        assert wrong(node) == []
        gone = list(BODIES)[::2]
        for key in gone:
            node.s3().delete_object(Bucket="box", Key=key)
        bucket.kill()
        assert error_of(lambda: node.s3().get_object(Bucket="box", Key="key-5")) == (503, "ServiceUnavailable")
        assert error_of(lambda: node.s3().get_object(Bucket="box", Key=gone[1])) == (404, "NoSuchKey")
        node.s3().put_object(Bucket="box", Key="new", Body=BODIES["key-5"])
        assert node.s3().get_object(Bucket="box", Key="new")["Body"].read() == BODIES["key-5"], "it is on the disks"


def smallest_of_shared_blobs(node: Node) -> list[str]:
    """Of each blob that holds several bodies the key of the smallest: without the others little of it is live. What
    comes into one blob is what happened to wait together.
    """
    blobs: dict[str, dict[str, int]] = {}
    for key in BODIES:
        for extent in node.info("box", key)["extents"]:
            sizes = blobs.setdefault(extent["blob"], {})
            sizes[key] = sizes.get(key, 0) + extent["length"]
    kept = {min(sizes, key=lambda key: sizes[key]) for sizes in blobs.values() if len(sizes) > 1}
    assert kept, blobs
    return sorted(kept)


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.soak), 2])
def test_what_is_packed_anew_is_read_on_and_outlives_a_kill(tmp_path: Path, workers: int) -> None:
    with Node(tmp_path / "bucket") as bucket, Node(tmp_path / "data") as node:
        bucket.start().s3().create_bucket(Bucket="tier")
        node.settings = settings_for(place_in(bucket), bucket.key, tmp_path, workers)
        fill(node)
        kept = smallest_of_shared_blobs(node)
        for key in BODIES.keys() - set(kept):
            node.s3().delete_object(Bucket="box", Key=key)

        def is_packed() -> bool:
            assert wrong(node, kept) == []
            return of_bucket(node, "packed_bytes") > 0

        # where a mount was there before a start, what is deleted is freed a minute after it
        wait_until(is_packed, 150, node.said)
        assert wrong(node, kept) == []
        node.kill()
        node.start()
        assert wrong(node, kept) == []


@pytest.mark.parametrize("kind", ["couchestord", pytest.param("seaweedfs", marks=pytest.mark.soak)])
def test_a_node_that_is_lost_is_made_anew_from_the_bucket(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    bucket: Bucket = request.getfixturevalue(f"{kind}_bucket")
    key = (bucket.credentials.access_key, bucket.credentials.secret_key)
    settings = settings_for(bucket.part(), key, tmp_path)
    with Node(tmp_path / "data", settings=settings) as node:
        fill(node)
        status = node.status()
        wait_until(lambda: of_bucket(node, "published_sequence") >= status["sequence"], 90, lambda: node.status()["l3"])
        was = node.key
        node.kill()
    with Node(tmp_path / "anew", settings=settings) as node:
        store_id = status["store"]
        found = result("recover", "--from-l3", "--store", store_id, "--data", node.data, **settings)
        assert (found["lost_objects"], found["missing_blobs"]) == (0, 0)
        node.start()
        assert node.key == was
        assert wrong(node) == []
        node.s3().put_object(Bucket="box", Key="new", Body=b"it goes on")
        node.restart()
        assert wrong(node) == []


def test_more_than_the_disks_hold(tmp_path: Path) -> None:
    """Six disks of 48 MiB take 350 MB in: what they hold leaves them for a folder, and some bodies go past them."""
    need("mkfs.ext4", "losetup", "mount")
    settings = {
        **QUICK,
        "COUCHESTORD_STORE__SEGMENT_SIZE": "8 MiB",
        "COUCHESTORD_STORE__RESERVE": "4 MiB",
        "COUCHESTORD_JOURNAL__SIZE_BYTES": "16 MiB",
        "COUCHESTORD_JOURNAL__FILE_SIZE": "1 MiB",
        "COUCHESTORD_L3__MODE": "tiered",
        "COUCHESTORD_L3__URL": f"file://{tmp_path}/bucket",
        "COUCHESTORD_L3__DELAY": "0 s",
    }
    (tmp_path / "bucket").mkdir()
    sums: dict[str, bytes] = {}
    log = tmp_path / "log"
    with LoopStore(tmp_path, "ext4", 48 << 20) as loops, Node(loops.data, settings=settings, log=log) as node:
        s3 = node.start().s3()
        s3.create_bucket(Bucket="box")
        for number in range(35):
            body = random.Random(number).randbytes(10_000_000)
            wait_until(partial(put, node, f"{number}", body), 60, node.said)
            sums[f"{number}"] = hashlib.sha256(body).digest()
        assert of_bucket(node, "bypassed_bodies") > 0
        node.kill()
        s3 = node.start().s3()
        for key, digest in sums.items():
            assert hashlib.sha256(s3.get_object(Bucket="box", Key=key)["Body"].read()).digest() == digest, key
        assert of_bucket(node, "only_bytes") > 100_000_000


def put(node: Node, key: str, body: bytes) -> bool:
    """False while there is no room."""
    code, _ = error_of(lambda: node.s3().put_object(Bucket="box", Key=key, Body=body))
    assert code in (200, 503, 507)
    return code == 200
