"""Watches the disks: notices one that went, takes back one that returned, and opens full ones to new data again."""

import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import trio

from couchestord import logs
from couchestord.errors import DiskError, DiskTimeout, Error, NotAStore, ShuttingDown
from couchestord.io.directory import DirectoryDisk
from couchestord.io.disks import Disks, read_superblock, replicas_needed
from couchestord.io.room import ask_room
from couchestord.io.superblock import PATH
from couchestord.io.threads import STOOD_STILL_S
from couchestord.service import Progress

log = logs.get(__name__)
Answer = TypeVar("Answer")
GONE = "the folder is gone"
PENALTY_S_MIN = 2.0
PENALTY_S_MAX = 300.0
"""How long a disk is left out after a failed call: doubled with every failure."""
HANGS_S = 300.0
"""So long a folder that does not answer is left alone: doubled each time."""
FORGIVEN_AFTER_S = 600.0
"""A disk that was back for so long without another failed call begins with the shortest time again."""
ROOM_AGAIN = 0.5
"""A file system is open to new data again with so much free beyond what is kept from it, as a part of that."""
KEPT_AGAIN = 0.25
"""One that was full is open to what may use what is kept, with so much of it free."""


class Monitor:
    """A service; each step looks at every disk once. What a disk that returned lacks is found out beside, in a task of
    its own: that reads every header on it, and the others are to be looked at meanwhile.
    """

    name = "monitor"

    def __init__(
        self,
        disks: Disks,
        interval_s: float,
        deadline_s: float,
        missed: Callable[[int], Awaitable[None]],
        returned: Callable[[int], Awaitable[None]],
        nursery: trio.Nursery,
    ) -> None:
        """`missed` is told of each disk that is away, again and again, and returns when that is durable. `returned`
        compares a disk that was away, in a task of `nursery`; cancel it before the disks are closed.
        """
        self._nursery = nursery
        self._disks = disks
        self._deadline_s = deadline_s
        self._missed = missed
        self._returned = returned
        self.folders: list[Path] = []
        self._threads: dict[str, trio.CapacityLimiter] = {}
        """By folder, of one each."""
        self._hanging: dict[str, tuple[float, float]] = {}
        """Folders that do not answer: until when they are not asked, and for how long that is."""
        self._good_before: set[int] = set()
        self._penalty_s: dict[int, float] = {}
        self._not_before: dict[int, float] = {}
        self._good_since: dict[int, float] = {}
        """When a disk came back after its last failed call."""
        self.uncompared: set[int] = set()
        """Disks that were away, until it is known what they lack: nobody may count on what lies there before."""
        self._comparing: set[int] = set()
        self._held: Callable[[], None] | None = None
        self._has_enough: Callable[[], bool] = lambda: False
        self.interval_s = interval_s

    def watch(self, folders: Sequence[Path]) -> None:
        """Where disks that are missing may turn up."""
        self.folders = list(folders)

    def expect(self, index: int) -> None:
        """Another disk takes that place: how often the one before failed is not held against it."""
        for memory in (self._penalty_s, self._not_before, self._good_since):
            memory.pop(index, None)

    def hold(self, better: Callable[[], None]) -> None:
        """Nothing may be written, so no disk is taken back: `better` is called when one is there, or when disks that
        are full now, for data or even for their superblock, have room.
        """
        self._held = better
        # what there is enough of already made it no better
        self._has_enough = next((f for f in (self._has_room, self._has_writers) if not f()), self._has_enough)

    def _has_room(self) -> bool:
        return len(self._disks.roomy()) >= replicas_needed(self._disks.m, self._disks.missing_count())

    def _has_writers(self) -> bool:
        return len(self._disks.spare()) >= self._disks.writers_needed

    async def work(self) -> Progress:
        for index in self._disks.good():
            disk = self._disks.get(index)
            if isinstance(disk, DirectoryDisk):
                if disk.failure is not None:
                    self._disks.fail(index, disk.failure)
                elif not await self._is_present(disk):
                    disk.suspect(GONE)
                    self._disks.fail(index, GONE)
        await self._look_for_room()
        if self._held and self._has_enough():
            self._held()
        self._punish_failures()
        if self._disks.missing_count():
            await self._note_missing()
            self._disks.release_failed()
            for folder in self.folders:
                await self._try_return(folder)
        self.welcome(self.uncompared)
        return Progress.IDLE

    def is_whole(self) -> bool:
        """True when every disk is here, and it is known what each holds."""
        return not self._disks.missing_count() and not self.uncompared

    async def _is_present(self, disk: DirectoryDisk) -> bool:
        """Whether the folder is still where it was; a disk that does not say so in time counts as gone."""
        try:
            return await self.ask(disk.name, disk.is_present)
        except DiskTimeout:
            return False

    async def ask(self, folder: str, question: Callable[[], Answer]) -> Answer:
        """What a folder that may hang says. It is asked in a thread of its own: others that hang, and whatever else
        the process does in threads, keep nobody waiting here. Raises DiskTimeout.
        """
        threads = self._threads.setdefault(folder, trio.CapacityLimiter(1))
        for _ in range(2):
            until_s = trio.current_time() + self._deadline_s
            with trio.move_on_after(self._deadline_s):
                return await trio.to_thread.run_sync(question, abandon_on_cancel=True, limiter=threads)
            if trio.current_time() - until_s <= STOOD_STILL_S:
                break
        raise DiskTimeout(f"{folder} does not answer")

    def _punish_failures(self) -> None:
        """A disk that failed a call, rather than went, may return only after a while, longer each time."""
        now = trio.current_time()
        for index, reason in self._disks.failures.items():
            if index in self._good_before and reason != GONE:
                last_s = self._penalty_s.get(index, 0.0)
                if now - self._good_since.pop(index, now) >= FORGIVEN_AFTER_S:
                    last_s = 0.0
                self._penalty_s[index] = min(PENALTY_S_MAX, max(PENALTY_S_MIN, 2 * last_s))
                self._not_before[index] = now + self._penalty_s[index]
        self._good_before = set(self._disks.good())

    async def _look_for_room(self) -> None:
        for index, room in (await ask_room(self._disks)).items():
            kept_bytes = room.free_bytes - room.left_bytes
            if room.left_bytes < 0:
                self._disks.set_tight(index, True)
            elif room.left_bytes > kept_bytes * ROOM_AGAIN:
                self._disks.set_tight(index, False)
            if room.free_bytes > kept_bytes * KEPT_AGAIN:
                self._disks.room_again(index)

    async def _note_missing(self) -> None:
        """Before any of them is back: its superblock says then that it knows all."""
        try:
            self._disks.check_writable()
            for index in list(self._disks.failures):
                await self._missed(index)
        except Error as error:
            # where nothing can be written they miss nothing
            log.debug("disks that are away could not be noted", reason=str(error))

    async def _try_return(self, folder: Path) -> None:
        """Take a disk back that lies in `folder`, if it is one of ours that is missing."""
        if self._disks.is_used(str(folder)) or not await self._answers(folder):
            return
        try:
            disk = await DirectoryDisk.open(folder, deadline_s=self._deadline_s)
        except Error as error:
            log.debug("disk cannot be opened", disk=str(folder), reason=str(error))
            return
        is_taken = False
        try:
            identity, _ = await read_superblock(disk)
            if identity.index not in self._disks.failures:
                raise NotAStore(f"{folder} claims to be disk {identity.index}, which is here already")
            if trio.current_time() < self._not_before.get(identity.index, 0):
                return
            if self._held:
                if identity.store_id != self._disks.store_id:
                    raise NotAStore(f"{folder} belongs to another store")
                self._held()
                return
            await self._disks.join(identity.index, disk)
            is_taken = True
        except Error as error:
            log.warning("disk is not taken back", disk=str(folder), reason=str(error))
            return
        finally:
            if not is_taken:
                # when this step is cancelled, too: it is locked, and the next start wants it
                disk.close()
        # one that fails before the next step was good, too
        self._good_before.add(identity.index)
        self._good_since.setdefault(identity.index, trio.current_time())
        self.welcome([identity.index])

    async def _answers(self, folder: Path) -> bool:
        """True when `folder` has a superblock and takes a change in time. One that hangs is not waited for at every
        step: it is not asked again before the thread that asked it last is back, or only after a long while.
        """
        if self._hangs(str(folder)):
            return False

        def ask() -> bool:
            try:
                if not (folder / PATH).exists():
                    return False
                os.utime(folder)  # waits for ever on a frozen file system, is refused by one that is read-only
                return True
            except OSError:
                return False

        try:
            return await self.ask(str(folder), ask)
        except DiskTimeout:
            return False

    def _hangs(self, folder: str) -> bool:
        """Whether it has not answered who asked last. What that thread waits for may be a disk that is mounted there no
        more, and it waits for ever: so another may ask in the end, ever less often.
        """
        asking, now = self._threads.get(folder), trio.current_time()
        if asking is None or not asking.borrowed_tokens:
            self._hanging.pop(folder, None)
            return False
        until_s, pause_s = self._hanging.setdefault(folder, (now + HANGS_S, HANGS_S))
        if now < until_s:
            return True
        del self._threads[folder]
        self._hanging[folder] = now + 2 * pause_s, 2 * pause_s
        return False

    def welcome(self, indexes: Iterable[int]) -> None:
        """Disks that were away are here: what is gone is removed and what they missed is queued, beside. `work` tries
        again what failed.
        """
        if self._held:
            return  # the catalog may end behind the log, and not know where a shard was made anew
        self.uncompared.update(indexes)
        for index in sorted(self.uncompared - self._comparing):
            self._comparing.add(index)
            self._nursery.start_soon(self._compare, index)

    async def _compare(self, index: int) -> None:
        disk, is_done = self._disks.get(index), False
        try:
            await self._returned(index)
        except ShuttingDown:
            pass  # no fault of the disk's
        except Error as error:
            log.error("a returned disk could not be compared", disk=self._disks.name(index), reason=str(error))
            if isinstance(error, DiskError) and self._disks.get(index) is disk:
                self._disks.fail(index, error)
        except Exception:
            # the nursery is everybody's
            log.exception("a returned disk could not be compared", disk=self._disks.name(index))
        else:
            # another one may have come in its place meanwhile
            is_done = self._disks.get(index) is disk
        finally:
            self._comparing.discard(index)
        # one that is away again is compared when it returns
        if is_done or self._disks.get(index) is None:
            self.uncompared.discard(index)
