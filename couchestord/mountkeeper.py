"""Keeps a mount of this daemon's store there: a process of its own, which is started again when it ends."""

import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from couchestord import logs

_log = logs.get(__name__)
_PAUSE_S: Final = 1.0
"""Before it is started again."""


@asynccontextmanager
async def kept_mounted(line: Sequence[str]) -> AsyncIterator[None]:
    """Runs a command line that mounts, again and again, while the body runs; then it is told to end, which unmounts.
    Without one nothing is run.
    """
    async with trio.open_nursery() as nursery:
        if line:
            nursery.start_soon(_keep, line)
        yield
        nursery.cancel_scope.cancel()


async def _keep(line: Sequence[str]) -> None:
    while True:
        try:
            ended = await trio.run_process(list(line), stdout=subprocess.DEVNULL, check=False)
            _log.warning("the mount has ended; it is started again", code=ended.returncode)
        except OSError as error:
            _log.error("the mount cannot be started", reason=str(error))
        await trio.sleep(_PAUSE_S)
