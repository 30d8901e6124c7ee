"""Starts the store's process, the workers, and what keeps a mount; starts again what ends, and stops all in good order.

Nothing of trio, SQLite or threads is in the supervisor: it forks, and waits for signals and words of its children. It
holds the listening sockets, so that a client who waits for a worker that ends is served by the next one.
"""

import ctypes
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Literal

from couchestord import logs
from couchestord.io.sharedpage import READERS_MAX, SharedPage
from couchestord.processes import orders

_log = logs.get(__name__)
_PAUSE_S_MIN: Final = 0.1
_PAUSE_S_MAX: Final = 5.0
_CALM_S: Final = 60.0
"""A process that ran for so long is started again at once."""
_LEAVE_S: Final = orders.LEAVE_S + 60.0
"""A worker that was replaced and has not ended by then is killed."""
_LOOK_S: Final = 5.0
_STILL_LOOKS_MAX: Final = 6
"""A worker whose loop has not turned between so many looks is killed: what it may see is not freed, and who comes to it
waits. Looks are counted, not seconds: when all processes are frozen together, nobody hangs.
"""
_PR_SET_PDEATHSIG: Final = 1
_STORE: Final = -1
_MOUNT: Final = -2
WORKERS_MAX: Final = READERS_MAX // 2 - 1
"""While workers are replaced there are twice as many for a moment."""

Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Role:
    """What a process that was forked is to do. `number` is that of a worker, as a reader of the page."""

    kind: Literal["store", "worker", "mount"]
    control: socket.socket
    listeners: Sequence[socket.socket] = ()
    number: int = 0


@dataclass(slots=True)
class _Child:
    pid: int
    index: int
    """Which listeners it has; `_STORE` for the store's process, `_MOUNT` for what keeps a mount."""
    control: socket.socket
    number: int
    started_s: float
    is_ready: bool = False
    leaves_by_s: float | None = None
    """It was told to leave, to be killed when it has not by then."""
    is_killed: bool = False
    """Which takes as long as a disk hangs that it waits for."""
    beats: int = 0
    still_looks: int = 0
    """Looks since its loop was seen to turn."""

    @property
    def name(self) -> str:
        return {_STORE: "store", _MOUNT: "mount"}.get(self.index, f"worker {self.index}")

    @property
    def is_worker(self) -> bool:
        return self.index >= 0


@dataclass(slots=True)
class _Due:
    """When to start a process again, and how long that was put off."""

    at_s: float = 0.0
    pause_s: float = 0.0


class Supervisor:
    """One for the life of the daemon."""

    def __init__(
        self,
        listeners: Sequence[Sequence[socket.socket]],
        page: SharedPage,
        notify: Notify,
        *,
        has_mount: bool = False,
    ) -> None:
        """`listeners` of each worker. `notify` tells the service manager. With `has_mount` there is one to be kept."""
        self._listeners = listeners
        self._page = page
        self._notify = notify
        self._children: dict[int, _Child] = {}
        self._due: dict[int, _Due] = {index: _Due() for index in (_STORE, *range(len(listeners)))}
        self._has_mount = has_mount
        self._replacing: list[int] = []
        self._replacing_since = 0.0
        self._look_at_s = time.monotonic() + _LOOK_S
        self._stopping = False
        self._was_ready = False
        self._code = 0
        self._wake, self._waked = socket.socketpair()
        # before the first fork: a child must not look for a library
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl

    def run(self) -> Role | int:
        """In a child that was forked: its role, to be taken up when this has returned. In the supervisor: the exit code
        of the daemon, at its end.
        """
        for end in (self._wake, self._waked):
            end.setblocking(False)
        signal.set_wakeup_fd(self._waked.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, _wake_only)
        while True:
            role = self._start_due()
            if role is not None:
                return role
            if self._stopping and not self._children:
                return self._code
            self._wait()

    # -- starting ----------------------------------------------------------------------------------------------------

    def _start_due(self) -> Role | None:
        """Starts what is due; in a child, what it is to do."""
        now = time.monotonic()
        if self._stopping:
            return None
        for index, due in self._due.items():
            if due.at_s <= now and not self._is_staffed(index):
                role = self._start(index)
                if role is not None:
                    return role
        return self._replace_next()

    def _is_staffed(self, index: int) -> bool:
        """A process is there that is to stay."""
        return any(each.index == index and each.leaves_by_s is None for each in self._children.values())

    def _replace_next(self) -> Role | None:
        """Goes on with replacing the workers one by one: the next is ready before the one before is told to leave."""
        while self._replacing:
            index = self._replacing[0]
            there = [child for child in self._children.values() if child.index == index]
            newest = max(there, key=lambda child: child.started_s, default=None)
            if newest is None:
                return None  # it is started again as it is
            if newest.started_s < self._replacing_since:
                # one that leaves since the last time is waited for: there are never more than two
                return self._start(index) if len(there) == 1 and newest.leaves_by_s is None else None
            if not newest.is_ready:
                return None
            for old in there:
                if old is not newest and old.leaves_by_s is None:
                    self._tell(old, orders.LEAVE)
                    old.leaves_by_s = time.monotonic() + _LEAVE_S
            self._replacing.pop(0)
        return None

    def _start(self, index: int) -> Role | None:
        """Forks one process, later when the system does not let it now. In the child, its role."""
        used = {child.number for child in self._children.values() if child.is_worker}
        number = next(number for number in range(READERS_MAX) if number not in used)
        parent = os.getpid()
        with ExitStack() as made:
            try:
                ours, theirs = map(made.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                pid = os.fork()
            except OSError as error:
                _log.error("a process cannot be started", reason=str(error))
                self._put_off(index)
                return None
            made.pop_all()
        if not pid:
            ours.close()
            self._become_child(parent)
            if index == _STORE:
                return Role("store", theirs)
            if index == _MOUNT:
                return Role("mount", theirs)
            return Role("worker", theirs, self._listeners[index], number)
        theirs.close()
        ours.setblocking(False)
        child = self._children[pid] = _Child(pid, index, ours, number, time.monotonic())
        if index == _STORE:
            for each in self._children.values():
                self._link(each)
        else:
            self._link(child)
        return None

    def _become_child(self, parent: int) -> None:
        """When the supervisor is killed, so are its children: a daemon that is killed is gone as a whole."""
        self._prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        # orders come from the supervisor, in order, whoever else signals the whole group
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._wake.close()
        self._waked.close()
        for child in self._children.values():
            child.control.close()

    def _link(self, worker: _Child) -> None:
        """Gives a worker and the store's process the ends of new sockets."""
        store = next((child for child in self._children.values() if child.index == _STORE), None)
        if store is None or not worker.is_worker:
            return
        with ExitStack() as made:
            try:
                requests = [made.enter_context(end) for end in socket.socketpair()]
                bodies = [made.enter_context(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
            except OSError as error:
                _log.error("a worker gets no link, and asks again", pid=worker.pid, reason=str(error))
                return
            self._tell(store, orders.LINK, (requests[0], bodies[0]))
            self._tell(worker, orders.LINK, (requests[1], bodies[1]))

    def _tell(self, child: _Child, word: bytes, sockets: tuple[socket.socket, ...] = ()) -> None:
        try:
            orders.send(child.control, word, sockets)
        except OSError as error:
            _log.warning("a process could not be told", pid=child.pid, word=word.decode(), reason=str(error))

    # -- waiting -----------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Until something happens, and takes note of it."""
        now = time.monotonic()
        times = [self._look_at_s, *(due for child in self._children.values() if (due := _due_s(child)) is not None)]
        times += [due.at_s for index, due in self._due.items() if not self._stopping and not self._is_staffed(index)]
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        for child in self._children.values():
            poller.register(child.control, select.POLLIN)
        poller.poll(max(0.0, min(times) - now) * 1000 + 1)
        for number in self._signals():
            self._on_signal(number)
        for child in list(self._children.values()):
            self._listen(child)
        self._reap()
        for child in self._children.values():
            due_s = _due_s(child)
            if due_s is not None and due_s <= time.monotonic():
                self._kill(child)
        if self._look_at_s <= time.monotonic():
            self._look_at_s = time.monotonic() + _LOOK_S
            self._look()

    def _look(self) -> None:
        """Whether the loops of all workers turn."""
        for child in self._children.values():
            if not child.is_worker or child.is_killed:
                continue
            beats = self._page.beats(child.number)
            child.still_looks = child.still_looks + 1 if beats == child.beats else 0
            child.beats = beats
            if child.still_looks >= _STILL_LOOKS_MAX:
                _log.error("a worker hangs and is killed", process=child.name, pid=child.pid)
                self._kill(child)

    def _kill(self, child: _Child) -> None:
        child.is_killed = True
        os.kill(child.pid, signal.SIGKILL)

    def _signals(self) -> bytes:
        try:
            return self._wake.recv(4096)
        except BlockingIOError:
            return b""

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGHUP:
            _log.info("workers are replaced one by one")
            self._replacing = list(range(len(self._listeners)))
            self._replacing_since = time.monotonic()
        elif number in (signal.SIGTERM, signal.SIGINT):
            _log.info("signal was received", signal=signal.Signals(number).name)
            self._stop(again=self._stopping)

    def _stop(self, *, again: bool = False) -> None:
        if self._was_ready and not self._stopping:
            self._notify("STOPPING=1")
        self._stopping = True
        self._replacing = []
        mount = [child for child in self._children.values() if child.index == _MOUNT]
        # what was written there is published before the store closes
        for child in self._children.values() if again or not mount else mount:
            self._tell(child, orders.STOP)
            if again and child.index != _STORE:
                self._kill(child)

    def _listen(self, child: _Child) -> None:
        while True:
            try:
                word = orders.receive(child.control)
            except BlockingIOError:
                return
            if word is None:
                return
            if word.word == orders.READY:
                child.is_ready = True
                if child.index == _STORE and not self._was_ready:
                    self._was_ready = True
                    if self._has_mount:
                        self._due[_MOUNT] = _Due()
                    self._notify("READY=1")
            elif word.word == orders.LINK:
                self._link(child)

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            child = self._children.pop(pid, None)
            if child is not None:
                self._listen(child)
                self._on_end(child, os.waitstatus_to_exitcode(status))

    def _on_end(self, child: _Child, code: int) -> None:
        child.control.close()
        if child.is_worker:
            self._page.clear(child.number)
        if child.index == _MOUNT and self._stopping:
            self._stop()
        if child.index == _STORE and (self._stopping or not self._was_ready):
            # it ended as it was told to, or never began and has said why
            self._code = code if code >= 0 else 1
            if not self._stopping:
                self._stop()
            return
        if self._stopping or child.leaves_by_s is not None:
            return
        _log.error("a process has ended; it is started again", process=child.name, pid=child.pid, code=code)
        if self._replacing:
            _log.error("workers are not replaced any further")
            self._replacing.clear()
        self._put_off(child.index, is_calm=time.monotonic() - child.started_s >= _CALM_S)

    def _put_off(self, index: int, *, is_calm: bool = False) -> None:
        """A process is started again later each time, at once when it had run for long."""
        due = self._due[index]
        due.pause_s = 0.0 if is_calm else min(_PAUSE_S_MAX, max(_PAUSE_S_MIN, 2 * due.pause_s))
        due.at_s = time.monotonic() + due.pause_s


def _due_s(child: _Child) -> float | None:
    """When it is to be killed."""
    return None if child.is_killed else child.leaves_by_s


def _wake_only(_number: int, _frame: object) -> None:
    """The wake-up descriptor says which signal it was."""
