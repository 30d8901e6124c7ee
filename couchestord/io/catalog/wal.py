"""Which pages SQLite's WAL holds, read from its file. Blocks.

The file is a header of 32 bytes and frames: a head of 24 bytes and a page. A frame counts when it bears the salt of the
header, when its checksum, which runs over all before it as well, is right, and when a frame that commits is at it or
behind it (https://www.sqlite.org/fileformat2.html, section 4).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_HEADER_BYTES: Final = 32
_HEADER = struct.Struct(">IIIIIIII")
_FRAME = struct.Struct(">IIIIII")
_WORD: Final = 0xFFFFFFFF


def salt_of(wal: Path) -> bytes:
    """What tells a WAL from the one before it; empty when there is none."""
    try:
        with wal.open("rb") as file:
            return file.read(_HEADER_BYTES)[16:24]
    except FileNotFoundError:
        return b""


def frame_pages(wal: Path, first: int = 0) -> list[int]:
    """The page (from 0) of each frame from `first` on, by the salt alone. For who knows how many of them count."""
    return [number for number, _, _ in _frames(wal, first)]


def committed_pages(wal: Path) -> set[int]:
    """Pages (from 0) that SQLite takes from this WAL when it opens it: what a checkpoint may have been writing."""
    pages: set[int] = set()
    since_commit: set[int] = set()
    for number, is_commit, is_right in _frames(wal, 0, verified=True):
        if not is_right:
            break
        since_commit.add(number)
        if is_commit:
            pages |= since_commit
            since_commit.clear()
    return pages


def _frames(wal: Path, first: int, *, verified: bool = False) -> Iterator[tuple[int, bool, bool]]:
    """(page, whether it commits, whether its checksum is right) of the frames that bear the salt of the header."""
    try:
        file = wal.open("rb")
    except FileNotFoundError:
        return
    with file:
        header = file.read(_HEADER_BYTES)
        if len(header) < _HEADER_BYTES:
            return
        magic, _, page_bytes, _, *salts, sum_0, sum_1 = _HEADER.unpack(header)
        order = ">" if magic & 1 else "<"  # of words as checksums read them; the header's own covers the magic
        sums = _checksum(order, header[:24], (0, 0))
        if verified and sums != (sum_0, sum_1):
            return
        file.seek(first * (_FRAME.size + page_bytes), 1)
        while len(frame := file.read(_FRAME.size + page_bytes)) == _FRAME.size + page_bytes:
            number, size_after_commit, *frame_salts, sum_0, sum_1 = _FRAME.unpack_from(frame)
            if frame_salts != salts:
                return
            if verified:
                sums = _checksum(order, frame[_FRAME.size :], _checksum(order, frame[:8], sums))
            yield number - 1, size_after_commit > 0, sums == (sum_0, sum_1)


def _checksum(order: str, data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    """SQLite's, of data in pairs of words, going on from `sums`."""
    sum_0, sum_1 = sums
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for even in words:
        sum_0 = (sum_0 + even + sum_1) & _WORD
        sum_1 = (sum_1 + next(words) + sum_0) & _WORD
    return sum_0, sum_1
