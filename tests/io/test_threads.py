import random
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
import trio.testing

from couchestord.errors import DiskError, DiskTimeout
from couchestord.io.threads import Call, DiskThreads

CALLS_COUNT = 3000


async def run(threads: DiskThreads, work: Callable[[], int] = int) -> int:
    return await threads.run(work)


@pytest.fixture
def _hasty() -> Iterator[None]:
    """Threads take the interpreter from each other as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_hasty")
@pytest.mark.parametrize("threads_count", [1, 2, 4])
async def test_no_call_waits_while_a_thread_is_idle(threads_count: int) -> None:
    """Calls come one by one and many at once, just when threads find nothing to do."""
    rng = random.Random(threads_count)
    threads = DiskThreads("disk", threads_count, 30.0)
    answers: list[int] = []

    def work(number: int) -> int:
        if number % 7 == 0:
            time.sleep(0)
        return number

    async def call(number: int) -> None:
        answers.append(await threads.run(work, number))

    made = 0
    with trio.fail_after(60):
        while made < CALLS_COUNT:
            async with trio.open_nursery() as nursery:
                for _ in range(rng.choice((1, 1, 2, threads_count, 9))):
                    nursery.start_soon(call, made)
                    made += 1
                    if rng.random() < 0.3:
                        await trio.lowlevel.checkpoint()
    assert sorted(answers) == list(range(made))
    assert threads.depth == 0
    threads.close()


async def test_a_call_that_comes_just_when_a_thread_finds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever puts it finds no thread idle, and the thread is about to wait."""
    threads, held = DiskThreads("disk", 1, 30.0), list[Call | None]()
    await run(threads)
    crew = threads._crew
    assert crew is not None
    put = crew.put

    class Waiting(deque[Call | None]):
        def popleft(self) -> Call | None:
            try:
                return super().popleft()
            except IndexError:
                while held:
                    put(held.pop())
                raise

    while not crew._idle:
        await trio.sleep(0.001)
    monkeypatch.setattr(crew, "_waiting", Waiting())
    monkeypatch.setattr(crew, "put", held.append)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, threads)
            await trio.testing.wait_all_tasks_blocked()
            assert held
            crew._idle.pop().release()
    monkeypatch.undo()
    threads.close()


class Held:
    """Calls that end when they are told to."""

    def __init__(self, threads: DiskThreads) -> None:
        self.threads = threads
        self.begun: list[int] = []
        self.ended: dict[int, int | DiskError] = {}
        self._may_end: list[threading.Event] = []

    async def call(self, number: int) -> None:
        def work() -> int:
            self.begun.append(number)
            assert self._may_end[number].wait(60)
            return number

        try:
            self.ended[number] = await self.threads.run(work)
        except DiskError as error:
            self.ended[number] = error

    async def start(self, nursery: trio.Nursery, count: int, at_once: int) -> None:
        """`at_once`: so many of them are begun."""
        self._may_end = [threading.Event() for _ in range(count)]
        for number in range(count):
            nursery.start_soon(self.call, number)
            await trio.testing.wait_all_tasks_blocked()
        await self.until(lambda: len(self.begun) == at_once)

    async def end(self, number: int) -> None:
        """The next one is begun then."""
        begun = len(self.begun)
        self._may_end[number].set()
        await self.until(lambda: number in self.ended and len(self.begun) == min(begun + 1, len(self._may_end)))

    def end_all(self) -> None:
        for each in self._may_end:
            each.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """The clock stands still, so this asks again and again."""
        for _ in range(20_000):
            if condition():
                return
            await trio.lowlevel.checkpoint()
            time.sleep(0.001)
        raise AssertionError


def run_by_hand(main: Callable[[trio.testing.MockClock], Awaitable[None]]) -> None:
    """With a clock that only `main` turns: how fast the machine is does not matter."""
    clock = trio.testing.MockClock()
    trio.run(main, clock, clock=clock)


def test_however_much_is_asked_of_a_disk_that_answers_it_is_not_late() -> None:
    """What counts is how long a thread is at a call, not how long the call waited for one."""

    async def main(clock: trio.testing.MockClock) -> None:
        threads = DiskThreads("disk", 2, 5.0)
        held = Held(threads)
        async with trio.open_nursery() as nursery:
            await held.start(nursery, 12, at_once=2)
            for number in range(0, 12, 2):
                clock.jump(2.0)
                await trio.testing.wait_all_tasks_blocked()
                await held.end(number)
                await held.end(number + 1)
        assert held.ended == {number: number for number in range(12)}
        assert threads.failure is None
        threads.close()

    run_by_hand(main)


def test_a_disk_that_answers_each_call_just_in_time_is_late() -> None:
    """Else it would keep waiting whoever needs it."""

    async def main(clock: trio.testing.MockClock) -> None:
        threads = DiskThreads("disk", 2, 5.0)
        held = Held(threads)
        async with trio.open_nursery() as nursery:
            await held.start(nursery, 12, at_once=2)
            clock.jump(3.0)
            await trio.testing.wait_all_tasks_blocked()
            for number in (0, 1):
                await held.end(number)
            clock.jump(2.5)
            try:
                await held.until(lambda: threads.failure is not None)
            finally:
                held.end_all()
        assert threads.failure == "disk: calls wait, and each takes more than 2.5 s"
        assert {number for number, end in held.ended.items() if end == number} == {0, 1}
        assert held.begun == [0, 1, 2, 3], "what waits is not begun"
        threads.close()

    run_by_hand(main)


def test_one_call_that_hangs_is_late_for_all() -> None:
    async def main(clock: trio.testing.MockClock) -> None:
        threads = DiskThreads("disk", 2, 5.0)
        held = Held(threads)
        async with trio.open_nursery() as nursery:
            await held.start(nursery, 8, at_once=2)
            for number in (1, 2, 3, 4):
                clock.jump(1.0)
                await trio.testing.wait_all_tasks_blocked()
                await held.end(number)
            assert sorted(held.ended) == [1, 2, 3, 4]
            clock.jump(0.99)
            await trio.testing.wait_all_tasks_blocked()
            assert threads.failure is None
            clock.jump(0.02)
            await held.until(lambda: len(held.ended) == 8)
        assert threads.failure == "disk: no answer within 5 s"
        assert {number for number, end in held.ended.items() if isinstance(end, DiskTimeout)} == {0, 5, 6, 7}
        held.end_all()
        threads.close()

    run_by_hand(main)


def test_who_stood_still_says_of_no_disk_that_it_was_late() -> None:
    """All threads stood still with it. But one that goes on to hang is late then."""

    async def main(clock: trio.testing.MockClock) -> None:
        threads = DiskThreads("disk", 2, 5.0)
        held = Held(threads)
        async with trio.open_nursery() as nursery:
            await held.start(nursery, 4, at_once=2)
            clock.jump(60.0)
            await trio.testing.wait_all_tasks_blocked()
            assert threads.failure is None
            for number in (0, 1, 2):
                await held.end(number)
            clock.jump(5.0)
            await held.until(lambda: len(held.ended) == 4)
        assert isinstance(held.ended.pop(3), DiskTimeout)
        assert held.ended == {number: number for number in range(3)}
        held.end_all()
        threads.close()

    run_by_hand(main)


async def test_as_many_calls_at_once_as_there_are_threads() -> None:
    threads = DiskThreads("disk", 3, 30.0)
    meeting = threading.Barrier(3, timeout=20)
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(run, threads, meeting.wait)
    left = trio.Event()
    token = trio.lowlevel.current_trio_token()
    threads.close(lambda: token.run_sync_soon(left.set))
    with trio.fail_after(20):
        await left.wait()
