"""File systems of our own on loop devices, whose power can be cut. Needs root."""

import errno
import fcntl
import os
import shutil
import struct
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

import pytest

Kind = Literal["ext4", "xfs"]
_SHUTDOWN: Final = 0x8004587D
_NOLOGFLUSH: Final = 2
_XFS_BYTES_MIN: Final = 300 << 20
_BUSY_S: Final = 20.0


def need(*programs: str) -> None:
    """Skip the test where it cannot be run."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts file systems")
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def _run(*line: str | Path) -> str:
    done = subprocess.run([str(word) for word in line], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise OSError(f"{line[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


class LoopDisk:
    """A file system in the file `image`, mounted at `folder`."""

    def __init__(self, image: Path, folder: Path, kind: Kind, size_bytes: int) -> None:
        self.folder = folder
        self._device = ""
        self._mounted = False  # asking a file system that was cut gives EIO
        with image.open("wb") as file:
            file.truncate(max(size_bytes, _XFS_BYTES_MIN) if kind == "xfs" else size_bytes)
        quick = ["-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", "-m", "0"]
        # blocks smaller than pages, which mkfs takes for small images, make SQLite's mapped file fault when it is full
        quick = ["-K"] if kind == "xfs" else [*quick, "-b", "4096"]
        _run(f"mkfs.{kind}", "-q", *quick, image)
        self._device = _run("losetup", "--find", "--show", image)

    def mount(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        _run("mount", self._device, self.folder)
        self._mounted = True

    def unmount(self) -> None:
        if self._mounted:
            until_s = time.monotonic() + _BUSY_S
            while True:
                try:
                    _run("umount", self.folder)
                    break
                except OSError as error:
                    # a process that a daemon had just started when it was killed goes by itself, a moment later
                    if "busy" not in str(error) or time.monotonic() > until_s:
                        raise
                    time.sleep(0.1)
            self._mounted = False

    def cut(self) -> None:
        """The power goes: nothing that was not synced is there after the next mount; every call fails until then."""
        number = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(number, _SHUTDOWN, struct.pack("I", _NOLOGFLUSH))
        finally:
            os.close(number)

    def freeze(self) -> None:
        _run("fsfreeze", "--freeze", self.folder)

    def thaw(self) -> None:
        if self._mounted:
            subprocess.run(["fsfreeze", "--unfreeze", self.folder], capture_output=True, check=False, timeout=60)

    def remount(self, options: str) -> None:
        _run("mount", "-o", f"remount,{options}", self.folder)

    def free_bytes(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Another program's file takes all room but `leave_bytes`."""
        with (self.folder / "filler").open("wb", buffering=0) as file:
            left = self.free_bytes() - leave_bytes
            try:
                if leave_bytes:
                    os.posix_fallocate(file.fileno(), 0, max(1, left))
                    return
                while left > 0:
                    left -= file.write(bytes(min(left, 1 << 16)))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def fill_wholly(self) -> None:
        """As `fill`, to the last block."""
        self.fill()
        for number in range(10):
            # a file in many places may need one more to say where the next is: the last go to files of their own
            with (self.folder / f"filler-{number}").open("wb", buffering=0) as file:
                for piece_bytes in (4096, 512):
                    with suppress(OSError):
                        while file.write(bytes(piece_bytes)):
                            pass
                # what was reserved for it and not needed is free now
                os.fsync(file.fileno())
            found = os.statvfs(self.folder)
            if not found.f_bavail:
                return
        raise AssertionError(f"{found.f_bavail} blocks are left")

    def destroy(self) -> None:
        """Unmount as best as can be and give the device back."""
        try:
            if self._mounted:
                subprocess.run(["umount", "--lazy", self.folder], capture_output=True, check=False, timeout=60)
        finally:
            if self._device:
                subprocess.run(["losetup", "--detach", self._device], capture_output=True, check=False, timeout=60)
                self._device = ""


class LoopStore:
    """A data folder whose catalog and whose six disks lie each on a file system of their own. A context manager."""

    def __init__(self, folder: Path, kind: Kind, disk_bytes: int, catalog_bytes: int = 64 << 20) -> None:
        self.data = folder / "data"
        self.disks: list[LoopDisk] = []
        self._made: list[LoopDisk] = []
        try:
            self.root = self._make(folder / "root.img", self.data, kind, catalog_bytes)
            self.root.mount()
            for index in range(6):
                self.disks.append(self._make(folder / f"{index}.img", self.data / f"disk-{index}", kind, disk_bytes))
                self.disks[-1].mount()
        except BaseException:
            self._destroy()
            raise

    def _make(self, image: Path, folder: Path, kind: Kind, size_bytes: int) -> LoopDisk:
        made = LoopDisk(image, folder, kind, size_bytes)
        self._made.append(made)
        return made

    def __enter__(self) -> "LoopStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._destroy()

    def _destroy(self) -> None:
        for made in reversed(self._made):
            made.thaw()
            made.destroy()

    def cycle(self) -> None:
        """All file systems are unmounted and mounted again: what a boot after a power cut does."""
        for disk in reversed([self.root, *self.disks]):
            disk.unmount()
        for disk in (self.root, *self.disks):
            disk.mount()
