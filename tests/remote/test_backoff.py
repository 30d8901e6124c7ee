"""Pauses after failures: they double, end, and say why."""

import pytest

from couchestord.errors import RemoteUnavailable
from couchestord.remote.backoff import Backoff

GONE = RemoteUnavailable("it is gone")


def test_it_is_due_at_once_and_after_a_success() -> None:
    backoff = Backoff("it failed", 1.0, 8.0)
    assert backoff.is_due(0.0)
    backoff.failed(GONE, 100.0)
    assert not backoff.is_due(100.9)
    backoff.succeeded()
    backoff.failed(GONE, 200.0)
    assert backoff.is_due(201.0), "the pauses begin anew"


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff("it failed", 1.0, 6.0)
    now_s = 1000.0
    for pause_s in (1.0, 2.0, 4.0, 6.0, 6.0):
        backoff.failed(GONE, now_s)
        assert not backoff.is_due(now_s + pause_s - 0.5)
        now_s += pause_s
        assert backoff.is_due(now_s)
    for _ in range(5000):
        backoff.failed(GONE, now_s)
    assert backoff.is_due(now_s + 6.0)


def test_a_reason_is_kept_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    backoff = Backoff("it failed", 1.0, 8.0)
    assert backoff.trouble == ""
    backoff.failed(GONE, 0.0)
    backoff.failed(GONE, 1.0)
    assert backoff.trouble == "it is gone"
    assert len(caplog.records) == 1
    backoff.failed(OSError(), 3.0)
    backoff.failed(OSError(), 7.0)
    assert backoff.trouble == "OSError"
    assert len(caplog.records) == 2
    backoff.succeeded()
    assert backoff.trouble == ""
    backoff.failed(OSError(), 15.0)
    assert len(caplog.records) == 3, "it came back"
