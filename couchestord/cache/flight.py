"""One load for all who wait for it."""

import trio


class Flight:
    """A chunk that somebody is loading, for all who want it. `data` is None still when it landed: loading it failed
    (`failed`), or was given up.
    """

    __slots__ = ("_landed", "_waiting", "data", "failed")

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.failed = False
        self._landed = False
        self._waiting: trio.Event | None = None

    def land(self) -> None:
        """It is over; who waits goes on."""
        self._landed = True
        if self._waiting is not None:
            self._waiting.set()

    async def wait(self) -> None:
        """Until it landed."""
        if self._landed:
            return
        if self._waiting is None:
            self._waiting = trio.Event()
        await self._waiting.wait()
