"""Sums of the catalog's pages, so that rot in the file is found when it is opened. SQLite itself keeps none.

A file beside the catalog (`catalog.sqlite.sums`) holds XXH3 of every page of the main file as the last complete
checkpoint left it. A page that differs is well only when the WAL holds it, because then a checkpoint was cut off while
it wrote that page.
"""

import os
import struct
from array import array
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from couchestord.errors import Corrupt
from couchestord.io.catalog.wal import committed_pages, frame_pages, salt_of
from couchestord.io.checksum import xxh3_64
from couchestord.io.folder import sync_folder
from couchestord.io.sqlite import checkpoint, open_reader, sqlite_errors, truncate_wal

PAGE_BYTES = 4096
_HEADER = struct.Struct("<4sHHQQ")
_MAGIC = b"CSUM"
_VERSION = 1
_READ_BYTES = 4 << 20


def sums_path(path: Path) -> Path:
    """Where the sums of a catalog lie."""
    return Path(f"{path}.sums")


class MainFile:
    """The main file of a catalog, to be read past SQLite.

    Opened before the first connection to it and closed after the last: whoever closes a descriptor of a file drops all
    locks that his process holds on it, SQLite's too. Another program that opened the catalog then would believe itself
    alone, and remove the WAL when it ends.
    """

    def __init__(self, path: Path) -> None:
        """Raises Corrupt when it cannot be opened."""
        self.path = path
        self._descriptor = self._open()

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Corrupt(f"opening the catalog {self.path}: {error}") from error

    def replaced(self) -> None:
        """Another file has its name, and nobody has either open. Raises Corrupt; then this goes on with the old one."""
        descriptor = self._open()
        os.close(self._descriptor)
        self._descriptor = descriptor

    def size_bytes(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read(self, at: int, size: int) -> bytes:
        """`size` bytes from offset `at` on, fewer at the end. Blocks. Raises Corrupt when they cannot be read."""
        data = b""
        try:
            while len(data) < size and (more := os.pread(self._descriptor, size - len(data), at + len(data))):
                data += more
        except OSError as error:
            raise Corrupt(f"its pages cannot be read: {error}") from error
        return data

    def close(self) -> None:
        """As connections: again does nothing, where another file may have the number by then."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def page_sums(main: MainFile) -> "array[int]":
    """XXH3 of every page, seeded with its number. Blocks: about 0.2 s for a million objects."""
    sums = array("Q")
    while block := main.read(len(sums) * PAGE_BYTES, _READ_BYTES):
        view = memoryview(block)
        for at in range(0, len(block), PAGE_BYTES):
            sums.append(xxh3_64(view[at : at + PAGE_BYTES], len(sums)))
    return sums


def store_sums(path: Path) -> None:
    """Write and sync the sums of the main file as it is now, which nobody has open. Blocks. Raises Corrupt, OSError."""
    with closing(MainFile(path)) as main:
        _store(path, page_sums(main))


class Moved(NamedTuple):
    """How much of a WAL was moved and summed ahead of the checkpoint that empties it."""

    salt: bytes
    frames: int


NOTHING: Final = Moved(b"", 0)


def checkpoint_ahead(main: MainFile) -> Moved:
    """Move what the WAL holds now into the main file and sum it, while others write, so that little is left to
    `checkpoint_with_sums`. Blocks.

    The WAL cannot begin anew meanwhile, since a reader is in it: it goes on holding every page that was moved.
    """
    path = main.path
    with closing(open_reader(path)) as holding, sqlite_errors(f"checkpointing the catalog {path}"):
        holding.execute("begin")
        holding.execute("select sequence from state").fetchone()
        # a reader of an empty WAL is not in it, and keeps everything from being moved
        _, frames = checkpoint(path)
        if frames <= 0:
            return NOTHING
        wal = Path(f"{path}-wal")
        _sum_moved(main, set(frame_pages(wal)[:frames]))
        return Moved(salt_of(wal), frames)


def checkpoint_with_sums(main: MainFile, ahead: Moved = NOTHING) -> bool:
    """Move the whole WAL into the main file, sum the pages it held anew, and let the WAL begin anew, empty.

    Blocks, for a time that grows with the WAL, less what was moved `ahead`, and not with the catalog. Nobody may write
    meanwhile. False when a reader was in the way; then the sums are as they were, and the WAL still holds every page
    that differs from them.
    """
    path, wal = main.path, Path(f"{main.path}-wal")
    # the WAL may have begun anew since
    first = ahead.frames if salt_of(wal) == ahead.salt else 0
    pages = frame_pages(wal, first)
    frames, moved = checkpoint(path)
    if frames != moved:
        return False
    # what lies behind them was never committed, and not moved
    _sum_moved(main, set(pages[: max(0, frames - first)]))
    truncate_wal(path)
    return True


def _sum_moved(main: MainFile, pages: set[int]) -> None:
    try:
        _advance(main, pages)
    except (OSError, Corrupt):
        # SQLite may reuse the WAL from here on, and nobody would sum these pages again: the next time all are summed
        sums_path(main.path).unlink(missing_ok=True)
        raise


def _advance(main: MainFile, pages: set[int]) -> None:
    """Store the sums with those of `pages`, and of pages that are new, taken from the main file."""
    try:
        sums = _load(main.path)
    except (FileNotFoundError, Corrupt):
        sums = page_sums(main)
    else:
        count = -(-main.size_bytes() // PAGE_BYTES)
        pages |= set(range(len(sums), count))
        sums.extend([0] * (count - len(sums)))
        del sums[count:]
        for number in sorted(page for page in pages if page < count):
            sums[number] = xxh3_64(main.read(number * PAGE_BYTES, PAGE_BYTES), number)
    _store(main.path, sums)


def _store(path: Path, sums: "array[int]") -> None:
    payload = sums.tobytes()
    header = _HEADER.pack(_MAGIC, _VERSION, 0, len(payload), xxh3_64(payload))
    temporary = Path(f"{sums_path(path)}.new")
    with temporary.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(header + payload)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(sums_path(path))
    # the WAL is emptied next: the new sums must not be lost before that
    sync_folder(path.parent)


def verify_pages(path: Path) -> None:
    """As `verify_open_pages`, of a catalog that nobody has open."""
    with closing(MainFile(path)) as main:
        verify_open_pages(main)


def verify_open_pages(main: MainFile) -> None:
    """Raises Corrupt when a page of the main file cannot be read, or differs from the last checkpoint's and the WAL
    does not hold it. Blocks.
    """
    try:
        expected = _load(main.path)
        found = page_sums(main)
        if len(found) < len(expected):
            raise Corrupt(f"{len(expected) - len(found)} of its {len(expected)} pages are missing")
        differing = {number for number, total in enumerate(expected) if found[number] != total}
        lost = differing - committed_pages(Path(f"{main.path}-wal")) if differing else differing
    except FileNotFoundError:
        return  # never checkpointed: all there is lies in the WAL, which has sums of its own
    except OSError as error:
        raise Corrupt(f"its sums or its WAL cannot be read: {error}") from error
    if lost:
        raise Corrupt(f"{len(lost)} of its {len(expected)} pages fail their checksum, the first is page {min(lost)}")


def stored_sums(main: MainFile) -> "array[int]":
    """What the last checkpoint summed, for `check_pages`; all pages summed now when that was lost. Blocks. Raises
    Corrupt.
    """
    try:
        return _load(main.path)
    except FileNotFoundError:
        return page_sums(main)


def check_pages(sums: "array[int]", first: int, data: bytes) -> None:
    """Raises Corrupt when `data`, pages of a main file from number `first` on, is not what the sums are of."""
    view = memoryview(data)
    for number, at in enumerate(range(0, len(data), PAGE_BYTES), start=first):
        if number >= len(sums) or xxh3_64(view[at : at + PAGE_BYTES], number) != sums[number]:
            raise Corrupt(f"page {number} of the catalog is not what the last checkpoint left")


def _load(path: Path) -> "array[int]":
    """The sums as the last checkpoint stored them. Raises FileNotFoundError, Corrupt."""
    stored = sums_path(path).read_bytes()
    if len(stored) < _HEADER.size:
        raise Corrupt("the sums of its pages are damaged")
    magic, version, _, length, checksum = _HEADER.unpack_from(stored)
    payload = stored[_HEADER.size : _HEADER.size + length]
    if magic != _MAGIC or version != _VERSION or xxh3_64(payload) != checksum:
        raise Corrupt("the sums of its pages are damaged")
    sums = array("Q")
    sums.frombytes(payload)
    return sums
