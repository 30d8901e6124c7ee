"""What the supervisor makes of the end of a process. That it starts and stops them: tests/system/test_workers.py."""

import socket
import time

import pytest

from couchestord.io.sharedpage import NOBODY, SharedPage
from couchestord.processes import orders
from couchestord.processes.supervisor import _CALM_S, _STORE, Supervisor, _Child


@pytest.fixture
def page() -> SharedPage:
    return SharedPage()


@pytest.fixture
def supervisor(page: SharedPage) -> Supervisor:
    made = Supervisor([[], []], page, lambda _: None)
    made._wake.close()
    made._waked.close()
    made._was_ready = True
    return made


def child(index: int, *, ran_s: float = 1.0) -> tuple[_Child, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return _Child(1 << 22, index, ours, 3, time.monotonic() - ran_s), theirs


def end(supervisor: Supervisor, index: int, code: int = 1, *, ran_s: float = 1.0) -> None:
    it, theirs = child(index, ran_s=ran_s)
    with theirs:
        supervisor._on_end(it, code)


def test_pause_before_a_process_is_started_again_grows_to_a_bound(supervisor: Supervisor) -> None:
    pauses = []
    for _ in range(8):
        end(supervisor, 1)
        pauses.append(supervisor._due[1].pause_s)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    end(supervisor, 1, ran_s=_CALM_S + 1)
    assert supervisor._due[1].pause_s == 0
    assert supervisor._due[0].pause_s == 0, "of another process nothing is known"


def test_word_of_a_worker_that_ended_keeps_nothing(supervisor: Supervisor, page: SharedPage) -> None:
    page.see(3, 0)
    end(supervisor, 0)
    assert page.seen_by_all() == NOBODY


def test_workers_are_not_replaced_by_what_does_not_run(supervisor: Supervisor) -> None:
    supervisor._replacing = [0, 1]
    end(supervisor, 0)
    assert supervisor._replacing == []


def test_store_that_never_began_ends_the_daemon_with_its_code(supervisor: Supervisor) -> None:
    supervisor._was_ready = False
    worker, theirs = child(0)
    supervisor._children[worker.pid] = worker
    with theirs, worker.control:
        end(supervisor, _STORE, 4)
        assert supervisor._stopping
        assert supervisor._code == 4
        order = orders.receive(theirs)
        assert order is not None
        assert order.word == orders.STOP


def test_store_that_was_killed_is_started_again(supervisor: Supervisor) -> None:
    end(supervisor, _STORE, -9)
    assert not supervisor._stopping
    assert supervisor._due[_STORE].pause_s == 0.1
