"""A live server over a real store in a thread of its own, since boto3 blocks."""

import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from modes import mode
from replica_rig import linked

from couchestord.cache import CacheConfig
from couchestord.clock import SystemClock
from couchestord.frontends.http import Begin, Limits, Quick, serve_http
from couchestord.frontends.s3.server import S3Server
from couchestord.io.sharedpage import SharedPage
from couchestord.metrics import Metrics
from couchestord.model import AccessKey
from couchestord.replica.host import Host
from couchestord.replica.store import open_replica
from couchestord.store import Objects, ObjectStore, StoreOptions


@dataclass(frozen=True)
class Live:
    """A running server and the two users it knows. With workers (`modes`) it serves what one of them would have."""

    port: int
    hasty_port: int
    """Of the same server, with no patience for slow bodies, and nothing answered quickly or begun."""
    admin: AccessKey
    user: AccessKey
    token: trio.lowlevel.TrioToken
    store: ObjectStore
    server: S3Server
    observed: list[tuple[str, int, int, int]]
    quick: list[Quick] = field(default_factory=list)
    """The last of them is asked for quick answers."""
    begin: list[Begin] = field(default_factory=list)
    """The last of them is asked to begin what came whole."""

    def seen(self) -> list[tuple[str, int, int, int]]:
        """What was observed. A request is observed in the step of the loop that sends its answer: let that one end."""
        self.run(trio.lowlevel.checkpoint)
        return self.observed

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Runs an async function in the server's loop."""
        return trio.from_thread.run(function, *args, trio_token=self.token)


@asynccontextmanager
async def _served(store: ObjectStore, caches: CacheConfig) -> AsyncIterator[Objects]:
    """What front ends have of a store: all of it, or what a worker has."""
    if not mode().workers:
        yield store
        return
    page, metrics = SharedPage(), Metrics()
    host = Host(page, metrics)
    async with linked(host, page) as link, host.serving(store):
        async with open_replica(link, await link.open(), metrics, caches) as replica:
            yield replica
        link.channel.close()


async def _serve(folder: Path, started: "queue.Queue[tuple[Live, trio.Event] | BaseException]") -> None:
    options = StoreOptions(cache=mode().config(folder / "l2"))
    await ObjectStore.create(folder, options)
    async with ObjectStore.open(folder, options) as store, _served(store, options.cache) as served:
        await store.create_user("root", admin=True)
        await store.create_user("ann")
        admin, user = await store.create_key("root"), await store.create_key("ann")
        listeners, hasty = [await trio.open_tcp_listeners(0, host="127.0.0.1") for _ in range(2)]
        stop = trio.Event()
        port, hasty_port = (listener[0].socket.getsockname()[1] for listener in (listeners, hasty))

        observed: list[tuple[str, int, int, int]] = []

        def observe(operation: str, status: int, seconds: float, bytes_in: int, bytes_out: int) -> None:
            assert seconds >= 0
            observed.append((operation, status, bytes_in, bytes_out))

        server = S3Server(served, SystemClock(), observe=observe)
        live = Live(port, hasty_port, admin, user, trio.lowlevel.current_trio_token(), store, server, observed)
        live.quick.append(server.quick)
        live.begin.append(server.begin)
        serving = serve_http(
            listeners,
            server.handler,
            quick=lambda head, date: live.quick[-1](head, date),
            begin=lambda *request: live.begin[-1](*request),
        )
        async with serving, serve_http(hasty, server.handler, Limits(body_timeout_s=0.05)):
            started.put((live, stop))
            await stop.wait()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Ends with its module: seeded runs of other tests must have trio for themselves."""
    started: queue.Queue[tuple[Live, trio.Event] | BaseException] = queue.Queue()

    def main() -> None:
        try:
            trio.run(_serve, tmp_path_factory.mktemp("store"), started)
        except BaseException as error:
            started.put(error)
            raise

    thread = threading.Thread(target=main)
    thread.start()
    first = started.get(timeout=60)
    if isinstance(first, BaseException):
        raise first
    found, stop = first
    yield found
    found.token.run_sync_soon(stop.set)
    thread.join()


@pytest.fixture
def bucket(live: Live, request: pytest.FixtureRequest) -> str:
    """A bucket of its own for each test."""
    name = "b" + str(abs(hash(request.node.nodeid)))[:20]
    live.run(_create_bucket, live.store, name)
    return name


async def _create_bucket(store: ObjectStore, name: str) -> None:
    await store.create_bucket(name, owner="root")
