"""How a mount begins. What it shows: tests/system/test_mount.py and those beside it."""

import signal
import subprocess
import sys
from pathlib import Path

import trio
from daemons import environment
from mounted import needs_mounts

from couchestord.io.sharedpage import SharedPage
from couchestord.metrics import Metrics
from couchestord.replica.door import serve_door
from couchestord.replica.host import Host


@needs_mounts
async def test_one_that_waits_for_a_store_ends_when_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    host = Host(SharedPage(), Metrics())
    line = [sys.executable, "-m", "couchestord", "mount", str(tmp_path / "mnt"), "--data", str(tmp_path)]
    async with serve_door(tmp_path, host):
        process = await trio.lowlevel.open_process(line, env=environment(), stdin=subprocess.DEVNULL)
        try:
            with trio.fail_after(60):
                while not host._readers:
                    await trio.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0
        finally:
            process.kill()
            await process.wait()
