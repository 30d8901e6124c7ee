"""A daemon with workers: what one process acknowledged all others show, and one that ends takes none along."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from daemon import NO_DESTAGE, QUICK, Node, connect, error_of, is_alive, wait_until, with_workers

from couchestord.errors import Unavailable
from couchestord.frontends.admin.client import NoDaemon

WORKERS = 2
BUCKET = "box"
CLIENTS_COUNT = 8
"""With so many connections both workers have some, as good as surely."""


@contextmanager
def node_with_workers(folder: Path, base: Mapping[str, str] = QUICK) -> Iterator[Node]:
    with Node(folder / "data", settings=with_workers(base, WORKERS)) as node:
        node.start().s3().create_bucket(Bucket=BUCKET)
        yield node


def workers(node: Node) -> list[int]:
    found: list[int] = node.status()["workers"]
    return found


def store_process(node: Node) -> int:
    # the keeper of a mount is started last
    return min(set(node.children()) - set(workers(node)))


def all_serve(node: Node, *, but: list[int] | None = None) -> Callable[[], bool]:
    """Whether all workers serve, and none of them is one of `but`; not while nobody is there to tell."""

    def do_serve() -> bool:
        try:
            now = workers(node)
        except (NoDaemon, Unavailable):
            return False
        return len(now) == WORKERS and not set(now) & set(but or [])

    return do_serve


def in_threads(works: list[Callable[[], None]]) -> None:
    """Runs all of them side by side; raises what one of them raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_whatever_is_acknowledged_is_seen_through_every_worker(tmp_path: Path) -> None:
    """Each client writes its own key and reads those of all others, which must be as new as their writers were told."""
    with node_with_workers(tmp_path) as node:
        told = [0] * CLIENTS_COUNT
        missing: list[str] = []

        def work(number: int) -> None:
            client = connect(node.addresses["s3"], node.key)
            try:
                for turn in range(1, 26):
                    client.put_object(Bucket=BUCKET, Key=f"dir/{number}", Body=b"%d" % turn)
                    told[number] = turn
                    for other in range(CLIENTS_COUNT):
                        least = told[other]
                        if not least:
                            continue
                        found = int(client.get_object(Bucket=BUCKET, Key=f"dir/{other}")["Body"].read())
                        size = client.head_object(Bucket=BUCKET, Key=f"dir/{other}")["ContentLength"]
                        if found < least or size < len(str(least)):
                            missing.append(f"{other}: {found} after {least}")
                    known = [other for other in range(CLIENTS_COUNT) if told[other]]
                    listed = client.list_objects_v2(Bucket=BUCKET, Prefix="dir/").get("Contents", ())
                    names = {each["Key"] for each in listed}
                    missing.extend(f"{other} in the list" for other in known if f"dir/{other}" not in names)
            finally:
                client.close()

        in_threads([lambda number=number: work(number) for number in range(CLIENTS_COUNT)])  # type: ignore[misc]
        assert missing == []
        client = node.s3()
        for number in range(CLIENTS_COUNT):
            client.delete_object(Bucket=BUCKET, Key=f"dir/{number}")
        assert "Contents" not in client.list_objects_v2(Bucket=BUCKET)
        assert len(workers(node)) == WORKERS


def test_deleted_objects_buckets_and_keys_are_gone_for_every_worker(tmp_path: Path) -> None:
    with node_with_workers(tmp_path) as node:
        clients = [connect(node.addresses["s3"], node.key) for _ in range(CLIENTS_COUNT)]
        for turn, writer in enumerate(clients):
            writer.put_object(Bucket=BUCKET, Key="k", Body=b"%d" % turn)
            for reader in clients:
                assert reader.get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"%d" % turn
            writer.delete_object(Bucket=BUCKET, Key="k")
            for reader in clients:
                assert error_of(lambda reader=reader: reader.get_object(Bucket=BUCKET, Key="k")) == (404, "NoSuchKey")  # type: ignore[misc]
        clients[0].delete_bucket(Bucket=BUCKET)
        for reader in clients:
            assert error_of(lambda reader=reader: reader.list_objects_v2(Bucket=BUCKET)) == (404, "NoSuchBucket")  # type: ignore[misc]
        node.ask("key remove", access_key=node.key[0])
        for reader in clients:
            assert error_of(reader.list_buckets)[0] == 403
            reader.close()


class Traffic:
    """Clients that write, read back and read on, each with a connection of its own, until told to stop."""

    def __init__(self, node: Node, count: int = 6) -> None:
        self._node = node
        self.failures: Counter[str] = Counter()
        self.done_count = 0
        self.acknowledged: dict[str, bytes] = {}
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(count)]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, count: int) -> None:
        """Until so many more requests succeeded."""
        target = self.done_count + count
        wait_until(lambda: self.done_count >= target, 60, lambda: (self.done_count, self.failures))

    def _work(self, number: int) -> None:
        client = connect(self._node.addresses["s3"], self._node.key)
        turn = 0
        while not self._ending.is_set():
            turn += 1
            key, body = f"t/{number}/{turn % 20}", os.urandom(500 + turn % 7)
            try:
                client.put_object(Bucket=BUCKET, Key=key, Body=body)
                self.acknowledged[key] = body
                found = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
                assert found == body, "read after write"
                self.done_count += 2
            except AssertionError:
                self.failures["wrong"] += 1
            except Exception as error:
                self.acknowledged.pop(key, None)
                self.failures[type(error).__name__] += 1
                time.sleep(0.02)
        client.close()

    def verify(self) -> None:
        """What was acknowledged is there."""
        client = self._node.s3()
        for key, body in self.acknowledged.items():
            assert client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == body, key


def test_worker_that_is_killed_takes_none_of_the_others_along(tmp_path: Path) -> None:
    with node_with_workers(tmp_path) as node:
        wait_until(all_serve(node), 30, lambda: workers(node))
        with Traffic(node) as traffic:
            traffic.wait_for(50)
            before = workers(node)
            os.kill(before[0], signal.SIGKILL)
            traffic.wait_for(100)
            wait_until(all_serve(node, but=before[:1]), 30, lambda: workers(node))
            traffic.wait_for(50)
        assert before[1] in workers(node)
        # each client of the one that was killed may lose the request that was under way, and no more
        assert traffic.failures["wrong"] == 0
        assert sum(traffic.failures.values()) <= 6, traffic.failures
        traffic.verify()
        assert node.page("healthz")[1]["state"] == "healthy"


def test_store_process_that_is_killed_is_started_again_and_loses_nothing(tmp_path: Path) -> None:
    with node_with_workers(tmp_path) as node:
        wait_until(all_serve(node), 30, lambda: workers(node))
        with Traffic(node) as traffic:
            traffic.wait_for(50)
            before = store_process(node)
            os.kill(before, signal.SIGKILL)
            traffic.wait_for(100)
        assert traffic.failures["wrong"] == 0
        assert before not in node.children()
        wait_until(all_serve(node), 30, lambda: workers(node))
        traffic.verify()
        node.restart()
        traffic.verify()


def test_workers_are_replaced_one_by_one_without_a_request_lost(tmp_path: Path) -> None:
    with node_with_workers(tmp_path) as node:
        wait_until(all_serve(node), 30, lambda: workers(node))
        with Traffic(node) as traffic:
            traffic.wait_for(50)
            for _ in range(2):
                before = workers(node)
                os.kill(node.pid, signal.SIGHUP)
                wait_until(all_serve(node, but=before), 60, lambda: workers(node))
                traffic.wait_for(50)
        assert traffic.failures == Counter()
        traffic.verify()


def test_daemon_that_is_killed_is_gone_as_a_whole_and_starts_again(tmp_path: Path) -> None:
    with node_with_workers(tmp_path, NO_DESTAGE) as node:
        node.s3().put_object(Bucket=BUCKET, Key="k", Body=b"kept")
        left = node.children()
        assert all(map(is_alive, left))
        node.kill()  # and waits for them
        assert not any(map(is_alive, left))
        node.start()
        assert node.s3().get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"kept"


def test_signal_to_the_whole_group_stops_in_good_order(tmp_path: Path) -> None:
    """As ctrl-C in a terminal, or a service manager that signals all processes."""
    with node_with_workers(tmp_path) as node:
        for pid in node.children():
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
        node.s3().put_object(Bucket=BUCKET, Key="k", Body=b"still here")
        node.stop()
        assert "has ended" not in node.said()


def test_long_body_goes_through_a_worker_and_back(tmp_path: Path) -> None:
    body = os.urandom(9_000_001)
    with node_with_workers(tmp_path) as node:
        client = node.s3()
        client.put_object(Bucket=BUCKET, Key="long", Body=body)
        assert client.get_object(Bucket=BUCKET, Key="long")["Body"].read() == body
        code = error_of(
            lambda: client.put_object(Bucket=BUCKET, Key="long", Body=body, ContentMD5="1B2M2Y8AsgTpgAmY7PhCfg==")
        )
        assert code == (400, "BadDigest")
        assert client.get_object(Bucket=BUCKET, Key="long", Range="bytes=5000000-")["Body"].read() == body[5_000_000:]


@pytest.mark.soak
def test_processes_are_killed_again_and_again(tmp_path: Path) -> None:
    with node_with_workers(tmp_path) as node:
        wait_until(all_serve(node), 30, lambda: workers(node))
        with Traffic(node) as traffic:
            for turn in range(30):
                traffic.wait_for(40)
                victims = [store_process(node)] if turn % 3 == 0 else workers(node)[: turn % 3]
                for pid in victims:
                    os.kill(pid, signal.SIGKILL)
                wait_until(all_serve(node, but=victims), 60, lambda: workers(node))
        assert traffic.failures["wrong"] == 0
        traffic.verify()


@pytest.mark.soak
def test_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    """It takes half a minute to be sure of it."""
    with node_with_workers(tmp_path) as node:
        wait_until(all_serve(node), 30, lambda: workers(node))
        victim = workers(node)[0]
        os.kill(victim, signal.SIGSTOP)
        wait_until(all_serve(node, but=[victim]), 90, lambda: workers(node))
        assert victim not in node.children()


def test_store_that_is_opened_again_is_served_by_the_same_workers(tmp_path: Path) -> None:
    """As when too few disks were there at the start, and others come back."""
    with node_with_workers(tmp_path) as node:
        node.s3().put_object(Bucket=BUCKET, Key="k", Body=b"kept")
        node.stop()
        for disk in node.disks[:3]:
            disk.rename(tmp_path / disk.name)
        assert node.spawn()
        assert error_of(lambda: node.s3().put_object(Bucket=BUCKET, Key="k", Body=b"2")) == (503, "ServiceUnavailable")
        before = workers(node)
        for disk in node.disks[:3]:
            (tmp_path / disk.name).rename(disk)

        def is_written() -> bool:
            return error_of(lambda: node.s3(attempts=5).put_object(Bucket=BUCKET, Key="new", Body=b"2"))[0] == 200

        wait_until(is_written, 60, node.said)
        assert node.s3().get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"kept"
        wait_until(all_serve(node), 30, lambda: workers(node))
        assert workers(node) == before
