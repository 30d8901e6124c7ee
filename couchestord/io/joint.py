"""Calls on several disks that one task waits for: it is woken once, when the last of them has ended."""

from collections.abc import Callable

import trio


class Joint:
    """Calls that are begun together. Belongs to one task, but for `is_last_back`, which threads call.

    Threads that bring a call home announce it to the loop only when no other is expected; what they lay down silently
    before is taken up then. A call that is given up is not expected any more.
    """

    __slots__ = ("_back", "_expected", "_left", "_task")

    def __init__(self) -> None:
        self._left = 0
        self._expected = 0
        self._back: list[Callable[[], None]] = []
        self._task: trio.lowlevel.Task | None = None

    def begin(self) -> None:
        """One more call is under way."""
        self._left += 1
        self._expected += 1

    def end(self) -> None:
        """A call has ended, one way or the other. Once for each that was begun."""
        self._left -= 1
        if not self._left and self._task is not None:
            trio.lowlevel.reschedule(self._task)

    def is_last_back(self, take_up: Callable[[], None]) -> bool:
        """In a thread: a call is done, and `take_up`, run on the loop, ends it. True when `take_up_all` is to run."""
        # two threads may both find themselves to be the last: the second finds nothing to take up
        self._back.append(take_up)
        return len(self._back) >= self._expected

    def take_up_all(self) -> None:
        """On the loop: end what is done."""
        for take_up in self._back:
            take_up()

    def give_up(self) -> None:
        """A call ends, and what its thread may bring home yet is of no interest."""
        self._expected -= 1
        self.end()
        if len(self._back) >= self._expected:
            self.take_up_all()

    async def wait(self) -> None:
        """Until all calls have ended. Cannot be cancelled: each ends, at the latest when its disk is given up."""
        if not self._left:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(_refuse_abort)


def _refuse_abort(_raise_cancel: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED
