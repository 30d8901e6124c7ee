"""Another program opens the catalog under the running store, reads, and ends: SQLite's locks tell it that it is not
alone, whatever the store did with the files before.

Seen to fail with: a main file that is opened and closed for a checkpoint, a checkpoint ahead, a snapshot, a repair, or
at the start; one that is no longer kept open when another was put in its place.
"""

import errno
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from small_store import SMALL, catalog_of, core_of, finish, make_store, put_all, read

from couchestord.io.catalog.catalog import OPEN_SUFFIXES
from couchestord.io.journal import Journal
from couchestord.store import maintenance
from couchestord.store.core import Core
from couchestord.store.door import ObjectStore

OTHER_PROGRAM = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
print(*connection.execute("select count(*) from entry").fetchone())
connection.close()
"""


async def nothing(core: Core) -> None:
    pass


async def checkpoint(core: Core) -> None:
    assert await core.jobs.checkpointer.checkpoint()


async def snapshot(core: Core) -> None:
    assert await core.jobs.snapshotter.take()


async def reopen(core: Core) -> None:
    core.writer.fail(OSError(errno.EIO, "as the test wants it"))
    await finish(core.jobs.repairer)


async def make_anew(core: Core) -> None:
    core.catalog.path.unlink()
    await finish(core.jobs.repairer)
    assert core.jobs.repairer.repaired_count


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("job", [nothing, checkpoint, snapshot, reopen, make_anew])
async def test_another_program_leaves_the_wal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: Callable[[Core], Awaitable[None]], ahead: bool
) -> None:
    if ahead:
        monkeypatch.setattr(maintenance, "WAL_BYTES_AHEAD_MIN", 1)
    path = catalog_of(await make_store(tmp_path))
    with monkeypatch.context() as patch:
        # the start of a store whose log has lost its end: it checkpoints
        patch.setattr(Journal, "is_unbroken", lambda *_: not ahead)
        store_opens = ObjectStore.open(tmp_path, SMALL)
        store = await store_opens.__aenter__()
    try:
        bodies: dict[bytes, bytes] = {}
        for number in range(2):  # a second snapshot compares itself with the first
            bodies[b"%d" % number] = b"body"
            await put_all(store, bodies)
            await job(core_of(store))
            await store.put("box", b"after", b"all that")
            files = [Path(f"{path}{suffix}") for suffix in OPEN_SUFFIXES]
            before = [file.stat().st_ino for file in files]
            ran = subprocess.run(
                [sys.executable, "-c", OTHER_PROGRAM, str(path)], capture_output=True, text=True, check=True
            )
            assert int(ran.stdout) == number + 2
            assert [file.stat().st_ino for file in files if file.exists()] == before
            assert core_of(store).catalog.wal_bytes() > 0
            core_of(store).catalog.check_in_place()
        assert await read(store, b"after") == b"all that"
        assert await read(store, b"0") == b"body"
    finally:
        await store_opens.__aexit__(None, None, None)
