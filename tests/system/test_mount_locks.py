"""flock and fcntl's locks among the processes of one mount."""

import time
from collections.abc import Iterator

import pytest
from daemon import Node, wait_until
from mounted import Mounted, mounted_box, needs_mounts
from telling import Telling

pytestmark = needs_mounts


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Mounted]]:
    with mounted_box(tmp_path_factory.mktemp("locks")) as both:
        yield both


def test_flock_is_shared_or_of_one(mounted: tuple[Node, Mounted]) -> None:
    path = mounted[1].folder / "flock"
    with Telling("locker.py", path) as one, Telling("locker.py", path) as other:
        assert [one.ask("flock sh"), other.ask("flock sh")] == ["done", "done"]
        assert other.ask("flock ex") == "refused"
        assert one.ask("flock un") == "done"
        assert other.ask("flock ex") == "done"
        assert one.ask("flock sh") == "refused"
        other.kill()
        assert one.ask("flock ex") == "done"


def test_ranges_are_locked_on_their_own(mounted: tuple[Node, Mounted]) -> None:
    path = mounted[1].folder / "ranges"
    with Telling("locker.py", path) as one, Telling("locker.py", path) as other:
        assert [one.ask("range ex 0 10"), other.ask("range ex 10 10")] == ["done", "done"]
        assert [one.ask("range ex 15 10"), other.ask("range sh 9 1")] == ["refused", "refused"]
        assert [one.ask("holder 10 1"), one.ask("holder 20 0")] == [str(other.process.pid), "0"]
        assert other.ask("range un 10 5") == "done"
        assert [one.ask("range ex 10 5"), one.ask("range ex 15 1")] == ["done", "refused"]
        other.kill()
        assert one.ask("range ex 0 0") == "done"


def test_who_waits_for_a_range_gets_it(mounted: tuple[Node, Mounted]) -> None:
    path = mounted[1].folder / "waits"
    with Telling("locker.py", path) as one, Telling("locker.py", path) as other:
        assert one.ask("range ex 0 100") == "done"
        other.tell("wait 50 1")
        time.sleep(0.2)
        assert not other.said
        one.finish()
        wait_until(lambda: other.said == ["done"], 10, lambda: other.said)


def test_locks_outlast_the_daemon(mounted: tuple[Node, Mounted]) -> None:
    node, mount = mounted
    path = mount.folder / "outlasts"
    with Telling("locker.py", path) as one, Telling("locker.py", path) as other:
        assert [one.ask("flock ex"), one.ask("range ex 0 10")] == ["done", "done"]
        node.kill()
        node.start()
        assert [other.ask("flock ex"), other.ask("range ex 5 1")] == ["refused", "refused"]
        one.finish()
        assert [other.ask("flock ex"), other.ask("range ex 5 1")] == ["done", "done"]
