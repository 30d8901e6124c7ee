"""The narrow door through which every byte that must last goes.

A `Disk` holds files by name in folders of one level (`journal/...`, `segments/...`, or a bare name). Files are written
at an offset and made durable by `sync`; a file's name is made durable by `sync_dir` of its folder. What was not synced
may be lost, torn or reordered by a crash, and code above must hold for every subset of it.

Errors, all of them `couchestord.errors.DiskError`: `NoSuchFile`, `DiskFull`, `DiskTimeout`, and `DiskFailed` for
everything else. After a failed or timed-out sync nobody knows what lies on the medium: the caller must not retry it on
the same file but write the data elsewhere. Buffers handed to `write_at` must not change until the call returns, and
never at all after it raised DiskTimeout (the abandoned thread may still read them): hand over bytes, or memory that is
dropped then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from couchestord.io.joint import Joint

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Capacity:
    """Room on the file system under a disk, in bytes."""

    total_bytes: int
    free_bytes: int
    file_system: int
    """Disks that give the same number lie on one file system: this room is theirs together."""


class Disk(Protocol):
    """One disk. All calls come from the store's trio task context; every async call ends once it was begun, within the
    disk's deadline. Until then it waits while others end.
    """

    @property
    def name(self) -> str:
        """For people: the folder, the device."""
        ...

    @property
    def failure(self) -> str | None:
        """Why every call fails at once with DiskFailed, for good; None while the disk is well."""
        ...

    async def write_at(self, path: str, offset: int, buffers: Sequence[Buffer], *, sync: bool = False) -> None:
        """Write all buffers, one after the other, at `offset`; the file is made if it is missing, its folder too.

        With `sync` the file's data and size are durable on return, as after `sync`. The whole is written or an error
        raised.
        """
        ...

    def begin_write(self, path: str, offset: int, buffers: Sequence[Buffer], joint: Joint) -> Callable[[], None]:
        """As `write_at` with `sync`, without waiting: a call of the joint. When that is over, what is returned here
        raises what the write ended with, or nothing when it is durable. DiskFailed may be raised at once.
        """
        ...

    async def read(self, path: str, offset: int, length: int) -> bytes:
        """At most `length` bytes at `offset`; fewer only at the end of the file. Not verified: that is the caller's
        part.
        """
        ...

    async def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """As `read`, of several (offset, length) of one file, in one call."""
        ...

    def read_nowait(self, path: str, offset: int, length: int) -> bytes | bytearray | None:
        """As `read` without waiting: None when the bytes are not resident in memory, or on any error.

        A bytearray is the caller's alone.
        """
        ...

    def read_into_nowait(self, path: str, offset: int, buffer: memoryview) -> bool:
        """As `read_nowait`, over the caller's memory: False when it could not be filled; it holds anything then."""
        ...

    async def preallocate(self, path: str, offset: int, length: int) -> None:
        """Make `length` bytes at `offset` (at or past the end) real zeroes, synced, so that later writes into them
        cost no metadata.
        """
        ...

    async def allocate(self, path: str, length: int) -> None:
        """Set room aside for the first `length` bytes of a file, which is made if it is missing and is at least so long
        afterwards: what was there stays, the rest reads as zeroes, and writes into it find room. Nothing is synced.
        """
        ...

    async def sync(self, path: str) -> None:
        """Data and size of the file are durable on return. DiskFailed: see the module's text."""
        ...

    async def sync_dir(self, folder: str) -> None:
        """The names in `folder` (`""` for the disk's root) are durable on return."""
        ...

    async def rename(self, path: str, to: str) -> None:
        """Atomically, over an existing file too. Durable after `sync_dir`."""
        ...

    async def unlink(self, path: str) -> None:
        """Remove the name; NoSuchFile when it is not there. A read under way ends well."""
        ...

    async def let_go(self) -> None:
        """Close files that another process has removed or replaced: they take their room for as long as one has them
        open, and are read in place of what the name leads to now. To be called now and then beside one that writes.
        """
        ...

    async def list(self, folder: str) -> dict[str, int]:
        """Size in bytes by file name, of the files in `folder`; empty when there is no such folder."""
        ...

    async def capacity(self) -> Capacity: ...

    def close(self) -> None:
        """Give descriptors, lock and threads back. No call may follow."""
        ...
