"""A store against a plain dictionary: random operations, crashes, disks that go and come, rot, catalogs that are lost.

A seed that fails says what was done: run it alone with `COUCHESTORD_MODEL_SEEDS=138:139`.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from model import Model, ModelBroken, Version
from model_run import SECOND_TIER, run_model
from simstore import run_seeded


def _seeds(variable: str, default: str) -> list[int]:
    first, _, end = os.environ.get(variable, default).partition(":")
    return list(range(int(first), int(end)))


def _name(seeds: list[int]) -> str:
    return f"{seeds[0]} to {seeds[-1]}"


@pytest.mark.parametrize("seed", _seeds("COUCHESTORD_MODEL_SEEDS", "1:51"))
def test_store_keeps_its_promises(seed: int, tmp_path: Path) -> None:
    run_model(seed, tmp_path)


@pytest.mark.parametrize("seed", range(2005, 2009))
def test_store_with_a_second_tier_keeps_its_promises(seed: int, tmp_path: Path) -> None:
    """Which survives what the disks do not, and goes where they stay: it is never believed too much."""
    assert "'l2'" in run_model(seed, tmp_path, caches=SECOND_TIER)[-1], "nothing was found there"


SOAK_SEEDS = _seeds("COUCHESTORD_SOAK_SEEDS", "1000:1600")


@pytest.mark.parametrize("gone", [set(), {"1"}])
def test_a_version_below_the_top_that_was_perhaps_deleted_is_told_by_a_look(gone: set[str]) -> None:
    place, newer, older = ("box", b"key"), Version("2", b"new"), Version("1", b"old")
    model = Model()
    model.set_states(place, [(newer, older), (newer,)])
    assert model.in_doubt(place) == {"1"}
    model.settle(place, b"new", "2", restarted=True, gone=gone)
    assert model.states(place) == [(newer,) if gone else (newer, older)]


@pytest.mark.soak
@pytest.mark.parametrize("seeds", [SOAK_SEEDS[at : at + 20] for at in range(0, len(SOAK_SEEDS), 20)], ids=_name)
def test_store_keeps_its_promises_for_long(
    seeds: list[int], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """`COUCHESTORD_SOAK_SEEDS=1000:3000` chooses the seeds; which ones ran is said at the end."""
    record_property("seeds", seeds)
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        run_model(seed, folder, lives=9, bursts=10, caches=SECOND_TIER if seed % 4 == 0 else None)


def test_one_seed_is_one_run(tmp_path: Path) -> None:
    logs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        logs.append(run_model(7, tmp_path / name))
    assert logs[0] == logs[1]
    assert len(logs[0]) > 20


def test_seeded_run_has_the_turns_for_itself() -> None:
    thread = threading.Thread(target=trio.run, args=(trio.lowlevel.checkpoint,))

    async def main() -> None:
        thread.start()
        thread.join()

    with pytest.raises(AssertionError, match="another thread"):
        run_seeded(1, main)


def test_model_refuses_what_nobody_wrote() -> None:
    model = Model()
    place = ("bucket", b"key")
    model.set_states(place, [(), (Version(None, b"new"),)])
    with pytest.raises(ModelBroken):
        model.settle(place, b"other", None, restarted=True)
    model.settle(place, b"new", None, restarted=True)
    with pytest.raises(ModelBroken):
        model.settle(place, None, None, restarted=True)
