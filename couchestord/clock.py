"""Wall time and randomness, injected, so that tests decide both."""

import secrets
import time
from typing import Protocol


class Clock(Protocol):
    """Where wall time and random bytes come from. Durations are measured with trio's clock, never with this one."""

    def now_ns(self) -> int:
        """Nanoseconds since 1970, UTC. May jump."""
        ...

    def random_bytes(self, count: int) -> bytes:
        """Unpredictable bytes, fit for secrets and identities."""
        ...


class SystemClock:
    """The machine's clock and the kernel's randomness."""

    def now_ns(self) -> int:
        return time.time_ns()

    def random_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)
