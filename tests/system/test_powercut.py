"""Power cuts of real file systems: each disk and the catalog on a loop device, cut at different instants and subsets.

A cut is the shutdown ioctl of ext4 and XFS without a flush of their log: what was not synced is gone after the mount.
Only an answer that came before the cut is a promise.
"""

import random
from pathlib import Path

import pytest
from daemon import QUICK, Node, with_workers
from loops import Kind, LoopDisk, LoopStore, need
from workload import BUCKET, Expected, Load

DISK_BYTES = 160 << 20


def cut_in_load(folder: Path, kind: Kind, times: int, seed: int, workers: int) -> None:
    need(f"mkfs.{kind}", "losetup", "mount")
    random_ = random.Random(seed)
    expected = Expected()
    settings = {
        **QUICK,
        "COUCHESTORD_STORE__SEGMENT_SIZE": "16 MiB",
        "COUCHESTORD_JOURNAL__FILE_SIZE": "4 MiB",
        "COUCHESTORD_STORE__SNAPSHOT_SIZE_MIN": "1 MiB",
    }
    with (
        LoopStore(folder, kind, DISK_BYTES) as loops,
        Node(loops.data, settings=with_workers(settings, workers), log=folder / "log") as node,
    ):
        node.start().s3().create_bucket(Bucket=BUCKET)
        for turn in range(times):
            with Load(expected, node.s3(timeout_s=15), seed * 1000 + turn) as load:
                load.wait_for(random_.randrange(5, 80))
                cut(loops, node, load, expected, random_)
                node.kill()
            expected.promises_end.clear()
            loops.cycle()
            node.start()
            expected.verify(node.s3())
        assert expected.acknowledged_count > 10 * times
        node.wait_healthy()


def cut(loops: LoopStore, node: Node, load: Load, expected: Expected, random_: random.Random) -> None:
    """Some disks go at once, perhaps more a little later, perhaps at last all: the mains."""
    order: list[LoopDisk] = [*loops.disks, loops.root]
    random_.shuffle(order)
    if random_.random() < 0.4:
        # up to two disks may go and the store works on: these answers are promises still
        first = [disk for disk in order if disk is not loops.root][: random_.randint(1, 2)]
        for disk in first:
            disk.cut()
        load.progressed()
        load.wait_for(random_.randrange(1, 20))
    else:
        first = []
    expected.promises_end.set()
    for disk in order:
        if disk not in first:
            disk.cut()


@pytest.mark.parametrize(("kind", "times", "workers"), [("ext4", 2, 0), ("xfs", 1, 2)])
def test_power_cut(tmp_path: Path, kind: Kind, times: int, workers: int) -> None:
    cut_in_load(tmp_path, kind, times, 4, workers)


@pytest.mark.soak
@pytest.mark.parametrize(("seed", "workers"), [(5, 0), (6, 2)])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_fifty_power_cuts(tmp_path: Path, kind: Kind, seed: int, workers: int) -> None:
    cut_in_load(tmp_path, kind, 25, seed, workers)
