"""Disks that are lost, written past, and come back: every pattern of one and two of six; and what three cost."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import pytest
from daemon import NO_DESTAGE, PREFERS_UNCACHED, QUICK, UNCACHED, Node, error_of, remove, wait_until, with_workers
from workload import BUCKET, FAILURES, Expected, fill, read

SIZES = (0, 1, 4096, 70_000, 131_072, 131_073, 600_000, 3_000_000)
PATTERNS = [*combinations(range(6), 1), *combinations(range(6), 2)]
assert len(PATTERNS) == 21


def away(node: Node, index: int) -> Path:
    return node.data.with_name(f"away-{index}")


def lose(node: Node, index: int) -> None:
    """The folder is moved away, as when a disk is pulled."""
    node.disks[index].rename(away(node, index))


def bring_back(node: Node, index: int) -> None:
    away(node, index).rename(node.disks[index])


def others(pattern: tuple[int, ...]) -> tuple[int, int]:
    """Two disks that are not in the pattern."""
    left = [index for index in range(6) if index not in pattern]
    return left[0], left[-1]


def not_used(node: Node) -> set[int]:
    reasons = node.page("healthz")[1]["reasons"]
    return {index for index in range(6) if any(reason.startswith(f"disk {index} is not used") for reason in reasons)}


def used(node: Node, indexes: tuple[int, ...]) -> bool:
    return not not_used(node).intersection(indexes)


def noticed(node: Node, indexes: tuple[int, ...]) -> bool:
    return not_used(node).issuperset(indexes)


@contextmanager
def store(
    folder: Path, *, destaged: bool, workers: int = 0, caches: Mapping[str, str] = PREFERS_UNCACHED
) -> Iterator[tuple[Node, Expected]]:
    """A store with small and large objects, in the journal still or on stripes."""
    expected = Expected()
    settings = with_workers({**(QUICK if destaged else NO_DESTAGE), **caches}, workers)
    with Node(folder / "data", settings=settings) as node:
        node.start().s3().create_bucket(Bucket=BUCKET)
        fill(expected, node.s3(), "before", SIZES)
        if destaged:
            node.wait_destaged()
        yield node, expected


def lose_and_return(node: Node, expected: Expected, pattern: tuple[int, ...], *, running: bool) -> None:
    """Lose the disks, write meanwhile, have them back, lose two others: byte-exact at every step."""
    name = "-".join(map(str, pattern)) + ("r" if running else "s")

    def change(indexes: tuple[int, ...], how: str) -> None:
        if not running:
            node.stop()
        for index in indexes:
            (lose if how == "lose" else bring_back)(node, index)
        if not running:
            node.start()
        holds = noticed if how == "lose" else used
        wait_until(lambda: holds(node, indexes), 60, node.status)

    def write(when: str) -> None:
        client = node.s3()
        fill(expected, client, f"{name}-{when}", SIZES)
        expected.put(client, "overwritten", f"{name} {when}".encode())
        expected.delete(client, f"{name}-{when}/2")
        if f"{name}-away/3" in expected.keys:
            expected.delete(client, f"{name}-away/3")

    change(pattern, "lose")
    expected.verify(node.s3())
    write("away")
    expected.verify(node.s3())
    change(pattern, "return")
    expected.verify(node.s3())
    node.wait_healthy()
    change(others(pattern), "lose")
    expected.verify(node.s3())
    write("others")
    expected.verify(node.s3())
    change(others(pattern), "return")
    node.wait_healthy()
    expected.verify(node.s3())


def holders(node: Node, key: str) -> tuple[int, int]:
    """Two of the disks that a small object lies on, in the journal: losing them leaves one copy."""
    (extent,) = node.info(BUCKET, key)["extents"]
    names = [replica["disk"] for replica in extent["replicas"]]
    first, second = sorted(node.disks.index(Path(name)) for name in names)[:2]
    return first, second


def test_lost_while_running(tmp_path: Path) -> None:
    with store(tmp_path, destaged=True) as (node, expected):
        for pattern in ((2,), (0, 5)):
            lose_and_return(node, expected, pattern, running=True)


def test_lost_at_the_start(tmp_path: Path) -> None:
    with store(tmp_path, destaged=True, workers=2) as (node, expected):
        lose_and_return(node, expected, (2, 3), running=False)


@pytest.mark.parametrize(("running", "workers"), [(True, 2), (False, 0)], ids=["running", "start"])
def test_lost_before_destage(tmp_path: Path, running: bool, workers: int) -> None:
    with store(tmp_path, destaged=False, workers=workers) as (node, expected):
        lose_and_return(node, expected, holders(node, "before/2"), running=running)


@pytest.mark.soak
@pytest.mark.parametrize("running", [True, False], ids=["running", "start"])
@pytest.mark.parametrize("destaged", [False, True], ids=["journal", "stripes"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_pattern(tmp_path: Path, pattern: tuple[int, ...], destaged: bool, running: bool) -> None:
    workers = 2 * (sum(pattern) % 2)
    with store(tmp_path, destaged=destaged, workers=workers) as (node, expected):
        lose_and_return(node, expected, pattern, running=running)


@pytest.mark.parametrize("running", [True, False], ids=["running", "start"])
def test_deleted_folders_leave_the_redundancy_that_is_possible(tmp_path: Path, running: bool) -> None:
    """Two disks are gone for good: what can be restored on four disks is, and a third loss costs what it must."""
    with store(tmp_path, destaged=True) as (node, expected):
        if not running:
            node.stop()
        for index in (1, 4):
            remove(node.disks[index])
        if not running:
            node.start()
        wait_until(lambda: noticed(node, (1, 4)), 60, node.status)
        expected.verify(node.s3())
        fill(expected, node.s3(), "after", SIZES)
        node.restart()
        expected.verify(node.s3())
        assert not node.disks[1].exists(), "a missing disk of a store is never made anew"


def test_three_lost(tmp_path: Path) -> None:
    """What is lost is refused with a clear error, what is not is served; nothing is forgotten when a disk returns."""
    with store(tmp_path, destaged=True, caches=UNCACHED) as (node, expected):
        for index in (0, 2, 4):
            lose(node, index)
        wait_until(lambda: noticed(node, (0, 2, 4)), 60, node.status)
        client = node.s3()
        # a worker hears of it a moment after the store's process, and reads what it has open until then
        wait_until(lambda: expected.read_all(client) >= 1, 60, node.status)
        # an object smaller than a shard may lie on a disk that is here
        assert expected.read_all(client) <= sum(1 for size in SIZES if size)
        with pytest.raises(FAILURES):  # refused, or cut short when what comes first lies on a disk that is here
            client.get_object(Bucket=BUCKET, Key="before/7")["Body"].read()
        assert read(client, BUCKET, "before/0") == b""
        assert read(client, BUCKET, "no-such-key") is None
        assert len(client.list_objects_v2(Bucket=BUCKET)["Contents"]) == len(SIZES)
        assert client.head_object(Bucket=BUCKET, Key="before/7")["ContentLength"] == SIZES[7]
        code, page = node.page("healthz")
        assert code == 503
        assert any("3 of 6 disks are missing" in reason for reason in page["reasons"])
        assert "nothing would be lost" not in str([disk["if_lost"] for disk in node.status()["disks"]])
        # three copies would still be possible, but the other three disks could be written elsewhere meanwhile
        assert any("writes are refused: 4 good disks are needed" in reason for reason in page["reasons"])
        refused = error_of(lambda: client.put_object(Bucket=BUCKET, Key="small", Body=b"new"))
        assert refused == (503, "ServiceUnavailable")
        bring_back(node, 2)
        wait_until(lambda: used(node, (2,)), 60, node.status)
        wait_until(lambda: not expected.read_all(client), 60, node.status)
        assert expected.put(client, "small", b"new")
        assert expected.delete(client, "before/3")
        assert read(client, BUCKET, "small") == b"new"
        expected.verify(node.s3())
        for index in (0, 4):
            bring_back(node, index)
        node.wait_healthy()
        expected.verify(node.s3())


def test_started_with_too_few_disks_writes_by_itself_when_enough_are_back(tmp_path: Path) -> None:
    """The end of the log lies on the disks that are missing. They come back one by one, without a restart."""
    with store(tmp_path, destaged=False) as (node, expected):
        (extent,) = node.info(BUCKET, "before/2")["extents"]
        gone = sorted(node.disks.index(Path(replica["disk"])) for replica in extent["replicas"])
        assert len(gone) == 3
        node.kill()
        gone = [*gone, next(index for index in range(6) if index not in gone)]
        for index in gone:
            lose(node, index)
        assert node.spawn(), node.said()[-4000:]
        pid, client = node.pid, node.s3(attempts=4)
        assert error_of(lambda: client.get_object(Bucket=BUCKET, Key="before/2"))[0] == 500
        assert read(client, BUCKET, "before/0") == b""
        for _ in range(2):
            refused = error_of(lambda: node.s3().put_object(Bucket=BUCKET, Key="new", Body=b"new"))
            assert refused == (503, "ServiceUnavailable")
            # the store is being opened again, for a moment, after the disk before came back
            wait_until(
                lambda: f"{len(gone)} of 6 disks were missing" in node.page("healthz")[1]["reasons"][0], 60, node.said
            )
            assert node.page("healthz")[0] == 503
            bring_back(node, gone.pop())
            wait_until(lambda: used(node, tuple(set(range(6)) - set(gone))), 60, node.said)
        wait_until(lambda: node.page("readyz")[0] == 200, 60, node.said)
        expected.verify(client)
        assert expected.put(client, "new", b"new")
        assert expected.delete(client, "before/3")
        for index in gone:
            bring_back(node, index)
        node.wait_healthy()
        expected.verify(client)
        assert node.pid == pid
        assert node.is_running()
        node.restart()
        expected.verify(node.s3())
