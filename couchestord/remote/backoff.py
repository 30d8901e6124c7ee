"""When to try again what failed. Told the time, asks no clock."""

from couchestord import logs

log = logs.get(__name__)
_DOUBLINGS_MAX = 30


class Backoff:
    """A pause after each failure, twice as long as the one before it, until one attempt succeeds.

    Why the last attempt failed is kept for people, and logged when it is not what the one before it failed for.
    """

    def __init__(self, failure: str, pause_s: float, pause_s_max: float) -> None:
        """`failure`: what the log says. `pause_s`: the first one."""
        self._failure = failure
        self._pause_s = pause_s
        self._pause_s_max = pause_s_max
        self._failures = 0
        self._retry_at = 0.0
        self.trouble = ""
        """Why the last attempt failed; empty when it did not."""

    def is_due(self, now_s: float) -> bool:
        """Whether it may be tried, again."""
        return now_s >= self._retry_at

    def failed(self, error: Exception, now_s: float) -> None:
        """An attempt failed just now."""
        pause_s = min(self._pause_s * 2.0 ** min(self._failures, _DOUBLINGS_MAX), self._pause_s_max)
        self._failures += 1
        self._retry_at = now_s + pause_s
        trouble = str(error) or type(error).__name__
        if trouble != self.trouble:
            log.warning(self._failure, reason=trouble, retry_s=pause_s)
        self.trouble = trouble

    def succeeded(self) -> None:
        """An attempt did what it should."""
        self._failures = 0
        self.trouble = ""
