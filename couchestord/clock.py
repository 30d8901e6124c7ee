"""Wall time and randomness, injected, so that tests decide both."""

import secrets
import time
from typing import Final, Protocol

_REALTIME_COARSE: Final = 5  # of linux/time.h; `time` has no name for it


class Clock(Protocol):
    """Where wall time and random bytes come from. Durations are measured with trio's clock, never with this one."""

    def now_ns(self) -> int:
        """Nanoseconds since 1970, UTC, exact to the tick of the kernel (1 to 10 ms): earlier than what it stamps a file
        with from now on. May jump.
        """
        ...

    def random_bytes(self, count: int) -> bytes:
        """Unpredictable bytes, fit for secrets and identities."""
        ...


class SystemClock:
    """The machine's clock and the kernel's randomness."""

    def now_ns(self) -> int:
        # What the kernel stamps files with: a finer clock would make a file younger than what is written to it next,
        # and its ctime then not what stat has shown. And just before it: a write within the tick in which the file was
        # made changes its times then, which a kernel that keeps them hands over only if they changed.
        return time.clock_gettime_ns(_REALTIME_COARSE) - 1

    def random_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)
