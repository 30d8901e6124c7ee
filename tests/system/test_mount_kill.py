"""Programs write through a mount while it is killed, or the daemon, or both, or the power of the disks goes.

What they were told is synced, closed, renamed or removed is; no file is half of two states. Seen to fail with the bugs
of `planted_bugs.py` that name a test of this file.
"""

import errno
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from daemon import QUICK, Node, wait_until
from file_writer import HELD, Told, Versions, told
from loops import Kind, LoopStore, need
from mounted import Mounted, mounted_box, needs_mounts, objects
from telling import Telling

pytestmark = needs_mounts

WRITERS_COUNT = 3
DISK_BYTES = 160 << 20


class Writers:
    """Processes that write, each in a folder of its own, and what they were promised."""

    def __init__(self, top: Path, seed: int) -> None:
        self._top = top
        self._rng = random.Random(seed)
        self._versions = {f"w{number}": Versions() for number in range(WRITERS_COUNT)}
        self._running: list[Telling] = []
        self._heard: list[int] = []
        for name in self._versions:
            (top / name).mkdir()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The body begins when all of them have done something. At its end they are killed."""
        with ExitStack() as stack:
            self._running = [
                stack.enter_context(Telling("file_writer.py", self._top / name, self._rng.random(), versions.last))
                for name, versions in self._versions.items()
            ]
            self._heard = [0] * WRITERS_COUNT
            self.wait_for(self._rng.randrange(2, 10))
            wait_until(self._are_all_busy, 60, lambda: [writer.said[-1] for writer in self._running])
            yield

    def _are_all_busy(self) -> bool:
        return all(told(writer.said[-1]).word == "begin" for writer in self._running)

    def wait_for(self, count: int) -> None:
        """Until each has done so much more."""
        for writer in self._running:
            writer.wait_for(count, lambda line: told(line).word == "done")

    def close_inputs(self) -> None:
        """They end once they have done what they have begun."""
        for writer in self._running:
            writer.close_input()

    def finish(self) -> None:
        """Waits for a good end of all."""
        for writer in self._running:
            writer.finish()

    def hear(self, *, is_promise: bool = True) -> list[Told]:
        """What they have said since the last time; whether what is done is promised to last. What failed."""
        found = []
        for number, (versions, writer) in enumerate(zip(self._versions.values(), self._running, strict=True)):
            lines = writer.said[self._heard[number] :]
            self._heard[number] += len(lines)
            versions.hear(lines, is_promise=is_promise)
            found += [each for each in map(told, lines) if each.word == "failed"]
        return found

    def check(self, node: Node) -> None:
        """What the mount shows is what S3 shows, and what they were promised."""
        for name, versions in self._versions.items():
            shown = {path.name: path.read_bytes() for path in (self._top / name).iterdir()}
            assert objects(node.s3(), f"{name}/") == shown
            versions.check(shown)


def kill_under_writers(folder: Path, times: int, seed: int, workers: int = 0) -> None:
    with mounted_box(folder, workers) as (node, mount):
        writers = Writers(mount.folder, seed)
        for gone in ("mount", "store", "both", "nobody") * times:
            with writers.running():
                if gone in ("mount", "both"):
                    mount.kill()
                if gone in ("store", "both"):
                    node.kill()
                    # what is under way is the last that they do: nothing hides it
                    writers.close_inputs()
                    node.start()
                if gone == "nobody":
                    node.restart()
                    writers.wait_for(5)
                if gone in ("store", "nobody"):
                    writers.finish()
            failed = writers.hear()
            if gone == "nobody":
                assert failed == []
            if gone == "store":
                # what makes or removes a name is not begun again; what writes goes on
                assert len(failed) <= WRITERS_COUNT
                assert {each.error for each in failed} <= {errno.EIO}
                assert HELD not in {each.name for each in failed}
            if gone in ("mount", "both"):
                mount.start()
            writers.check(node)
        node.wait_healthy()


def test_what_was_synced_outlives_kills(tmp_path: Path) -> None:
    kill_under_writers(tmp_path, 1, 1)


@pytest.mark.soak
@pytest.mark.parametrize(("seed", "workers"), [(2, 0), (3, 2)])
def test_what_was_synced_outlives_many_kills(tmp_path: Path, seed: int, workers: int) -> None:
    kill_under_writers(tmp_path, 25, seed, workers)


def cut_under_writers(folder: Path, kind: Kind, times: int, seed: int) -> None:
    """As `test_powercut.py`, through a mount."""
    need(f"mkfs.{kind}", "losetup", "mount")
    rng = random.Random(seed)
    settings = {
        **QUICK,
        "COUCHESTORD_STORE__SEGMENT_SIZE": "16 MiB",
        "COUCHESTORD_JOURNAL__FILE_SIZE": "4 MiB",
        "COUCHESTORD_STORE__SNAPSHOT_SIZE_MIN": "1 MiB",
    }
    with (
        LoopStore(folder, kind, DISK_BYTES) as loops,
        Node(loops.data, settings=settings, log=folder / "log").start() as node,
    ):
        node.s3().create_bucket(Bucket="box")
        with Mounted(node.data, folder / "box") as mount:
            writers = Writers(mount.folder, seed)
            for _ in range(times):
                with writers.running():
                    order = rng.sample([*loops.disks, loops.root], 7)
                    if rng.random() < 0.4:
                        # two disks may go and the store works on
                        order.remove(loops.root)
                        for disk in order[:2]:
                            disk.cut()
                        writers.wait_for(5)
                        order = [*order[2:], loops.root]
                    writers.hear()
                    for disk in order:
                        disk.cut()
                    time.sleep(rng.random() / 2)
                    mount.kill()
                    node.kill()
                writers.hear(is_promise=False)
                loops.cycle()
                node.start()
                mount.start()
                writers.check(node)
            node.wait_healthy()


def test_what_was_synced_outlives_power_cuts(tmp_path: Path) -> None:
    cut_under_writers(tmp_path, "ext4", 1, 4)


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "seed"), [("ext4", 5), ("xfs", 6)])
def test_what_was_synced_outlives_many_power_cuts(tmp_path: Path, kind: Kind, seed: int) -> None:
    cut_under_writers(tmp_path, kind, 25, seed)
