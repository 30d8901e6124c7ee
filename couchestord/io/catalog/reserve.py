"""Room that is kept beside the catalog, to be freed when there is no other: for a repair, and for deletes."""

import os
from pathlib import Path


class Reserve:
    """A file of zeroes beside the catalog. To make it and to free it blocks."""

    def __init__(self, catalog: Path, size_bytes: int) -> None:
        self._path = Path(f"{catalog}.reserve")
        self._folder = str(catalog.parent)
        self._size_bytes = size_bytes

    def free_bytes(self) -> int:
        """Room on the file system of the catalog. Raises OSError."""
        found = os.statvfs(self._folder)
        return found.f_bavail * found.f_frsize

    def lies_on(self, file_system: int) -> bool:
        """Whether that is the number of the file system of the catalog."""
        try:
            return self._path.parent.stat().st_dev == file_system
        except OSError:
            return False

    def is_whole(self) -> bool:
        """True when the room is kept, or none is to be."""
        try:
            return not self._size_bytes or self._path.stat().st_size >= self._size_bytes
        except OSError:
            return False

    def leaves(self, free_bytes: int, wanted_bytes: int) -> bool:
        """Whether of so much room so much is left beside what is to be kept and is not."""
        # one system call less where there is room enough, as there mostly is
        return free_bytes >= wanted_bytes + self._size_bytes or free_bytes >= wanted_bytes + self.lacking_bytes()

    def lacking_bytes(self) -> int:
        """Room that is to be kept and is not."""
        return 0 if self.is_whole() else self._size_bytes

    def make(self, leave_bytes: int) -> bool:
        """Take the room, if so much is left beside it. True when it is there."""
        if self.is_whole():
            return True
        try:
            if self.free_bytes() < self._size_bytes + leave_bytes:
                return False
            number = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(number, 0, self._size_bytes)
            finally:
                os.close(number)
        except OSError:
            self.free()
            return False
        return True

    def free(self) -> bool:
        """Give the room back. True when there was some."""
        try:
            self._path.unlink()
        except OSError:
            return False  # a file system that refuses that will refuse what the room is for, and then it is said
        return True
