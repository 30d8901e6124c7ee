"""Open descriptors by path, so that a call need not open its file each time.

Who reads a file from one end to the other has a lane of it, open once more: the system looks ahead by what was read
through one opening, so many who read one file at a time would confuse it, and each would wait for each read.

Shared by a disk's threads and the loop, under one lock that is never held across a system call that may wait. A
descriptor is counted while a thread uses it; dropped from the cache (evicted, renamed, unlinked) it is closed by its
last user. So a number never changes its meaning under a read.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable

FILE_MODE = 0o600
LANES_MAX = 64
LANES_PER_FILE_MAX = 16
LANE_BYTES_MIN = 64 << 10
"""Shorter reads are nobody's who reads on and on."""
SKIPPED_BYTES = 4096
"""So much may be passed over: the header of a stripe that is known."""


class Lane:
    """One opening of a file. Threads may read through it at a time: only the system's guesses suffer."""

    __slots__ = ("next", "number")

    def __init__(self, number: int, next_: int) -> None:
        self.number = number
        self.next = next_
        """Where what was read through it ended."""


class Descriptor:
    """An open file. `number` is valid between acquire and release, and so are its lanes."""

    __slots__ = ("cached", "lanes", "number", "synced", "users", "writable", "writes")

    def __init__(self, number: int, writable: bool) -> None:
        self.number = number
        self.writable = writable
        self.users = 0
        self.cached = False
        self.writes = 0
        self.synced = 0
        self.lanes: list[Lane] = []
        """Least recently used first."""

    def close(self) -> None:
        for lane in self.lanes:
            os.close(lane.number)
        os.close(self.number)


class Descriptors:
    """A bounded cache of descriptors, least recently used out first; at most `count_max` idle ones, plus those in use,
    plus LANES_MAX.

    A file written and not yet synced is evicted last, and synced first: the kernel reports a failed write-back to
    those who hold the file open. When that sync fails no caller is left to hear of it, so `on_lost` is told.
    """

    def __init__(self, root: int, count_max: int, on_lost: Callable[[str], None]) -> None:
        assert count_max > 0
        self._root = root
        self._count_max = count_max
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._by_path: OrderedDict[str, Descriptor] = OrderedDict()
        self._left: list[Descriptor] = []
        self._generation = 0
        self._lanes_count = 0

    def acquire(self, path: str, *, write: bool = False) -> Descriptor:
        """The file, opened if need be (made, when `write`). In a thread: may wait. OSError as of open."""
        flags = os.O_NOFOLLOW | (os.O_RDWR | os.O_CREAT if write else os.O_RDONLY)
        while True:
            with self._lock:
                found = self._find(path, write)
                if found is not None:
                    return found
                generation = self._generation
            opened = Descriptor(os.open(path, flags, FILE_MODE, dir_fd=self._root), write)
            dropped: list[tuple[str, Descriptor]] = []
            with self._lock:
                # The name may have been given to another file since; then some rename got on, and this looks again.
                current = generation == self._generation
                found = self._find(path, write) if current else None
                kept = current and found is None
                if kept:
                    opened.users = 1
                    opened.writes = int(write)
                    self._detach(path, dropped)
                    opened.cached = True
                    self._by_path[path] = opened
                    self._evict(dropped)
            self._close_all(dropped)
            if not kept:
                os.close(opened.number)
            if current:
                return found or opened

    def acquire_open(self, path: str) -> Descriptor | None:
        """The file when it is open already, else None. Never waits: fit for the loop."""
        with self._lock:
            return self._find(path, False)

    def lane(self, descriptor: Descriptor, offset: int) -> Lane | None:
        """The lane of who has read up to `offset`, or a new one; None: read through the descriptor itself. To be told
        where the read ends. Never waits: the file is open, and stays so.
        """
        with self._lock:
            lanes = descriptor.lanes
            for lane in lanes:
                if lane.next == offset or lane.next == offset - SKIPPED_BYTES:
                    lanes.remove(lane)
                    lanes.append(lane)
                    return lane
            if len(lanes) >= LANES_PER_FILE_MAX or not self._has_lane_left(descriptor):
                if not lanes:
                    return None
                lane = lanes.pop(0)
            else:
                try:
                    lane = Lane(os.open(f"/proc/self/fd/{descriptor.number}", os.O_RDONLY), offset)
                except OSError:
                    return None
                self._lanes_count += 1
            lanes.append(lane)
            return lane

    def _has_lane_left(self, descriptor: Descriptor) -> bool:
        """Those of files that nobody reads just now are given up when there is none left."""
        if self._lanes_count >= LANES_MAX:
            for other in self._by_path.values():
                if not other.users and other is not descriptor:
                    self._lanes_count -= len(other.lanes)
                    for lane in other.lanes:
                        os.close(lane.number)
                    other.lanes = []
        return self._lanes_count < LANES_MAX

    def has(self, path: str) -> bool:
        """Whether the file is open."""
        with self._lock:
            return path in self._by_path

    def _find(self, path: str, write: bool) -> Descriptor | None:
        found = self._by_path.get(path)
        if found is None or (write and not found.writable):
            return None
        self._by_path.move_to_end(path)
        found.users += 1
        found.writes += write
        return found

    def release(self, descriptor: Descriptor, *, later: bool = False) -> None:
        """End of use. Closes a file that is no longer cached, which may wait, or with `later` leaves that to a
        thread."""
        with self._lock:
            descriptor.users -= 1
            idle = descriptor.users == 0 and not descriptor.cached
            if idle and later:
                self._left.append(descriptor)
                return
        if idle:
            self._close(descriptor)

    def mark_synced(self, descriptor: Descriptor, writes: int) -> None:
        """All up to that count of `writes`, read before the sync, is on the medium."""
        with self._lock:
            descriptor.synced = max(descriptor.synced, writes)

    def forget(self, *paths: str) -> None:
        """These names lead elsewhere now. In a thread: closing an unlinked file frees its room, which may take long."""
        dropped: list[tuple[str, Descriptor]] = []
        with self._lock:
            self._generation += 1
            for path in paths:
                self._detach(path, dropped)
            left, self._left = self._left, []
        for descriptor in [*left, *(descriptor for _, descriptor in dropped)]:
            self._close(descriptor)

    def forget_unlinked(self) -> None:
        """As `forget`, of all files that have no name any more: another process removed or replaced them."""
        with self._lock:
            paths = tuple(self._by_path)
        unlinked = []
        for path in paths:
            held = self.acquire_open(path)
            if held is None:
                continue
            try:
                if not os.fstat(held.number).st_nlink:
                    unlinked.append(path)
            finally:
                self.release(held)
        self.forget(*unlinked)

    def close(self) -> None:
        """Close all, when no call is under way. In a thread, unless nothing can wait."""
        self.forget(*tuple(self._by_path))

    def _detach(self, path: str, dropped: list[tuple[str, Descriptor]]) -> None:
        descriptor = self._by_path.pop(path, None)
        if descriptor is not None:
            descriptor.cached = False
            if descriptor.users == 0:
                dropped.append((path, descriptor))

    def _evict(self, dropped: list[tuple[str, Descriptor]]) -> None:
        while len(self._by_path) > self._count_max:
            clean = (path for path, d in self._by_path.items() if d.writes == d.synced and d.users == 0)
            idle = (path for path, d in self._by_path.items() if d.users == 0)
            victim = next(clean, None) or next(idle, None)
            if victim is None:
                return
            self._detach(victim, dropped)

    def _close_all(self, dropped: list[tuple[str, Descriptor]]) -> None:
        for path, descriptor in dropped:
            try:
                if descriptor.writes != descriptor.synced:
                    os.fdatasync(descriptor.number)
            except OSError as error:
                self._on_lost(f"{path}: written, not synced, lost when it was closed: {error}")
            finally:
                self._close(descriptor)

    def _close(self, descriptor: Descriptor) -> None:
        """Of one that nobody uses, and nobody finds any more."""
        with self._lock:
            self._lanes_count -= len(descriptor.lanes)
        descriptor.close()
