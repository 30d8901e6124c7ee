"""Which pieces of a file become one, and what of them is still the same when that is done. Pure."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

from couchestord.io.catalog.piecerows import BYTES_PER_PIECE
from couchestord.io.catalog.read import PieceRow
from couchestord.io.fileoutcomes import Lay
from couchestord.io.outcome import Piece

BATCH_BYTES: Final = 4 << 20
BATCH_PIECES: Final = 256
"""What is joined at a time: read into memory, and applied while all writers wait."""
_WINDOW_BYTES: Final = 1 << 20
_COST_BYTES: Final = BYTES_PER_PIECE * 5 // 4
"""Copied at most for each piece less. Where nothing is so cheap any more, a file has fewer pieces than it may have."""


def next_crowded(pieces: Sequence[PieceRow], at: int) -> tuple[list[PieceRow], int]:
    """Of pieces of a file, in order, that end behind `at`: what is to be joined next from there on, a batch at most,
    and where the search goes on. It is windows that follow each other and in which many pieces touch.

    All of a window is taken, so that contents that lie in it die as a whole. Holes are not filled.
    """
    found: list[PieceRow] = []
    size = index = 0
    while index < len(pieces) and len(found) < BATCH_PIECES and size < BATCH_BYTES:
        low = max(at, pieces[index].start)
        high = (low // _WINDOW_BYTES + 1) * _WINDOW_BYTES
        window: list[PieceRow] = []
        while index < len(pieces) and len(found) + len(window) < BATCH_PIECES and pieces[index].start < high:
            window.append(_cut(pieces[index], low, high))
            at = window[-1].start + window[-1].length
            if pieces[index].start + pieces[index].length > high:
                break
            index += 1
        if _is_crowded(window):
            found += window
            size += sum(row.length for row in window)
        elif found:
            break
        elif len(window) == 1 and index < len(pieces):
            # nor is there another in the windows up to the one that it ends in
            at = max(at, (pieces[index].start + pieces[index].length - 1) // _WINDOW_BYTES * _WINDOW_BYTES)
    return found, at


def _cut(row: PieceRow, low: int, high: int) -> PieceRow:
    """What of a piece lies from `low` to before `high`."""
    start = max(row.start, low)
    length = min(row.start + row.length, high) - start
    return PieceRow(start, row.content, row.content_start + start - row.start, length)


def _is_crowded(window: Sequence[PieceRow]) -> bool:
    saved = sum(one.start + one.length == other.start for one, other in pairwise(window))
    return sum(row.length for row in window) <= _COST_BYTES * saved


def still_there(old: Sequence[Piece], present: Callable[[int, int], Sequence[PieceRow]]) -> tuple[Lay, ...]:
    """Where a content that has the bytes of these pieces, one behind the other, may be laid over a file: those ranges
    whose bytes are still of the same place in the same content. `present`: the pieces of the file in a range.
    """
    lays: list[Lay] = []
    position = 0
    for piece in old:
        end = piece.offset + piece.length
        for row in present(piece.offset, end):
            low, high = max(piece.offset, row.start), min(end, row.start + row.length)
            is_same = (row.content, row.content_start - row.start) == (
                piece.content,
                piece.content_offset - piece.offset,
            )
            if low >= high or not is_same:
                continue
            start = position + low - piece.offset
            last = lays[-1] if lays else None
            if last is not None and (last.offset + last.length, last.start + last.length) == (low, start):
                lays[-1] = Lay(last.offset, last.start, last.length + high - low)
            else:
                lays.append(Lay(low, start, high - low))
        position += piece.length
    return tuple(lays)
