"""Processes that the daemon has not forked come to read its store."""

import os
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import trio
from file_rig import make
from small_store import core_of, finish, new_store, read

from couchestord.cache import CACHES_OFF, CacheConfig
from couchestord.errors import AccessDenied, BucketMounted, ConfigError, Unavailable
from couchestord.io import filerequests as fr
from couchestord.io.sharedpage import NOBODY, SharedPage
from couchestord.metrics import Metrics
from couchestord.replica import door
from couchestord.replica import messages as ms
from couchestord.replica.door import SOCKET_NAME, knock, serve_door
from couchestord.replica.host import LET_IN_MAX, Host
from couchestord.replica.link import Command, Link
from couchestord.replica.store import open_replica
from couchestord.store import ObjectStore
from couchestord.versions import program_version


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[tuple[ObjectStore, Host]]:
    """A store whose door is open."""
    host = Host(SharedPage(), Metrics())
    async with new_store(path, cache=CACHES_OFF) as store, serve_door(path, host), host.serving(store):
        yield store, host


@asynccontextmanager
async def come_in(path: Path) -> AsyncIterator[Link]:
    """A link that runs while the body does; then its process is gone."""
    async with trio.open_nursery() as nursery:
        link = await knock(path)
        nursery.start_soon(link.run)
        yield link
        link.channel.close()
        nursery.cancel_scope.cancel()


async def until(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not is_so():
            await trio.sleep(0.001)


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    """To the door, with nothing said yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(os.fspath(path / SOCKET_NAME))
        client.setblocking(False)
        yield client


async def answer(client: socket.socket) -> str:
    """The refusal that the door gives."""
    await trio.lowlevel.wait_readable(client)
    words, descriptors, _, _ = socket.recv_fds(client, 1024, 8)
    assert not descriptors
    (refusal,) = msgspec.msgpack.decode(words, type=tuple[str])
    return refusal


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """No more files may be opened meanwhile."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = 1 + max(int(each) for each in os.listdir("/proc/self/fd"))
    with ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (before, most))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, most))
        with suppress(OSError):
            while True:
                opened.callback(os.close, os.open("/dev/null", os.O_RDONLY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + count, most))
        yield


@pytest.mark.parametrize("count", range(5))
async def test_who_may_open_no_more_files_tries_again(tmp_path: Path, count: int) -> None:
    """A mount that has lost its daemon goes on to look for one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(tmp_path / SOCKET_NAME))
        listener.listen()
        listener.setblocking(False)

        async def grant() -> None:
            await trio.lowlevel.wait_readable(listener)
            given = [listener.fileno()] * 4
            with listener.accept()[0] as client:
                client.recv(1024)
                socket.send_fds(client, [msgspec.msgpack.encode([""])], given)

        with descriptors_left(count), trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                if count > 1:
                    nursery.start_soon(grant)
                with pytest.raises(Unavailable):
                    await knock(tmp_path)
                nursery.cancel_scope.cancel()


async def test_who_comes_in_reads_and_writes(tmp_path: Path) -> None:
    async with served(tmp_path) as (store, host), come_in(tmp_path) as link:
        opened = await link.open()
        async with open_replica(link, opened, Metrics(), CacheConfig(l1_bytes=1 << 20)) as replica:
            await replica.put("box", b"k", b"from beside")
            assert await read(store, b"k") == b"from beside"
            await store.put("box", b"k", b"from the daemon")
            assert await read(replica, b"k") == b"from the daemon"
            assert host.page.seen_by_all() == link.page.seen(link.number) != NOBODY
            assert link.page.version == host.page.version


PROGRAM = """
import sys, trio
from pathlib import Path
from couchestord.cache import CacheConfig
from couchestord.metrics import Metrics
from couchestord.replica.door import knock
from couchestord.replica.store import open_replica

async def main(path):
    async with trio.open_nursery() as nursery:
        link = await knock(path)
        nursery.start_soon(link.run)
        async with open_replica(link, await link.open(), Metrics(), CacheConfig(1 << 20)) as store:
            async with await store.get("box", b"k") as reader:
                await store.put("box", b"answer", await reader.read() + b" and back")
        nursery.cancel_scope.cancel()

trio.run(main, Path(sys.argv[1]))
"""


async def test_another_process_comes_in(tmp_path: Path) -> None:
    async with served(tmp_path) as (store, host):
        await store.put("box", b"k", b"there")
        await trio.run_process([sys.executable, "-c", PROGRAM, os.fspath(tmp_path)], stderr=subprocess.STDOUT)
        assert await read(store, b"answer") == b"there and back"
        await until(lambda: not host.page.let_in)
        assert host.page.seen_by_all() == NOBODY


async def test_mounts_are_claimed_through_the_door_until_their_process_is_gone(tmp_path: Path) -> None:
    async with served(tmp_path) as (store, _), come_in(tmp_path) as other:
        async with come_in(tmp_path) as link:
            await link.open()
            await other.open()
            await link.claim_mount("box", writes=True)
            with pytest.raises(BucketMounted):
                await other.claim_mount(None, writes=True)
            link.which_open = lambda inodes: [id_ for id_ in inodes if id_ == 7]
            mounts = core_of(store).mounts
            assert mounts.writes("box")
        await until(lambda: not mounts.writes("box"))
        assert mounts.shows("box")  # it may come back
        mounts.forget_gone()
        assert not mounts.shows("box")
        await other.claim_mount(None, writes=True)
        assert mounts.writes("box")
        await other.end_mount()
        assert not mounts.shows("box")


async def test_open_files_are_asked_for(tmp_path: Path) -> None:
    async with served(tmp_path) as (store, _), come_in(tmp_path) as link:
        opened = await link.open()
        async with open_replica(link, opened, Metrics(), CacheConfig(l1_bytes=1 << 20)):
            await link.claim_mount(None, writes=False)
            assert await core_of(store).mounts.which_open([7, 8]) == set()
            link.which_open = lambda inodes: [id_ for id_ in inodes if id_ == 7]
            assert await core_of(store).mounts.which_open([7, 8]) == {7}


async def test_orphans_are_freed_though_a_mount_ends_while_another_is_asked(tmp_path: Path) -> None:
    async with served(tmp_path) as (store, host), come_in(tmp_path) as slow, trio.open_nursery() as nursery:
        reaper, asked, done = core_of(store).jobs.orphans, list[Command](), trio.Event()
        id_ = await make(store, b"f")
        await store.files.change(fr.UnlinkNode(store.files.root("box"), b"f", keep=True))

        async def work() -> None:
            await reaper.work()
            done.set()

        def answer(command: Command) -> None:
            slow.tell(ms.Answer(command.id, ms.raw([] if isinstance(command, ms.WhichOpen) else None)))

        slow.obey = asked.append
        async with come_in(tmp_path) as ends:
            for link in (slow, ends):
                await link.open()
                await link.claim_mount("box", writes=False)
            nursery.start_soon(work)
            await until(lambda: bool(asked))
            await ends.end_mount()
        await until(lambda: len(host.page.let_in) == 1)
        slow.obey = answer
        answer(asked[0])
        await until(done.is_set)
        await finish(reaper)
        assert (reaper.freed_count, core_of(store).catalog.files.orphans(id_ - 1, 1)) == (1, [])


async def test_socket_that_cannot_be_removed_ends_no_daemon(tmp_path: Path) -> None:
    async with serve_door(tmp_path, Host(SharedPage(), Metrics())):
        (tmp_path / SOCKET_NAME).unlink()
        (tmp_path / SOCKET_NAME).mkdir()


async def test_nobody_listens(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(Unavailable, match=r"no daemon runs on .*: start it with couchestord up"):
            await knock(path)
    async with served(tmp_path):
        assert stat.S_IMODE((tmp_path / SOCKET_NAME).stat().st_mode) == 0o600
    assert not (tmp_path / SOCKET_NAME).exists()
    with pytest.raises(Unavailable, match="no daemon runs"):
        await knock(tmp_path)


async def test_a_socket_that_a_killed_daemon_left(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(os.fspath(tmp_path / SOCKET_NAME))
    with pytest.raises(Unavailable, match="no daemon runs"):
        await knock(tmp_path)
    async with serve_door(tmp_path, Host(SharedPage(), Metrics())), come_in(tmp_path):
        pass


async def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(SharedPage(), Metrics())
    async with serve_door(tmp_path, host):
        said = msgspec.msgpack.encode(["0.0.0-other"])
        with connected(tmp_path) as client:
            client.send(said)
            refusal = await answer(client)
        assert "0.0.0-other" in refusal
        versions = iter(["1.0", *["2.0"] * 3])
        monkeypatch.setattr(door, "program_version", lambda: next(versions))
        with pytest.raises(ConfigError, match=r"the daemon is version 2\.0, this is 1\.0"):
            await knock(tmp_path)
        assert not host.page.let_in


@pytest.mark.parametrize("said", [b"", b"\x00", b"\x91\x01", b"\xff" * 2000])
async def test_what_cannot_be_understood_is_refused(tmp_path: Path, said: bytes) -> None:
    host = Host(SharedPage(), Metrics())
    async with serve_door(tmp_path, host):
        with connected(tmp_path) as client:
            if said:
                client.send(said)
            else:
                client.shutdown(socket.SHUT_WR)
            refusal = await answer(client)
        assert "understood" in refusal
        assert not host.page.let_in
        async with come_in(tmp_path):  # the door is open as before
            pass


async def test_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(SharedPage(), Metrics())
    async with serve_door(tmp_path, host):
        monkeypatch.setattr(door, "peer_uid", lambda _: os.geteuid() + 4711)
        with pytest.raises(ConfigError, match="only root and the daemon's own user"):
            await knock(tmp_path)
        assert not host.page.let_in
        monkeypatch.setattr(door, "peer_uid", lambda _: 0)
        async with come_in(tmp_path):
            pass


async def test_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(door, "connect_in_folder", refuse)
    with pytest.raises(AccessDenied, match="belongs to another user"):
        await knock(tmp_path)


async def test_too_many_come_in_and_one_goes(tmp_path: Path) -> None:
    host = Host(SharedPage(), Metrics())
    async with serve_door(tmp_path, host):
        with ExitStack() as held:
            links = [await knock(tmp_path) for _ in range(LET_IN_MAX)]
            for link in links:
                held.callback(link.bodies.close)
                held.callback(link.channel.close)
            await until(lambda: not host.has_room)
            with pytest.raises(ConfigError, match="too many"):
                await knock(tmp_path)
            gone = links[17]
            gone.page.see(gone.number, 3)
            assert host.page.seen_by_all() == 3
            gone.channel.close()
            await until(lambda: host.has_room)
            assert host.page.seen_by_all() == NOBODY
            async with come_in(tmp_path):
                pass
        await until(lambda: not host.page.let_in)


async def test_what_a_reader_says_after_it_was_given_up_keeps_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as (store, host), trio.open_nursery() as nursery:
        link = await knock(tmp_path)
        nursery.start_soon(link.run)
        async with open_replica(link, await link.open(), Metrics(), CacheConfig(l1_bytes=1 << 20)):
            assert host.page.seen_by_all() != NOBODY
            link.channel.close()
            await until(lambda: host.page.seen_by_all() == NOBODY)
        link.page.see(link.number, 0)
        assert host.page.seen_by_all() == NOBODY
        async with come_in(tmp_path) as other:
            await other.open()
            await store.put("box", b"k", b"1")
            for late in (0, link.page.version):
                link.page.see(link.number, late)
                assert host.page.seen_by_all() == other.page.seen(other.number) < host.page.version


async def test_what_readers_of_a_killed_store_process_say_keeps_nothing_in_the_next(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, host), come_in(tmp_path) as link:
        # as the next one has it, where the page outlives the store's process
        page = SharedPage(os.dup(host.page.descriptor))
        await link.open()
        assert (page.version, page.seen_by_all()) == (link.page.version, NOBODY)
        page.close()


async def test_who_is_gone_before_the_answer_leaves_nothing(tmp_path: Path) -> None:
    host = Host(SharedPage(), Metrics())
    async with serve_door(tmp_path, host):
        for _ in range(3):
            with connected(tmp_path) as client:
                client.send(msgspec.msgpack.encode([program_version()]))
        async with come_in(tmp_path):
            pass
        await until(lambda: not host.page.let_in)


async def test_without_descriptors_nobody_comes_in_and_the_door_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    async with served(tmp_path) as (_, host):
        with monkeypatch.context() as patch:
            patch.setattr("couchestord.replica.door._pair", refuse)
            with pytest.raises(ConfigError, match="no more files"):
                await knock(tmp_path)
        assert not host.page.let_in
        async with come_in(tmp_path) as link:
            await link.open()
