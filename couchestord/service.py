"""Background work: one kind of job, stepped by a runner.

A service does a bounded piece of work a step and says how it went. The runner decides when the next step comes. Tests
step services by hand, so what a service does never depends on who calls it.
"""

from enum import Enum
from typing import Protocol


class Progress(Enum):
    """What a step of a service found."""

    BUSY = "busy"
    """Did something and there is more: step again at once."""
    THROTTLED = "throttled"
    """There is more, clients come first: step again soon."""
    IDLE = "idle"
    """Nothing to do now: step again after the service's interval, or when woken."""
    DONE = "done"
    """Nothing to do, ever again."""


class Service(Protocol):
    """A background job. Steps are idempotent: one that was cut off is simply done again."""

    @property
    def name(self) -> str: ...

    @property
    def interval_s(self) -> float:
        """Seconds between steps while idle."""
        ...

    async def work(self) -> Progress:
        """One bounded step."""
        ...
