"""A mount: a process of its own, which reads beside a daemon and hands it what is to be changed.

It outlives the daemon: calls wait for the next one, files stay open, and what was written and not synced stays here.
"""

import errno
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from couchestord import logs, memory
from couchestord.cache import CacheConfig
from couchestord.clock import SystemClock
from couchestord.config import Config
from couchestord.daemon import l3_options
from couchestord.errors import ConfigError, Error, Unavailable
from couchestord.frontends.posix.filesystem import FileSystem, Room
from couchestord.frontends.posix.notices import Notices
from couchestord.io.catalog.changes import Changes
from couchestord.metrics import Metrics
from couchestord.openfiles import make_room
from couchestord.remote.backend import Backend
from couchestord.replica.door import knock
from couchestord.replica.link import Link
from couchestord.replica.store import open_replica
from couchestord.store import Objects

_log = logs.get(__name__)
_L1_BYTES: Final = 32 << 20
"""The kernel keeps what is read; this is for what many files share."""
WAIT_S: Final = 30.0
"""So long a call waits for a daemon."""
_BEAT_S: Final = 1.0
_PAUSE_S: Final = 0.2
"""Before a daemon that is not there is looked for again."""
_FINISH_S: Final = 10.0
"""So long calls under way may take when the daemon closes."""
_TYPE: Final = "fuse.couchestord"
_READ_AHEAD_BYTES: Final = 1 << 20
_AGREE_S: Final = 1.0
_FREED_BYTES_MAX: Final = 256 << 20
"""As much as waits to be published at most."""
_IDLE_S: Final = 5.0
_IDLE_PART: Final = 0.02
"""Who takes less of a processor is idle."""
_END_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Mount:
    """What is to be mounted where."""

    bucket: str | None
    """None: all of them."""
    folder: Path
    options: Sequence[str] = ()
    trust_owners: bool = False
    """Believe what S3 clients say of the owner of an object."""

    @property
    def writes(self) -> bool:
        return "ro" not in self.options


class Session:
    """The open store, whichever daemon has it."""

    def __init__(self, config: Config, mount: Mount) -> None:
        self._config = config
        self._mount = mount
        self._store: Objects | None = None
        self._link: Link | None = None
        self._is_open = False
        """Calls may begin."""
        self._changed = trio.Event()
        self._calls = 0
        self._idle = trio.Event()
        self.which_open: Callable[[Sequence[int]], list[int]] = lambda _: []
        self.notices: Notices | None = None
        """To the kernel, once it knows this mount."""

    def store(self) -> Objects:
        """Raises Unavailable while there is none."""
        if self._store is None:
            raise Unavailable("the daemon is gone")
        return self._store

    async def begin(self) -> None:
        """A call of the kernel's: returns once there is a store, which does not close before `end`. Raises
        Unavailable.
        """
        if not self._is_open:
            with trio.move_on_after(WAIT_S):
                while not self._is_open:
                    await self._changed.wait()
        if not self._is_open:
            raise Unavailable(f"no daemon for {WAIT_S:.0f} s")
        self._calls += 1

    def end(self) -> None:
        """That call has ended."""
        self._calls -= 1
        if not self._calls:
            self._idle.set()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Keeps to a daemon, until cancelled. Raises what the first one refuses with."""
        is_first, is_told = True, False
        while True:
            try:
                link = await knock(self._config.store.data)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(link.run)
                    nursery.start_soon(_beat, link)
                    try:
                        async with self._opened(link):
                            if is_first:
                                is_first = False
                                task_status.started()
                            is_told = False
                            await link.closing.wait()
                            await self._let_go()
                    finally:
                        link.channel.close()
                        nursery.cancel_scope.cancel()
            except* Error as group:
                if is_first:
                    raise
                if not is_told:
                    _log.warning("there is no daemon for this mount", reason=str(group.exceptions[0]))
                is_told = True
            await trio.sleep(_PAUSE_S)

    @asynccontextmanager
    async def _opened(self, link: Link) -> AsyncIterator[None]:
        opened = await link.open()
        make_room(opened.identity.disks_count, 0)
        async with (
            _backend(self._config) as backend,
            open_replica(link, opened, Metrics(), CacheConfig(_L1_BYTES), backend) as store,
        ):
            # it may be asked as soon as the store knows of it
            link.which_open = lambda inodes: self.which_open(inodes)
            link.show = self._show
            await link.claim_mount(self._mount.bucket, writes=self._mount.writes)
            self._link, self._store, self._is_open = link, store, True
            self._changed.set()
            self._changed = trio.Event()
            try:
                yield
            finally:
                self._shut()
                self._link = self._store = None

    async def leave(self) -> None:
        """Nothing is mounted any more: the store need not wait for this mount to come back."""
        if self._link is not None:
            with trio.move_on_after(_END_S), suppress(Unavailable):
                await self._link.end_mount()

    async def _show(self, changes: Changes) -> None:
        if self.notices is not None:
            await self.notices.show(changes)

    async def forget_file(self, id_: int) -> None:
        """The kernel has bytes and a length of it that are not those of the file: it is looked up anew."""
        try:
            names = self.store().files.names(id_)
        except Unavailable:
            return  # all names are looked up anew
        await self._show(Changes(names=frozenset(names), bodies=frozenset([id_])))

    def _shut(self) -> None:
        """No call begins. What the kernel looks up waits for the next daemon: of what changes from now on nobody tells
        it.
        """
        self._is_open = False
        if self.notices is not None:
            self.notices.forget_everything()

    async def _let_go(self) -> None:
        """No call begins, and those under way end."""
        self._shut()
        with trio.move_on_after(_FINISH_S):
            while self._calls:
                self._idle = trio.Event()
                await self._idle.wait()


async def _beat(link: Link) -> None:
    """Who hangs is cut off: what it may see is not freed."""
    while not link.is_gone:
        link.page.beat(link.number)
        await trio.sleep(_BEAT_S)


async def run_mount(config: Config, mount: Mount, *, announce: Callable[[], None], with_parent: bool = False) -> None:
    """Serves a mount until SIGTERM, SIGINT or SIGHUP, or until somebody unmounts it; `with_parent`: until standard
    input ends, too, which the process that started this one holds. `announce` is called once it is there. Raises
    ConfigError when it cannot be mounted, Unavailable when no daemon runs, NoSuchBucket, BucketMounted.
    """
    folder = check_mount_point(mount.folder)
    from couchestord.frontends.posix.fuse import serve_mount

    memory.keep_freed(_FREED_BYTES_MAX)
    session, ending = Session(config, mount), trio.Event()
    # who started it may have said that it outlives the terminal
    hangs_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, *hangs_up) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_signalled, signals, ending)
            if with_parent:
                nursery.start_soon(_until_input_ends, ending)
            with trio.CancelScope() as opening:
                nursery.start_soon(_cancel_at, ending, opening)
                await nursery.start(session.run)
            if opening.cancelled_caught:
                nursery.cancel_scope.cancel()  # there was no daemon yet
                return
            room = partial(_room, config)
            system = FileSystem(mount.bucket, session.store, SystemClock(), room, trust_owners=mount.trust_owners)
            session.which_open = system.which_open
            system.forget = session.forget_file
            nursery.start_soon(system.run)
            nursery.start_soon(_give_back)

            def ready(notices: Notices) -> None:
                session.notices = notices
                nursery.start_soon(_read_ahead, folder)
                announce()

            try:
                await serve_mount(
                    system,
                    session,
                    folder,
                    name=mount.bucket or "couchestord",
                    options=mount.options,
                    ready=ready,
                    ending=ending,
                )
            except OSError as error:
                raise ConfigError(f"cannot mount on {folder}: {error.strerror}") from None
            finally:
                await session.leave()
            nursery.cancel_scope.cancel()


async def _give_back() -> None:
    """What is kept for bytes that pass through, after a while in which none do."""
    was_idle = True
    while True:
        before_s = time.process_time()
        await trio.sleep(_IDLE_S)
        is_idle = time.process_time() - before_s < _IDLE_S * _IDLE_PART
        if is_idle and not was_idle:
            memory.give_back()
        was_idle = is_idle


async def _until_signalled(signals: AsyncIterator[int], ending: trio.Event) -> None:
    async for _ in signals:
        ending.set()


async def _cancel_at(ending: trio.Event, scope: trio.CancelScope) -> None:
    await ending.wait()
    scope.cancel()


async def _until_input_ends(ending: trio.Event) -> None:
    """Whoever started this process holds the other end, and is gone, or wants it to end, when that is closed."""
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        while await stream.receive_some(1024):
            pass
    ending.set()


def check_mount_point(folder: Path) -> Path:
    """The folder's whole path, when it can be mounted on; a dead mount of ours there is unmounted first. Raises
    ConfigError that says what to do.
    """
    try:
        # most commands need no kernel's file system, and its library need not be there for them
        import couchestord.frontends.posix.fuse  # noqa: F401
    except ImportError as error:
        if not (error.name or "").startswith("pyfuse3"):
            raise
        raise ConfigError(f"pyfuse3 is needed to mount: pip install couchestord[mount] ({error})") from None
    if not Path("/dev/fuse").exists():
        raise ConfigError("there is no /dev/fuse: load the module with modprobe fuse, or give the container the device")
    if os.geteuid() and shutil.which("fusermount3") is None:
        raise ConfigError("there is no fusermount3, by which users mount: install the package fuse3")
    folder = folder.absolute()
    _clean_up(folder)
    try:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder: make it with mkdir -p {folder}")
        if os.path.ismount(folder):
            raise ConfigError(f"something is mounted on {folder} already: unmount it with umount {folder}")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be looked at: {error.strerror}") from None
    return folder


def _clean_up(folder: Path) -> None:
    """A mount of ours whose process is dead is unmounted: nothing answers there."""
    try:
        os.statvfs(folder)  # which the kernel never answers by itself
    except OSError as error:
        if error.errno != errno.ENOTCONN or not _is_ours(folder):
            return
    else:
        return
    _log.warning("a mount whose process is dead is unmounted", folder=str(folder))
    line = ["umount", "-l"] if not os.geteuid() else ["fusermount3", "-u", "-z"]
    subprocess.run([*line, "--", os.fspath(folder)], check=False)


def _is_ours(folder: Path) -> bool:
    return any(kind == _TYPE.encode() for _, kind in _mounted_on(folder))


def _mounted_on(folder: Path) -> list[tuple[str, bytes]]:
    """Device and type of what is mounted there, the topmost last. Asks nothing of it."""
    name, found = os.fsencode(folder), []
    with open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:
            about, _, rest = line.partition(b" - ")
            row = about.split(b" ")
            if _unescaped(row[4]) == name:
                found.append((row[2].decode(), rest.split(b" ")[0]))
    return found


async def _read_ahead(folder: Path) -> None:
    """The kernel reads further ahead than its 128 KiB, where root mounts: each read has its price."""
    # it sets its own when it has agreed with libfuse, which nobody is told
    await trio.sleep(_AGREE_S)
    device = next((device for device, kind in reversed(_mounted_on(folder)) if kind == _TYPE.encode()), None)
    if device is not None:
        with suppress(OSError):
            Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(_READ_AHEAD_BYTES >> 10))


def _unescaped(name: bytes) -> bytes:
    """As proc(5) writes spaces and the like: a backslash and three octal digits."""
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), name)


def _room(config: Config) -> Room:
    total = free = 0
    disks = config.store.disks or sorted(config.store.data.glob("disk-*"))
    seen: set[int] = set()
    for disk in disks:
        try:
            found, device = os.statvfs(disk), os.stat(disk).st_dev
        except OSError:
            continue
        if device not in seen:
            seen.add(device)
            total += found.f_blocks * found.f_frsize
            free += found.f_bavail * found.f_frsize
    k, m = config.store.k, config.store.m
    return Room(total * k // (k + m), free * k // (k + m))


@asynccontextmanager
async def _backend(config: Config) -> AsyncIterator[Backend | None]:
    """What the third tier lies in, to read from; None: there is none. Raises ConfigError."""
    options = l3_options(config)
    if options is None:
        yield None
        return
    backend = options.open_backend(SystemClock())
    try:
        yield backend
    finally:
        with trio.CancelScope(shield=True):
            await backend.aclose()
