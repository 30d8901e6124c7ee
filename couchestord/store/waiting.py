"""Requests on their way through the writer."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import outcome as outcomes

from couchestord import logs
from couchestord.errors import InternalError
from couchestord.io.catalog.changes import Changes

log = logs.get(__name__)
GROUP_MUTATIONS_MAX = 256
GROUP_BYTES_MAX = 4 << 20
Answered = Callable[[outcomes.Outcome[Any]], object]
"""Is told, on the loop, what a request was answered. Raises nothing."""


@dataclass(slots=True)
class Waiting:
    """A request that waits for its group."""

    request: object
    size_bytes: int
    answered: Answered
    origin: object = None
    """Who asked, when it shows buckets itself."""
    result: outcomes.Outcome[Any] | None = None
    changes: Changes | None = None
    """What mounts show otherwise then."""

    def tell(self) -> None:
        """The result, once. Raises nothing, whatever who asked does with it."""
        try:
            self.answered(self.result or outcomes.Error(InternalError("no answer")))
        except Exception:
            log.exception("whoever asked could not be told; others are", request=type(self.request).__name__)
        # a refusal holds the frames it was raised in, and so the group with all bodies, and this: until the collector
        # came, which may be long
        self.request = self.result = None


def take_group(queue: deque[Waiting]) -> list[Waiting]:
    """Those at the head of a queue that may be committed together: so many at most, of so many bytes."""
    group: list[Waiting] = []
    size_bytes = 0
    while queue and len(group) < GROUP_MUTATIONS_MAX and size_bytes < GROUP_BYTES_MAX:
        waiting = queue.popleft()
        size_bytes += waiting.size_bytes
        group.append(waiting)
    return group
