import os
from pathlib import Path

import pytest

from couchestord.config import CacheConfig, Config
from couchestord.errors import ConfigError
from couchestord.processes.running import run_with_workers, workers_count
from couchestord.processes.supervisor import WORKERS_MAX


@pytest.mark.parametrize(("cpus", "count"), [(1, 0), (3, 0), (4, 2), (8, 6), (64, 8)])
def test_auto_goes_by_the_cpus_that_may_be_used(cpus: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    assert workers_count(None) == count


def test_a_number_is_a_number() -> None:
    assert [workers_count(number) for number in (0, 1, WORKERS_MAX)] == [0, 1, WORKERS_MAX]


def test_settings_that_make_no_sense_are_refused_before_anything_is_begun(tmp_path: Path) -> None:
    config = Config(cache=CacheConfig(l1_bytes=0, l2_path=tmp_path, l2_bytes=1 << 30))
    with pytest.raises(ConfigError, match="L1"):
        run_with_workers(config, 2, {}, announce=_never, settle=_never)


def _never(*_: object) -> None:
    raise AssertionError
