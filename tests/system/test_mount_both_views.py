"""A mount and S3 show the same at every moment, whatever is done on either side.

Seen to fail with the bugs of `planted_bugs.py` that name a test of this file.
"""

import itertools
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from both_views import BothViews, shown
from daemon import Node
from hypothesis import seed, settings
from hypothesis.stateful import run_state_machine_as_test
from mounted import Mounted, mounted_box, needs_mounts, objects
from telling import Telling

pytestmark = needs_mounts


PROCESSES_COUNT = 8
NAMES_COUNT = 12
SEED = 3
"""One whose few runs notice the planted bugs."""
RUNS = settings(deadline=None, database=None, print_blob=False)


@pytest.fixture(scope="module")
def mounted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Mounted]]:
    with mounted_box(tmp_path_factory.mktemp("views"), getattr(request, "param", 0)) as both:
        yield both


def views_of(node: Node, top: Path, local: Path) -> type[BothViews]:
    """Each on a new folder, of the same name here and there."""
    local.mkdir()
    numbers = itertools.count()

    class Views(BothViews):
        def __init__(self) -> None:
            name = f"{local.name}-{next(numbers)}"
            super().__init__(node.s3(), top / name, local / name)

    return Views


def test_as_a_local_folder_and_as_s3(mounted: tuple[Node, Mounted], tmp_path: Path) -> None:
    """Random calls and requests on the same names: the mount shows what a local folder does, S3 what was published."""
    node, mount = mounted
    local = tmp_path / "local"
    views = seed(SEED)(views_of(node, mount.folder, local))
    run_state_machine_as_test(views, settings=settings(RUNS, max_examples=8, stateful_step_count=100))
    with Mounted(node.data, tmp_path / "second", options=["--read-only"]) as second:
        for folder in local.iterdir():
            assert shown(second.folder / folder.name) == shown(folder)


@pytest.mark.soak
@pytest.mark.parametrize("mounted", [0, 2], indirect=True)
def test_as_a_local_folder_and_as_s3_for_long(mounted: tuple[Node, Mounted], tmp_path: Path) -> None:
    """Others each time."""
    node, mount = mounted
    views = views_of(node, mount.folder, tmp_path / "long")
    run_state_machine_as_test(views, settings=settings(RUNS, max_examples=100, stateful_step_count=200))


def contend(node: Node, top: Path, seconds: float, slowest_s: float) -> None:
    """Eight processes and two S3 clients create and remove the same few names. No call takes longer than said."""
    folder, key = top / f"contended-{seconds:.0f}", f"contended-{seconds:.0f}/"
    folder.mkdir()
    end_s = time.monotonic() + seconds

    def put_and_delete(seed: int) -> int:
        rng, client, count = random.Random(seed), node.s3(), 0
        while time.monotonic() < end_s:
            place = {"Bucket": "box", "Key": f"{key}{rng.randrange(NAMES_COUNT)}"}
            if rng.random() < 0.5:
                client.put_object(**place, Body=b"put" * rng.randrange(1000))
            else:
                client.delete_object(**place)
            count += 1
        return count

    with ExitStack() as stack:
        processes = [
            stack.enter_context(Telling("contender.py", folder, seed, NAMES_COUNT)) for seed in range(PROCESSES_COUNT)
        ]
        with ThreadPoolExecutor(2) as pool:
            requests = list(pool.map(put_and_delete, range(2)))
        told = [json.loads(process.finish()[0]) for process in processes]
    assert min(requests) > seconds
    for each in told:
        assert min(each["done"].values()) > 0
        assert {error.split()[-1] for error in each["errors"]} <= {"ENOENT", "EEXIST"}, each["errors"]
        assert each["slowest"][0] < slowest_s, each["slowest"]
    assert objects(node.s3(), key) == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_many_create_and_remove_the_same_names(mounted: tuple[Node, Mounted]) -> None:
    node, mount = mounted
    # a deadlock takes the two seconds that S3 waits for a mount
    contend(node, mount.folder, 5.0, 1.9)


@pytest.mark.soak
@pytest.mark.parametrize("mounted", [0, 2], indirect=True)
def test_many_create_and_remove_the_same_names_for_long(mounted: tuple[Node, Mounted]) -> None:
    node, mount = mounted
    contend(node, mount.folder, 60.0, 1.0)
