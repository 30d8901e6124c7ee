"""SQLite on a mount, in WAL mode and with a rollback journal, while its writer, the mount and the daemon are killed.

Every transaction that it has said is done is there, whole, and no page is damaged. Seen to fail with the bugs of
`planted_bugs.py` that name a test of this file.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from mounted import mounted_box, needs_mounts
from sqlite_writer import connect, last_turn, rows_after
from telling import Telling

pytestmark = needs_mounts


def check(path: Path, journal_mode: str, acknowledged: int) -> int:
    """What a database holds after all its writers are gone: so many transactions at least. How many it holds."""
    connection = connect(path, journal_mode)
    try:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        turn = last_turn(connection)
        assert turn in (acknowledged, acknowledged + 1), f"{journal_mode}: {acknowledged} were acknowledged"
        assert dict(connection.execute("select id, data from row")) == rows_after(turn)
    finally:
        connection.close()
    return turn


class Databases:
    """One in each mode, with a writer for each while it is asked for."""

    def __init__(self, folder: Path, modes: Sequence[str]) -> None:
        self._paths = {mode: folder / f"{mode}.db" for mode in modes}
        self._turns = dict.fromkeys(modes, 0)

    @contextmanager
    def written(self, count: int) -> Iterator[Callable[[int], None]]:
        """After `count` transactions of each the body begins, and is given what waits for more of them. At its end the
        writers are killed.
        """
        with ExitStack() as stack:
            writers = {
                mode: stack.enter_context(Telling("sqlite_writer.py", path, mode)) for mode, path in self._paths.items()
            }

            def wait_for(count: int) -> None:
                for writer in writers.values():
                    writer.wait_for(count)

            wait_for(count)
            yield wait_for
            for writer in writers.values():
                writer.kill()
        for mode, writer in writers.items():
            self._turns[mode] = int(writer.said[-1])

    def check(self) -> None:
        for mode, path in self._paths.items():
            self._turns[mode] = check(path, mode, self._turns[mode])


def kill_under_sqlite(folder: Path, modes: Sequence[str], times: int, seed: int, workers: int = 0) -> None:
    rng = random.Random(seed)
    with mounted_box(folder, workers) as (node, mount):
        databases = Databases(mount.folder, modes)
        for killed in ("writers", "mount", "store", "both") * times:
            with databases.written(rng.randrange(3, 12)) as wait_for:
                if killed in ("mount", "both"):
                    mount.kill()
                if killed in ("store", "both"):
                    node.kill()
                    node.start()
                if killed == "store":
                    wait_for(1)  # what was under way
            if killed in ("mount", "both"):
                mount.start()
            databases.check()
        node.wait_healthy()


def test_acknowledged_transactions_outlive_kills(tmp_path: Path) -> None:
    kill_under_sqlite(tmp_path, ["wal", "delete"], 1, 1)


@pytest.mark.soak
@pytest.mark.parametrize(("seed", "workers"), [(2, 0), (3, 2)])
def test_acknowledged_transactions_outlive_many_kills(tmp_path: Path, seed: int, workers: int) -> None:
    kill_under_sqlite(tmp_path, ["wal", "delete", "truncate", "persist"], 25, seed, workers)
