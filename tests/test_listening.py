import os
import socket
import stat
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest

from couchestord.errors import ConfigError
from couchestord.listening import bind, bind_several, close_in_folder, listen_in_folder, listeners_of
from couchestord.parsing import Address


def test_several_sockets_share_a_port_that_was_free() -> None:
    with ExitStack() as stack:
        several = bind_several("s3", Address("127.0.0.1", 0), 3, stack)
        ports = {each.getsockname()[1] for listeners in several for each in listeners}
        assert len(several) == 3
        assert len(ports) == 1


def test_port_of_another_program_of_ours_is_noticed() -> None:
    with ExitStack() as stack:
        port = bind_several("s3", Address("127.0.0.1", 0), 2, stack)[0][0].getsockname()[1]
        with pytest.raises(ConfigError, match="in use by another program"):
            bind_several("s3", Address("127.0.0.1", port), 2, stack)


def test_address_that_is_not_here() -> None:
    with ExitStack() as stack, pytest.raises(ConfigError, match="--s3-addr"):
        bind_several("s3", Address("192.0.2.1", 0), 1, stack)


def test_socket_in_a_folder_is_its_users_and_what_others_make_meanwhile_is_as_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind_ = socket.socket.bind

    def bind_and_make(sock: socket.socket, address: str) -> None:
        bind_(sock, address)
        os.mkdir(tmp_path / "made", 0o700)  # as a thread of a disk may

    monkeypatch.setattr(socket.socket, "bind", bind_and_make)
    listen_in_folder(tmp_path / "sock", socket.SOCK_STREAM, 1).close()
    assert stat.S_IMODE((tmp_path / "sock").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700


def test_file_of_a_socket_that_cannot_be_removed_is_left(tmp_path: Path) -> None:
    """On a file system that is read-only by then, say."""
    path = tmp_path / "sock"
    listener = listen_in_folder(path, socket.SOCK_STREAM, 1)
    path.unlink()
    path.mkdir()
    close_in_folder(listener, path)
    assert listener.fileno() == -1


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "\ud7ff"])
async def test_what_cannot_be_a_host_is_not_known(host: str) -> None:
    with ExitStack() as stack, pytest.raises(ConfigError, match="the host is not known"):
        bind_several("s3", Address(host, 0), 1, stack)
    async with AsyncExitStack() as closing:
        with pytest.raises(ConfigError, match="the host is not known"):
            await bind("s3", Address(host, 0), closing)


async def test_clients_that_nobody_accepted_are_served_by_the_next_who_does() -> None:
    with ExitStack() as stack:
        listeners = bind_several("s3", Address("127.0.0.1", 0), 1, stack)[0]
        port = listeners[0].getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            for listener in listeners_of(listeners):
                await listener.aclose()
            (listener,) = listeners_of(listeners)
            async with await listener.accept() as stream:
                client.sendall(b"x")
                assert await stream.receive_some(1) == b"x"
            await listener.aclose()


async def test_what_is_bound_already_is_not_bound_again() -> None:
    with ExitStack() as stack:
        bound = bind_several("s3", Address("127.0.0.1", 0), 1, stack)[0]
        async with AsyncExitStack() as closing:
            found = await bind("s3", Address("192.0.2.1", 1), closing, bound)
            assert found[0].socket.getsockname() == bound[0].getsockname()
