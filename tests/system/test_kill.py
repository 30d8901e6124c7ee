"""kill -9 in the midst of mixed load: what was acknowledged is there, whole; what was deleted stays deleted."""

import random
from pathlib import Path

import pytest
from daemon import QUICK, Node, with_workers
from workload import BUCKET, Expected, Load


def kill_in_load(folder: Path, times: int, seed: int, workers: int = 0) -> None:
    random_ = random.Random(seed)
    expected = Expected()
    with Node(folder / "data", settings=with_workers(QUICK, workers)) as node:
        node.start().s3().create_bucket(Bucket=BUCKET)
        for turn in range(times):
            with Load(expected, node.s3(), seed * 1000 + turn) as load:
                load.wait_for(random_.randrange(10, 90))
                node.kill()
            node.start()
            expected.verify(node.s3())
        assert expected.acknowledged_count > 20 * times
        assert expected.failed_count, "no operation was under way at any kill"
        node.restart()
        expected.verify(node.s3())
        node.wait_healthy()


@pytest.mark.parametrize("workers", [0, 2])
def test_kill_9_under_load(tmp_path: Path, workers: int) -> None:
    kill_in_load(tmp_path, 3, 1, workers)


@pytest.mark.soak
@pytest.mark.parametrize(("seed", "workers"), [(2, 0), (3, 0), (4, 2)])
def test_kill_9_fifty_times(tmp_path: Path, seed: int, workers: int) -> None:
    kill_in_load(tmp_path, 25, seed, workers)
