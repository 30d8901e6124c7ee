import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from admin_store import AdminStore

from couchestord.errors import AccessDenied, InternalError, NoSuchUser, Unavailable
from couchestord.frontends.admin import protocol
from couchestord.frontends.admin.client import NoDaemon, ask
from couchestord.frontends.admin.commands import execute
from couchestord.frontends.admin.server import serve_admin
from couchestord.listening import may_connect, peer_uid


@asynccontextmanager
async def served(folder: Path, store: AdminStore) -> AsyncIterator[Path]:
    async with serve_admin(folder, partial(execute, cast(Any, store))) as path:
        yield path


async def in_thread(folder: Path, command: str, **arguments: Any) -> Any:
    return await trio.to_thread.run_sync(ask, folder, command, arguments)


async def test_command_runs_in_the_daemon(tmp_path: Path) -> None:
    store = AdminStore()
    async with served(tmp_path, store):
        assert await in_thread(tmp_path, "key add", user="ann", access_key="AK", secret_key="SK") == {
            **{"user": "ann", "access_key": "AK"}
        }
        assert store.keys["AK"].user == "ann"


async def test_error_comes_back_as_its_class(tmp_path: Path) -> None:
    async with served(tmp_path, AdminStore()):
        with pytest.raises(NoSuchUser, match="there is no user nobody"):
            await in_thread(tmp_path, "bucket create", bucket="photos", owner="nobody")


async def test_socket_is_for_its_owner_and_gone_afterwards(tmp_path: Path) -> None:
    async with served(tmp_path, AdminStore()) as path:
        assert path == tmp_path / "couchestord.sock"
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
    assert not path.exists()
    with pytest.raises(NoDaemon):
        await in_thread(tmp_path, "status")


async def test_socket_that_a_killed_daemon_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        folder = os.open(tmp_path, os.O_PATH)
        left.bind(f"/proc/self/fd/{folder}/{protocol.SOCKET_NAME}")
        os.close(folder)
    with pytest.raises(NoDaemon):
        await in_thread(tmp_path, "status")
    async with served(tmp_path, AdminStore()):
        assert (await in_thread(tmp_path, "status"))["engine"] == "zfec"


async def test_folder_with_a_long_name(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 120)
    folder.mkdir()
    async with served(folder, AdminStore()):
        assert (await in_thread(folder, "status"))["engine"] == "zfec"


async def test_folder_that_is_not_there_has_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(NoDaemon):
        await in_thread(tmp_path / "none", "status")


def test_only_root_and_the_own_user_may_command() -> None:
    assert [uid for uid in (0, 1000, 1001) if may_connect(uid, 1000)] == [0, 1000]


async def test_peer_uid_is_the_kernels() -> None:
    ours, theirs = trio.socket.socketpair()
    with theirs:
        async with trio.SocketStream(ours) as stream:
            assert peer_uid(stream.socket) == os.geteuid()


async def test_other_user_is_refused_even_with_an_open_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("couchestord.frontends.admin.server.peer_uid", lambda stream: 4242)
    async with served(tmp_path, AdminStore()):
        with pytest.raises(AccessDenied):
            await in_thread(tmp_path, "key list", show_secrets=True)


async def talk(path: Path, sent: bytes) -> list[Any]:
    """Sends bytes as they are; the answers until the server closes."""
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(sent)
        await stream.send_eof()
        received = b"".join([piece async for piece in stream])
    return [json.loads(line) for line in received.splitlines()]


@pytest.fixture
def short_path(tmp_path: Path) -> Path:
    """trio connects by name: a socket whose name fits."""
    return tmp_path if len(str(tmp_path)) < 80 else Path(os.path.relpath(tmp_path))


async def test_several_requests_and_nonsense_on_one_connection(short_path: Path) -> None:
    async with served(short_path, AdminStore()) as path:
        answers = await talk(path, b'{"command": "bucket list"}\nnonsense\n[]\n{"command": "key list"}\n')
        assert [next(iter(answer)) for answer in answers] == ["result", "error", "error", "result"]
        assert answers[1]["error"]["name"] == "InvalidArgument"


async def test_endless_line_is_cut_and_others_are_served(short_path: Path) -> None:
    async with served(short_path, AdminStore()) as path:
        with pytest.raises(trio.BrokenResourceError):
            await talk(path, b"x" * 16 * protocol.LINE_BYTES_MAX)
        assert (await in_thread(short_path, "status"))["engine"] == "zfec"


async def test_defect_in_a_command_ends_neither_daemon_nor_tells_details(tmp_path: Path) -> None:
    class Broken(AdminStore):
        async def status(self) -> dict[str, Any]:
            raise RuntimeError("secret detail")

    async with served(tmp_path, Broken()):
        with pytest.raises(InternalError) as caught:
            await in_thread(tmp_path, "status")
        assert "secret detail" not in str(caught.value)
        assert await in_thread(tmp_path, "bucket list") == []


async def test_daemon_that_goes_away_is_unavailable(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{folder}/{protocol.SOCKET_NAME}")
        listener.listen()
        os.close(folder)

        def hang_up() -> None:
            client, _ = listener.accept()
            client.recv(1000)
            client.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, hang_up)
            with pytest.raises(Unavailable):
                await in_thread(tmp_path, "status")


async def test_socket_that_cannot_be_removed_ends_no_daemon(tmp_path: Path) -> None:
    async with served(tmp_path, AdminStore()) as path:
        path.unlink()
        path.mkdir()


def test_daemon_that_cannot_be_asked_is_an_error_of_ours(tmp_path: Path) -> None:
    """It hangs, and so many wait already that the system takes no more; or the folder cannot be looked at."""
    path = tmp_path / protocol.SOCKET_NAME
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        with pytest.raises(Unavailable, match="cannot be asked"):
            ask(tmp_path, "status", {})
    (tmp_path / "loop").symlink_to("loop")
    for folder in (tmp_path / ("a" * 300), tmp_path / "loop"):
        with pytest.raises(Unavailable, match="cannot be asked"):
            ask(folder, "status", {})
