"""How fast background work may go."""

from collections.abc import Callable

import trio


class Throttle:
    """A token bucket on trio's clock, and clients first: `busy` says that they need the disks.

    Work is let through while the bucket is not in debt, so a step may be larger than the bucket.
    """

    def __init__(self, bytes_per_s: float, busy: Callable[[], bool] = lambda: False) -> None:
        assert bytes_per_s > 0
        self._bytes_per_s = bytes_per_s
        self._busy = busy
        self._balance_bytes = bytes_per_s
        self._at: float | None = None

    def is_open(self, *, urgent: bool = False) -> bool:
        """May a step begin now? One that is `urgent` does not wait for clients."""
        now = trio.current_time()
        if self._at is not None:
            earned = (now - self._at) * self._bytes_per_s
            self._balance_bytes = min(self._bytes_per_s, self._balance_bytes + earned)
        self._at = now
        return self._balance_bytes > 0 and (urgent or not self._busy())

    def spend(self, length: int) -> None:
        """So many bytes were read or written."""
        self._balance_bytes -= length
