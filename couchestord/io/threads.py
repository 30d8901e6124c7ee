"""A disk's own few threads, with a deadline on every call.

Theory of operation. A call goes to the threads through one deque and comes back through another. Each thread waits at a
lock of its own, and a call wakes one, the last that went idle: `queue.SimpleQueue` wakes a second one each time, which
finds nothing, and each thread that wakes takes the interpreter's lock from the others. The thread that finds the second
deque unannounced asks trio's loop to run `deliver` (one write to the loop's wake-up socket), the others
only append: under load one wake-up serves a whole batch. `deliver` clears the announcement before it empties the
deque, so a result appended while it runs is either seen by it or announced again. A call that belongs to a joint, with
calls on other disks, is appended and announced by the last of them, for all.

A deadline counts from when a thread takes a call: how long the call waited for one says how much was asked of the disk,
not how the disk is. So deadlines cost next to nothing per call: each thread notes since when it is at a call, the one
that is for longest is the next to miss its deadline, and a single system task sleeps until then. It ends when it finds
nothing under way and is started again by the next call. A disk that hangs keeps all who wait for a thread no longer
than its deadline: the threads hang too, and the first of them to be late is late for all. One that answers each call
just in time would keep them for long: so it is late, too, when calls wait for a deadline in which few are begun.

A thread that hangs in the kernel cannot be stopped. When a call misses its deadline the whole crew of threads is given
up: every call under way ends with DiskTimeout, what still waits in the queue is never begun, what a hung thread brings
home later is dropped.
"""

import math
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar, TypeVarTuple

import trio

from couchestord.errors import DiskError, DiskFailed, DiskTimeout
from couchestord.io.joint import Joint

STOOD_STILL_S: Final = 1.0
"""Who looks so late whether another one was in time stood still itself, with the whole process perhaps: a machine that
is moved to another host, say. Then a deadline begins anew, once.
"""

BEGUN_MIN: Final = 2
"""So many calls a thread begins within a deadline, on average, while others wait; of a disk that is well, far more."""

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class Call:
    """One function call on its way through the threads: for the task that made it, or for a joint."""

    __slots__ = ("arguments", "ended_before", "error", "function", "joint", "made_s", "result", "task")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], joint: Joint | None) -> None:
        self.function = function
        self.arguments = arguments
        self.joint = joint
        self.task = trio.lowlevel.current_task()
        self.made_s = trio.current_time()
        self.ended_before = 0
        """Calls of the same crew."""
        self.result: Any = None
        self.error: BaseException | None = None

    def outcome(self) -> Any:
        """Once it has ended: what the function returned, or raises what it raised."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                del self  # the traceback holds this frame: no cycle
        return self.result


class _Crew:
    """The threads of one generation, and what lies between them and the loop. Given up as a whole."""

    def __init__(self, name: str, threads_count: int, on_leave: Callable[[], None]) -> None:
        self.on_leave = on_leave
        self.token = trio.lowlevel.current_trio_token()
        self._waiting: deque[Call | None] = deque()
        self._idle: deque[threading.Lock] = deque()
        """Locks of threads that wait for a call."""
        self.done: deque[Call] = deque()
        self.under_way: dict[Call, None] = {}
        """In the order in which they were made."""
        self._ended_count = 0
        self.announced = False
        self.watch: trio.CancelScope | None = None
        self.ended = False
        self.threads_count = threads_count
        self._now = trio.lowlevel.current_clock().current_time
        self._at_it_since = [math.inf] * threads_count
        """By thread: when it took the call that it is at."""
        for index in range(threads_count):
            threading.Thread(target=self._stay, args=(index,), name=f"{name}-{index}", daemon=True).start()

    def _stay(self, index: int) -> None:
        try:
            self._work(index)
        finally:
            self.on_leave()

    def make(self, call: Call) -> None:
        """On the loop: a call is under way from now on."""
        call.ended_before = self._ended_count
        self.under_way[call] = None
        self.put(call)

    def put(self, call: Call | None) -> None:
        """A call for some thread; None: one of them leaves."""
        self._waiting.append(call)
        with suppress(IndexError):
            self._idle.pop().release()

    def _next(self, bell: threading.Lock) -> Call | None:
        """In a thread, with its own lock, which it holds: waits for a call."""
        while True:
            try:
                return self._waiting.popleft()
            except IndexError:
                self._idle.append(bell)
            if self._waiting:
                # it came before this thread was seen to be idle, or has woken it already
                with suppress(ValueError):
                    self._idle.remove(bell)
                    continue
            bell.acquire()

    def _work(self, index: int) -> None:
        bell = threading.Lock()
        bell.acquire()
        while (call := self._next(bell)) is not None:
            if self.ended:
                return
            self._at_it_since[index] = self._now()
            try:
                call.result = call.function(*call.arguments)
            except BaseException as error:
                call.error = error
            self._at_it_since[index] = math.inf
            self.done.append(call)
            joint = call.joint
            del call  # an idle thread must not keep buffers alive
            try:
                if joint is not None:
                    if joint.is_last_back(self.deliver):
                        self.token.run_sync_soon(joint.take_up_all)
                    del joint
                elif not self.announced:
                    self.announced = True
                    self.token.run_sync_soon(self.deliver)
            except trio.RunFinishedError:
                return

    def deliver(self) -> None:
        """On the loop: wake the tasks whose calls are done."""
        self.announced = False
        done = self.done
        while done:
            call = done.popleft()
            if call in self.under_way:
                del self.under_way[call]
                self._ended_count += 1
                if call.joint is not None:
                    call.joint.end()
                else:
                    trio.lowlevel.reschedule(call.task)

    def oldest_begun(self) -> float:
        """When the call was begun that a thread is at for longest; now, if no thread is at one."""
        return min(self._now(), *self._at_it_since)

    def next_look(self, deadline_s: float) -> float:
        """When the disk may be late at the earliest. Something is under way."""
        waits_s = next(iter(self.under_way)).made_s + deadline_s
        now_s = self._now()
        # one that has waited for so long already was looked at
        return min(waits_s if now_s < waits_s else now_s + deadline_s / BEGUN_MIN, self.oldest_begun() + deadline_s)

    def late_because(self, deadline_s: float) -> str:
        """Why the disk is late, empty when it is not."""
        now_s = self._now()
        if now_s - self.oldest_begun() >= deadline_s:
            return f"no answer within {deadline_s:g} s"
        for oldest in self.under_way:
            waited_s = now_s - oldest.made_s
            begun_count = self._ended_count - oldest.ended_before + self.threads_count
            if waited_s >= deadline_s and begun_count < BEGUN_MIN * self.threads_count * waited_s / deadline_s:
                return f"calls wait, and each takes more than {deadline_s / BEGUN_MIN:g} s"
            break
        return ""

    def end(self, error: type[DiskError], message: str) -> None:
        """On the loop: no call is begun any more, those under way end with `error`; idle threads leave."""
        self.ended = True
        if self.watch is not None:
            self.watch.cancel()
        under_way, self.under_way = self.under_way, {}
        for call in under_way:
            call.error = error(message)
            if call.joint is not None:
                call.joint.give_up()
            else:
                trio.lowlevel.reschedule(call.task)
        for _ in range(self.threads_count):
            self.put(None)


def _refuse_abort(_raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


class DiskThreads:
    """A few daemon threads for the blocking calls of one disk. Called from one trio loop; started by the first call.

    The queue has no bound of its own: each caller waits for its call, so callers bound it; `depth` counts. Not for
    a clock with autojump, which takes the wait for a thread for idleness.
    """

    def __init__(self, name: str, threads_count: int, deadline_s: float) -> None:
        assert threads_count > 0
        assert deadline_s > 0
        self._name = name
        self._threads_count = threads_count
        self._deadline_s = deadline_s
        self._crew: _Crew | None = None
        self._failure: str | None = None
        self._lock = threading.Lock()
        self._alive = 0
        self._last: Callable[[], object] | None = None

    @property
    def depth(self) -> int:
        """Calls waiting for a thread or in one."""
        return len(self._crew.under_way) if self._crew is not None else 0

    @property
    def failure(self) -> str | None:
        """Why every call fails now; None while the threads are well."""
        return self._failure

    async def run(self, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Call `function` in a thread; its result or exception is that of the call.

        Raises DiskTimeout when the deadline, counted from when a thread took it, passes for this call or for one that
        is under way beside it, or calls wait for so long and few are begun: the function may still be running and may
        still take effect. Raises DiskFailed from then on. Cancellation before the call is delivered at once; later it
        waits for the end of the call, as above, and comes at the next checkpoint, so the caller always learns how a
        write ended.
        """
        if self._failure is not None:
            raise DiskFailed(self._failure)
        await trio.lowlevel.checkpoint_if_cancelled()
        call = self._begin(function, arguments, None)
        await trio.lowlevel.wait_task_rescheduled(_refuse_abort)
        try:
            result: Result = call.outcome()
        finally:
            del call  # the traceback of what is raised holds this frame: no cycle
        return result

    def begin(self, joint: Joint, function: Callable[[*Arguments], object], *arguments: *Arguments) -> Call:
        """As `run`, without waiting: `joint` is over once the call has ended, and `Call.outcome` says how.

        Raises DiskFailed at once.
        """
        if self._failure is not None:
            raise DiskFailed(self._failure)
        joint.begin()
        return self._begin(function, arguments, joint)

    def _begin(self, function: Callable[..., Any], arguments: tuple[Any, ...], joint: Joint | None) -> Call:
        crew = self._crew
        if crew is None or crew.token is not trio.lowlevel.current_trio_token():
            crew = self._crew = self._hire()
        call = Call(function, arguments, joint)
        crew.make(call)
        if crew.watch is None:
            crew.watch = trio.CancelScope()
            trio.lowlevel.spawn_system_task(self._watch, crew, crew.watch)
        return call

    async def _watch(self, crew: _Crew, until_ended: trio.CancelScope) -> None:
        with until_ended:
            while crew.under_way:
                due_s = crew.next_look(self._deadline_s)
                await trio.sleep_until(due_s)
                if trio.current_time() - due_s > STOOD_STILL_S:
                    await trio.sleep(self._deadline_s)
                if reason := crew.late_because(self._deadline_s):
                    crew.deliver()  # what has come home is not to be lost with the rest
                    self._failure = f"{self._name}: {reason}"
                    crew.end(DiskTimeout, self._failure)
        crew.watch = None

    def _hire(self) -> _Crew:
        with self._lock:
            self._alive += self._threads_count
        return _Crew(self._name, self._threads_count, self._leave)

    def _leave(self) -> None:
        with self._lock:
            self._alive -= 1
            last = self._last if self._alive == 0 else None
        if last is not None:
            last()

    def close(self, last: Callable[[], object] | None = None) -> None:
        """Let the threads go. Calls under way end with DiskFailed, no call may follow. Does not wait.

        `last` runs once no thread, abandoned ones included, is at work any more: never, if one hangs for good.
        """
        self._failure = f"{self._name}: closed"
        with self._lock:
            self._last = last
            gone = self._alive == 0
        if self._crew is not None:
            self._crew.end(DiskFailed, self._failure)
        self._crew = None
        if gone and last is not None:
            last()
