import errno
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from couchestord import daemon, front, listening, servicemanager
from couchestord.config import Config, HealthConfig, MetricsConfig, S3Config, StoreConfig
from couchestord.errors import ConfigError, NotAStore, TooFewDisks
from couchestord.frontends.http import serve_http
from couchestord.metrics import Snapshot
from couchestord.parsing import Address
from couchestord.store import ObjectStore


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EADDRINUSE, "in use"), "in use by another program"),
        (OSError(errno.EACCES, "denied"), "below 1024"),
        (OSError(errno.EADDRNOTAVAIL, "not there"), "does not have that address"),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "the host is not known"),
        (OSError("All attempts failed"), "All attempts failed"),
    ],
)
def test_why_an_address_cannot_be_had(error: OSError, words: str) -> None:
    message = listening.why_not_bound("metrics", Address("127.0.0.1", 80), error)
    assert words in message
    assert "--metrics-addr" in message


def test_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("notify")
        servicemanager.notify_systemd("READY=1", {"NOTIFY_SOCKET": "notify"})
        assert manager.recv(100) == f"READY=1\nMAINPID={os.getpid()}".encode()


def test_no_service_manager_is_no_error(tmp_path: Path) -> None:
    servicemanager.notify_systemd("READY=1", {})
    servicemanager.notify_systemd("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "none")})


async def signals_of(*numbers: int) -> AsyncIterator[int]:
    for number in numbers:
        yield number


async def test_signal_before_ready_cuts() -> None:
    everything = trio.CancelScope()
    await daemon._Stop(everything).watch(signals_of(signal.SIGTERM))
    assert everything.cancel_called


async def test_first_signal_stops_in_order_second_cuts() -> None:
    everything = trio.CancelScope()
    stop = daemon._Stop(everything)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop.wait_or, trio.sleep_forever)
        await trio.testing.wait_all_tasks_blocked()
        await stop.watch(signals_of(signal.SIGINT))
    assert not everything.cancel_called
    await stop.watch(signals_of(signal.SIGINT))
    assert everything.cancel_called


def config_of(data: Path, *disks: Path) -> Config:
    return Config(store=StoreConfig(data=data, disks=disks))


async def test_store_is_made_on_the_configured_disks(tmp_path: Path) -> None:
    disks = [tmp_path / "elsewhere" / str(index) for index in range(7)]
    assert await daemon.create_store(config_of(tmp_path / "data", *disks), 6) == tuple(disks)
    assert not list((tmp_path / "data").glob("disk-*"))
    async with daemon.open_store(config_of(tmp_path / "data", *disks)) as store:
        assert store.health().state == "healthy"


async def test_too_few_disks_make_no_folder(tmp_path: Path) -> None:
    with pytest.raises(TooFewDisks, match="5 disks"):
        await daemon.create_store(config_of(tmp_path / "data"), 5)
    assert not (tmp_path / "data").exists()


async def test_new_store_never_hides_an_old_one(tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite").touch()
    with pytest.raises(NotAStore, match=r"catalog\.sqlite is there"):
        await daemon.create_store(config_of(tmp_path), 6)
    assert not (tmp_path / "disk-0").exists()


async def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot make the folder"):
        await daemon.create_store(config_of(tmp_path / "file" / "data"), 6)


async def test_s3_clients_are_held_to_the_configured_rate_and_late_ones_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = list[tuple[tuple[Any, ...], dict[str, Any]]]()

    def serve(*arguments: Any, **options: Any) -> Any:
        servers.append((arguments, options))
        return serve_http(*arguments, **options)

    async def nothing(_: object) -> None: ...

    monkeypatch.setattr(front, "serve_http", serve)
    anywhere = Address("127.0.0.1", 0)
    config = Config(
        StoreConfig(data=tmp_path / "data"),
        s3=S3Config(anywhere, bytes_per_s_min=12345),
        metrics=MetricsConfig(anywhere),
        health=HealthConfig(anywhere),
    )
    made, stop = daemon._Daemon(config, {}), daemon._Stop(trio.CancelScope())
    await made.run(nothing, lambda _: stop._asked.set(), 6, stop)
    arguments, options = servers[-1]
    assert arguments[2].bytes_per_s_min == 12345
    options["observe_late"]("body")
    assert b'couchestord_late_clients_total{awaited="body"} 1.0' in made._metrics.render(Snapshot())


@pytest.mark.parametrize("error", [TooFewDisks("none is here"), OSError(errno.EROFS, "Read-only file system")])
async def test_a_store_that_cannot_be_opened_again_is_tried_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    here = Address("127.0.0.1", 0)
    config = Config(
        StoreConfig(data=tmp_path), s3=S3Config(here), metrics=MetricsConfig(here), health=HealthConfig(here)
    )
    opened_count, real = 0, daemon.open_store

    @asynccontextmanager
    async def open_store(*arguments: Any) -> AsyncIterator[ObjectStore]:
        nonlocal opened_count
        opened_count += 1
        if opened_count == 2:
            raise error
        async with real(*arguments) as store:
            if opened_count == 3:
                await stop.watch(signals_of(signal.SIGTERM))
            yield store

    async def go_on(_: object) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(ObjectStore, "wait_until_better", go_on)
    monkeypatch.setattr(daemon._Daemon, "_pause", go_on)
    monkeypatch.setattr(daemon, "open_store", open_store)
    stop = daemon._Stop(trio.CancelScope())
    await daemon._Daemon(config, {}).run(go_on, lambda _: None, 6, stop)
    assert opened_count == 3


async def test_a_store_that_cannot_be_written_after_all_is_served_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Address("127.0.0.1", 0)
    config = Config(
        StoreConfig(data=tmp_path), s3=S3Config(here), metrics=MetricsConfig(here), health=HealthConfig(here)
    )
    paused: list[str] = []

    async def is_better(_: ObjectStore) -> None:
        await trio.lowlevel.checkpoint()

    async def pause(running: daemon._Daemon) -> None:
        paused.append(running._readiness.state)
        if len(paused) == 3:
            await stop.watch(signals_of(signal.SIGTERM))

    async def prepare(store: ObjectStore) -> None:
        assert store.health().state == "healthy"

    monkeypatch.setattr(ObjectStore, "wait_until_better", is_better)
    monkeypatch.setattr(daemon._Daemon, "_pause", pause)
    stop = daemon._Stop(trio.CancelScope())
    await daemon._Daemon(config, {}).run(prepare, lambda _: None, 6, stop)
    assert paused == ["healthy"] * 3, "not while it is closed"
