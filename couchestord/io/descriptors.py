"""Open descriptors by path, so that a call need not open its file each time.

Shared by a disk's threads and the loop, under one lock that is never held across a system call that may wait. A
descriptor is counted while a thread uses it; dropped from the cache (evicted, renamed, unlinked) it is closed by its
last user. So a number never changes its meaning under a read.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable

FILE_MODE = 0o600


class Descriptor:
    """An open file. `number` is valid between acquire and release."""

    __slots__ = ("cached", "number", "synced", "users", "writable", "writes")

    def __init__(self, number: int, writable: bool) -> None:
        self.number = number
        self.writable = writable
        self.users = 0
        self.cached = False
        self.writes = 0
        self.synced = 0


class Descriptors:
    """A bounded cache of descriptors, least recently used out first; at most `count_max` idle ones, plus those in use.

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
            os.close(descriptor.number)

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
            os.close(descriptor.number)

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
                os.close(descriptor.number)
