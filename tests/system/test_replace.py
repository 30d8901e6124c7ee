"""Disks that are lost for good, and empty ones that take their places."""

from pathlib import Path

import pytest
from daemon import NO_DESTAGE, QUICK, Node, remove, wait_until, with_workers
from daemons import result
from workload import BUCKET, Expected, Load, content, fill

SIZES = (0, 1, 4096, 70_000, 131_072, 131_073, 600_000, 3_000_000)


def lost(node: Node, index: int) -> bool:
    reasons = node.page("healthz")[1]["reasons"]
    return any(reason.startswith(f"disk {index} is not used") for reason in reasons)


def lose_for_good(node: Node, index: int) -> None:
    remove(node.disks[index])
    wait_until(lambda: lost(node, index), 60, node.status)


def replace(node: Node, index: int) -> None:
    """By the command line, whether the daemon runs or not."""
    node.disks[index].mkdir()
    done = result("disk", "replace", str(index), "--data", node.data)
    assert done == {"disk": index, "folder": str(node.disks[index]), "new": True}


def lose_two(node: Node, expected: Expected, others: list[int]) -> None:
    """Which leaves k shards of each stripe, those on the new disk among them: all of it is read."""
    for other in others:
        node.disks[other].rename(node.data.with_name(f"away-{other}"))
        wait_until(lambda other=other: lost(node, other), 60, node.status)  # type: ignore[misc]
    expected.verify(node.s3())
    for other in others:
        node.data.with_name(f"away-{other}").rename(node.disks[other])
    node.wait_healthy()


def fill_all(node: Node, expected: Expected) -> None:
    """Stripes, and small objects that stay in the journal until the daemon is told otherwise."""
    node.start().s3().create_bucket(Bucket=BUCKET)
    fill(expected, node.s3(), "stripes", SIZES)
    node.wait_destaged()
    node.stop()
    node.settings = dict(NO_DESTAGE)
    fill(expected, node.start().s3(), "journal", SIZES)
    assert node.in_journal() >= 4


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_an_empty_disk_takes_the_place_of_a_lost_one(tmp_path: Path, running: bool) -> None:
    """Two others may go once it is filled: with exactly k+m disks it holds what no other disk does."""
    expected = Expected()
    with Node(tmp_path / "data", settings=QUICK) as node:
        fill_all(node, expected)
        index = sorted(holders(node, "journal/2"))[0]
        lose_for_good(node, index)
        expected.put(node.s3(), "meanwhile", content("meanwhile", 500_000))
        if not running:
            node.stop()
        replace(node, index)
        if not running:
            node.start()
        node.wait_healthy()
        assert str(node.disks[index]) in {disk["name"] for disk in node.status()["disks"]}
        lose_two(node, expected, sorted(holders(node, "journal/2") - {index})[:2])
        node.restart()
        lose_two(node, expected, [(index + 1) % 6, (index + 3) % 6])


def holders(node: Node, key: str) -> set[int]:
    """The disks that a small object lies on, in the journal."""
    (extent,) = node.info(BUCKET, key)["extents"]
    return {node.disks.index(Path(replica["disk"])) for replica in extent["replicas"]}


@pytest.mark.soak
@pytest.mark.parametrize("index", range(6))
def test_every_disk_under_load(tmp_path: Path, index: int) -> None:
    """Clients go on while the disk is lost, replaced and filled; a kill cuts the filling once."""
    expected = Expected()
    with Node(tmp_path / "data", settings=QUICK) as node:
        fill_all(node, expected)
        node.settings = with_workers(QUICK, 2 * (index % 2))
        node.restart()
        with Load(expected, node.s3(), index) as load:
            load.wait_for(40)
            lose_for_good(node, index)
            load.wait_for(40)
            replace(node, index)
            load.wait_for(40)
        node.kill()
        node.start()
        with Load(expected, node.s3(), index + 6) as load:
            load.wait_for(40)
            node.wait_healthy()
        node.wait_healthy()
        lose_two(node, expected, [(index + 1) % 6, (index + 3) % 6])
