import os

import pytest

from couchestord.processes.running import workers_count
from couchestord.processes.supervisor import WORKERS_MAX


@pytest.mark.parametrize(("cpus", "count"), [(1, 0), (3, 0), (4, 2), (8, 6), (64, 8)])
def test_auto_goes_by_the_cpus_that_may_be_used(cpus: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    assert workers_count(None) == count


def test_a_number_is_a_number() -> None:
    assert [workers_count(number) for number in (0, 1, WORKERS_MAX)] == [0, 1, WORKERS_MAX]
