import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing

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
