"""PostgreSQL on a mount, while it, the mount and the daemon are killed.

Every transaction that it has said is done is there, whole, and no page is damaged. Seen to fail when an fsync
publishes nothing.
"""

import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import QUICK, Node, with_workers
from mounted import Mounted, needs_mounts
from postgres import Inserter, Postgres, installed

pytestmark = [
    needs_mounts,
    pytest.mark.soak,
    pytest.mark.skipif(installed() is None, reason="needs PostgreSQL, as make soak installs it"),
]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One where any user may go, which those of other tests are not."""
    with tempfile.TemporaryDirectory(prefix="couchestord-postgres-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def check(server: Postgres, last: int) -> int:
    """What it holds after a kill; which number is the last now."""
    (count, highest) = map(int, server.ask("select count(*), coalesce(max(n), 0) from number"))
    assert count == highest
    assert highest in (last, last + 1), f"{last} were acknowledged"
    accounts, tellers, branches, history = server.ask(
        "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers),"
        " (select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history)"
    )
    assert accounts == tellers == branches == history
    return highest


@pytest.mark.parametrize(("seed", "workers"), [(1, 0), (2, 2)])
def test_acknowledged_transactions_outlive_kills(tmp_path: Path, open_folder: Path, seed: int, workers: int) -> None:
    rng, last = random.Random(seed), 0
    with Node(tmp_path / "data", settings=with_workers(QUICK, workers)).start() as node:
        node.s3().create_bucket(Bucket="box")
        with Mounted(node.data, open_folder / "box", options=["--allow-other"]) as mount:
            mount.folder.chmod(0o777)
            server = Postgres(open_folder, mount.folder / "data")
            server.initialize()
            server.start()
            try:
                server.run("psql", "-Xqc", "create table number (n int primary key)")
                server.run("pgbench", "--initialize", "--quiet", "--scale=2")
                for killed in ("server", "mount", "store", "both") * 4:
                    inserter = Inserter(server, last)
                    load = server.begin(
                        "pgbench", "-n", "-c2", "-T600", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                    )
                    inserter.wait_for(rng.randrange(5, 100))
                    if killed in ("mount", "both"):
                        mount.kill()
                    if killed in ("store", "both"):
                        node.kill()
                        node.start()
                    if killed == "store":
                        inserter.wait_for(5)  # nobody has noticed
                    server.kill()
                    last = inserter.end()
                    load.kill()
                    load.wait()
                    if killed in ("mount", "both"):
                        mount.start()
                    server.start()
                    last = check(server, last)
                server.check_pages()
            finally:
                server.kill()
        node.wait_healthy()
