"""What the supervisor makes of the end of a process. That it starts and stops them: tests/system/test_workers.py."""

import errno
import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from couchestord.io.sharedpage import NOBODY, SharedPage
from couchestord.processes import orders
from couchestord.processes.supervisor import _CALM_S, _STILL_LOOKS_MAX, _STORE, Supervisor, _Child

WORKER = 1
NUMBER = 3


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


def child(index: int, *, ran_s: float = 1.0, pid: int = 1 << 22) -> tuple[_Child, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return _Child(pid, index, ours, NUMBER, time.monotonic() - ran_s), theirs


class Children:
    """Processes that a supervisor believes in."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.sockets: list[socket.socket] = []

    def add(self, index: int, *, ran_s: float = 1.0, is_ready: bool = True) -> tuple[_Child, socket.socket]:
        made, theirs = child(index, ran_s=ran_s, pid=(1 << 22) + len(self.sockets))
        made.is_ready = is_ready
        self._supervisor._children[made.pid] = made
        self.sockets += [made.control, theirs]
        return made, theirs


@pytest.fixture
def children(supervisor: Supervisor) -> Iterator[Children]:
    made = Children(supervisor)
    yield made
    for each in made.sockets:
        each.close()


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []

    def kill(pid: int, number: int) -> None:
        assert number == signal.SIGKILL
        found.append(pid)

    monkeypatch.setattr(os, "kill", kill)
    return found


def words(theirs: socket.socket) -> list[bytes]:
    """What a process was told."""
    found: list[bytes] = []
    while True:
        try:
            order = orders.receive(theirs)
        except BlockingIOError:
            return found
        assert order is not None
        found.append(order.word)
        for each in order.sockets:
            each.close()


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


@pytest.mark.parametrize("call", ["fork", "socketpair"])
def test_process_that_cannot_be_started_is_put_off(
    supervisor: Supervisor, children: Children, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """With no memory or no descriptor left the others go on."""
    for index in (_STORE, 0):
        children.add(index)

    def refuse(*_: object) -> None:
        raise OSError(errno.EAGAIN, "not now")

    monkeypatch.setattr(os if call == "fork" else socket, call, refuse)
    count = len(os.listdir("/proc/self/fd"))
    for pause_s in (0.1, 0.2):
        supervisor._due[WORKER].at_s = 0
        assert supervisor._start_due() is None
        assert supervisor._due[WORKER].pause_s == pause_s
    assert len(os.listdir("/proc/self/fd")) == count
    assert len(supervisor._children) == 2


def test_worker_that_can_be_given_no_link_asks_again(
    supervisor: Supervisor, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, theirs = children.add(WORKER)
    children.add(_STORE)
    with monkeypatch.context() as patched:
        patched.setattr(socket, "socketpair", lambda *_: (_ for _ in ()).throw(OSError(errno.EMFILE, "none is left")))
        for each in list(supervisor._children.values()):
            supervisor._link(each)
    assert words(theirs) == []
    orders.send(theirs, orders.LINK)
    for each in list(supervisor._children.values()):
        supervisor._listen(each)
    assert words(theirs) == [orders.LINK]


def test_worker_whose_loop_stands_still_is_killed_and_no_other(
    supervisor: Supervisor, page: SharedPage, children: Children, killed: list[int]
) -> None:
    children.add(_STORE)
    worker, _ = children.add(WORKER)
    for _ in range(3 * _STILL_LOOKS_MAX):
        page.beat(NUMBER)
        supervisor._look()
    for _ in range(_STILL_LOOKS_MAX - 1):
        supervisor._look()
    assert killed == []
    supervisor._look()
    assert killed == [worker.pid]
    supervisor._look()
    assert killed == [worker.pid], "once is enough"
    supervisor._on_end(supervisor._children.pop(worker.pid), -9)
    assert supervisor._due[WORKER].pause_s == 0.1


def test_worker_that_does_not_leave_is_killed_once(
    supervisor: Supervisor, children: Children, killed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_reap", lambda: None)
    worker, _ = children.add(WORKER)
    worker.leaves_by_s = time.monotonic() - 1
    supervisor._wake, supervisor._waked = socket.socketpair()
    supervisor._wake.setblocking(False)
    with supervisor._wake, supervisor._waked:
        for _ in range(3):
            supervisor._wait()
            supervisor._look_at_s = time.monotonic()
    assert killed == [worker.pid]


def test_worker_that_asks_is_given_a_link(supervisor: Supervisor, children: Children) -> None:
    worker, theirs = children.add(WORKER)
    orders.send(theirs, orders.LINK)
    supervisor._listen(worker)
    assert words(theirs) == [], "without a store's process there is nothing to be linked with"
    _, stores = children.add(_STORE)
    orders.send(theirs, orders.LINK)
    supervisor._listen(worker)
    assert words(theirs) == words(stores) == [orders.LINK]


def test_workers_are_replaced_one_after_the_other_and_the_long_ones_hold_up_nobody(
    supervisor: Supervisor, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    def start(index: int) -> None:
        started.append(index)
        children.add(index, ran_s=0, is_ready=False)

    monkeypatch.setattr(supervisor, "_start", start)
    old = [children.add(index, ran_s=100) for index in (0, 1)]
    supervisor._on_signal(signal.SIGHUP)
    supervisor._replace_next()
    supervisor._replace_next()
    assert started == [0], "the next is not ready yet"
    assert words(old[0][1]) == []
    newest(supervisor, 0).is_ready = True
    supervisor._replace_next()
    assert words(old[0][1]) == [orders.LEAVE]
    assert started == [0, 1], "whatever the first has under way still"
    newest(supervisor, 1).is_ready = True
    supervisor._replace_next()
    assert words(old[1][1]) == [orders.LEAVE]
    # of the same place there are never more than two
    supervisor._on_signal(signal.SIGHUP)
    supervisor._replacing_since = time.monotonic() + 1
    supervisor._replace_next()
    assert started == [0, 1]
    del supervisor._children[old[0][0].pid]
    supervisor._replace_next()
    assert started == [0, 1, 0]


def test_place_of_a_worker_that_leaves_is_filled_again_when_the_next_one_ends(
    supervisor: Supervisor, children: Children
) -> None:
    old, _ = children.add(WORKER, ran_s=100)
    assert supervisor._is_staffed(WORKER)
    old.leaves_by_s = time.monotonic() + 100
    assert not supervisor._is_staffed(WORKER)


def newest(supervisor: Supervisor, index: int) -> _Child:
    found = [each for each in supervisor._children.values() if each.index == index]
    return max(found, key=lambda each: each.started_s)
