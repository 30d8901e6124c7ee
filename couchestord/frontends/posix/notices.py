"""Tells the kernel to forget what it has looked up.

Sources: `fuse_notify` in the kernel's fs/fuse/dev.c, and include/uapi/linux/fuse.h for the messages.
"""

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import trio

from couchestord.frontends.posix.filesystem import ROOT
from couchestord.io.catalog.changes import Changes

_HEAD: Final = struct.Struct("<IiQ")
_INODE: Final = struct.Struct("<Qqq")
_ENTRY: Final = struct.Struct("<QII")
_OF_INODE, _OF_ENTRY, _OF_ALL = 2, 3, 8
_ATTRIBUTES_ONLY: Final = -1
_AT_ONCE_MAX: Final = 8
"""So many threads may wait until calls have ended in which the kernel holds what it is to forget."""


def device() -> int:
    """One more descriptor by which this process serves the kernel. It is never closed: a thread may wait in it for
    long. Raises FileNotFoundError when this process serves no mount.
    """
    for each in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(each) == "/dev/fuse":
                return os.dup(int(each.name))
        except FileNotFoundError:  # the listing's own
            continue
    raise FileNotFoundError(errno.ENOENT, "this process serves no mount")


class Notices:
    """To the kernel above one mount."""

    def __init__(self, device: int, root: int | None) -> None:
        """`root`: the number of the directory that the mount's top is, None when that has buckets."""
        self._device = device
        self._root = root
        self._threads = trio.CapacityLimiter(_AT_ONCE_MAX)

    async def show(self, changes: Changes) -> None:
        """Returns when the kernel has forgotten what is otherwise now. It may have to wait for calls that are under way
        in a directory, which must not wait for this. When it is cancelled the kernel forgets it later.
        """
        if changes.everything:
            self.forget_everything()
        await self._say_in_thread(list(self._messages(changes)))

    async def take_written(self, files: list[int]) -> None:
        """Returns when the kernel has handed over what was written to these files; it keeps no bytes of them."""
        await self._say_in_thread([_inode(id_, 0) for id_ in files])

    async def _say_in_thread(self, messages: list[bytes]) -> None:
        # a call that it waits for may itself wait for the next daemon, which whoever is cancelled makes way for
        await trio.to_thread.run_sync(self._say_all, messages, abandon_on_cancel=True, limiter=self._threads)

    def forget_everything(self) -> bool:
        """All that was looked up by name is looked up again. False: the kernel, one before Linux 6.16, cannot. Does not
        wait for anything.
        """
        return self._say(_message(_OF_ALL, b""))

    def _messages(self, changes: Changes) -> Iterator[bytes]:
        # bytes first: attributes that are asked for when they are known to be others go with new bytes
        for id_ in changes.bodies:
            yield _inode(id_, 0)
        for id_ in {*changes.nodes, *(directory for directory, _ in changes.names)}:
            yield _inode(self._number(id_), _ATTRIBUTES_ONLY)
        for directory, name in changes.names:
            yield _entry(self._number(directory), name)
        if self._root is None and changes.buckets:
            yield _inode(ROOT, _ATTRIBUTES_ONLY)
            for bucket in changes.buckets:
                yield _entry(ROOT, bucket.encode())

    def _number(self, id_: int) -> int:
        return ROOT if id_ == self._root else id_

    def _say_all(self, messages: list[bytes]) -> None:
        for message in messages:
            self._say(message)

    def _say(self, message: bytes) -> bool:
        try:
            os.write(self._device, message)
        except OSError:
            # most often ENOENT: the kernel knows nothing of it. Else it is unmounted, or cannot
            return False
        return True


def _message(kind: int, body: bytes) -> bytes:
    return _HEAD.pack(_HEAD.size + len(body), kind, 0) + body


def _inode(number: int, first: int) -> bytes:
    """Its attributes, and its bytes from `first` on unless that is negative."""
    return _message(_OF_INODE, _INODE.pack(number, first, 0))


def _entry(directory: int, name: bytes) -> bytes:
    return _message(_OF_ENTRY, _ENTRY.pack(directory, len(name), 0) + name + b"\0")
