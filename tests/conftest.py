"""Runs `async def` tests under trio, one fresh run each."""

import functools
import inspect
import logging
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from modes import l2_folder, mode

# on a loaded machine examples are made slowly, which is no fault of the tests
settings.register_profile("patient", suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "unshrunk",
    settings.get_profile("patient"),
    phases=[each for each in Phase if each not in (Phase.shrink, Phase.explain)],
)
settings.load_profile("patient")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    arguments: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters}
    trio.run(functools.partial(test, **arguments))
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which seeds the long form of the model ran."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    kept = (seeds for report in reports for name, seeds in report.user_properties if name == "seeds")
    ran = sorted({seed for seeds in kept for seed in seeds})
    if ran:
        terminalreporter.write_line(f"{len(ran)} seeds of the model ran, {ran[0]} to {ran[-1]}")


@pytest.fixture(autouse=True)
def log_level_as_before() -> Iterator[None]:
    """A command that a test runs in this process may set the level of all logs: the next test must not inherit it."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture(autouse=True)
def second_tier_is_empty() -> None:
    """Stores of two tests may have the same ids: what one left in the second tier is not the other's."""
    if mode().caches == "l2":
        shutil.rmtree(l2_folder(), ignore_errors=True)
