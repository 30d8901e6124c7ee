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
_END_S: Final = 30.0
"""So long it may publish what was written, once it was told to end."""


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
            # it ends when its standard input does, which this process holds: however this one ends
            process = await trio.lowlevel.open_process(list(line), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            code = await _until_ended(process)
            _log.warning("the mount has ended; it is started again", code=code)
        except OSError as error:
            _log.error("the mount cannot be started", reason=str(error))
        await trio.sleep(_PAUSE_S)


async def _until_ended(process: trio.Process) -> int:
    """Its exit code; cancelled, it is told to end, and killed when it does not."""
    assert process.stdin is not None
    try:
        return await process.wait()
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            with trio.move_on_after(_END_S):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
