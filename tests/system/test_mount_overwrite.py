"""A file that is written over at random for long, on disks that are not much larger than it.

Seen to fail with the bugs of `planted_bugs.py` that name a test of this file.
"""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from daemon import QUICK, Node, wait_until
from loops import LoopStore, need
from mounted import Mounted, needs_mounts
from overwriter import WAYS
from telling import Telling
from workload import digest_of, read

pytestmark = needs_mounts

MIB = 1 << 20
TURN_BYTES = 8 * MIB
SETTINGS = {
    **QUICK,
    "COUCHESTORD_JOURNAL__DESTAGE_INTERVAL": "30 s",
    "COUCHESTORD_STORE__BACKGROUND_RATE": "64 MiB",
}
"""As in use: jobs must keep up with a writer."""


def worn(node: Node) -> tuple[int, int, int, int]:
    """Pieces of the one file, how many it may have, its bytes, and those of the contents that they are of."""
    with closing(sqlite3.connect(f"file:{node.data}/catalog.sqlite?mode=ro", uri=True)) as connection:
        found: tuple[int, int, int, int] | None = connection.execute(
            "select pieces, bound, live, held from worn"
        ).fetchone()
    return found or (1, 1024, 1, 1)


def is_settled(node: Node) -> bool:
    pieces, bound, live, held = worn(node)
    return pieces <= bound and held <= 2 * live


def overwrite(folder: Path, size: int, disk_bytes: int, turns_count: int, kill_each: int) -> None:
    """So many turns in each way; the daemon is killed in each so many of them."""
    need("mkfs.ext4", "losetup", "mount")
    with (
        LoopStore(folder, "ext4", disk_bytes, 256 * MIB) as loops,
        Node(loops.data, settings=SETTINGS, log=folder / "log").start() as node,
    ):
        node.s3().create_bucket(Bucket="box")
        with Mounted(node.data, folder / "box") as mount:
            path = mount.folder / "file"
            with Telling("overwriter.py", path, size, 1) as writer:
                for turn in range(turns_count * len(WAYS)):
                    way = f"{list(WAYS)[turn % len(WAYS)]} {TURN_BYTES}"
                    if turn % kill_each == kill_each - 1:
                        said = len(writer.said)
                        writer.tell(way)
                        time.sleep(0.2)
                        node.kill()
                        node.start()
                        wait_until(lambda said=said: len(writer.said) > said, 60, node.status)  # type: ignore[misc]
                    held = writer.ask(way)
                    pieces, bound, live, held_bytes = worn(node)
                    assert pieces <= 3 * bound, "too many pieces"
                    assert held_bytes <= 5 * live + 64 * MIB, "too much that nobody can read"
                wait_until(lambda: is_settled(node), 120, lambda: (worn(node), node.status()))
                assert digest_of(path.read_bytes()).hex() == held
                writer.finish()
            about = path.stat()
            assert digest_of(read(node.s3(), "box", "file") or b"").hex() == held
            node.restart()
            assert path.stat() == about
            assert digest_of(path.read_bytes()).hex() == held


def test_random_overwrites(tmp_path: Path) -> None:
    """Four times what the file has, which is more than there is room for."""
    overwrite(tmp_path, 32 * MIB, 40 * MIB, 4, 7)


@pytest.mark.soak
def test_random_overwrites_for_long(tmp_path: Path) -> None:
    """A quarter of a store of 1 GiB, five times over."""
    overwrite(tmp_path, 256 * MIB, 256 * MIB, 40, 30)
