"""The model test tests the store; these test the model test. Each plants one bug, and a few seeds must notice it."""

from pathlib import Path

import pytest
from model import ModelBroken
from model_run import run_model
from mutations import MUTATIONS

SEEDS = range(1, 81)


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_planted_bug_is_noticed(name: str, tmp_path: Path) -> None:
    races, rots = name == "answer_412_before_the_commit", name == "decode_unverified"

    def is_broken(seed: int, what: str) -> bool:
        folder = tmp_path / f"{what}-{seed}"
        folder.mkdir()
        try:
            run_model(seed, folder, races=races, rots=rots)
        except ModelBroken:
            return True
        return False

    for seed in SEEDS:
        with pytest.MonkeyPatch.context() as patch:
            MUTATIONS[name](patch)
            noticed = is_broken(seed, "mutated")
        # it counts only when it is this bug that was noticed
        if noticed and not is_broken(seed, "sound"):
            return
    pytest.fail(f"{len(SEEDS)} seeds did not notice it")
