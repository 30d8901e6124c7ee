"""Which pieces are joined, and where a content may take their place."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couchestord.io.catalog.piecerows import BYTES_PER_PIECE
from couchestord.io.catalog.read import PieceRow
from couchestord.io.fileoutcomes import Lay
from couchestord.io.outcome import Piece
from couchestord.store.pieces import BATCH_BYTES, BATCH_PIECES, next_crowded, still_there

K = 1 << 10
WINDOW = 1 << 20


def laid(*lengths: int) -> list[PieceRow]:
    """Pieces one behind the other, each of a content of its number; a negative length is a hole."""
    found, at = [], 0
    for number, length in enumerate(lengths):
        if length > 0:
            found.append(PieceRow(at, number, 0, length))
        at += abs(length)
    return found


def crowded(*lengths: int) -> tuple[list[int], int]:
    """Which are chosen, and where the search goes on."""
    found, at = next_crowded(laid(*lengths), 0)
    return [row.content for row in found], at


@pytest.mark.parametrize(
    ("lengths", "chosen"),
    [
        ([], []),
        ([4 * K], []),
        ([4 * K, 4 * K], [0, 1]),
        ([4 * K, -1, 4 * K], []),
        ([4 * K, 4 * K, -1, 9, 9, 9, -1, 7], [0, 1, 3, 4, 5, 7]),
        ([20 * K, 20 * K], [0, 1]),
        ([20 * K, 20 * K + 1], []),
        ([900 * K, *[1] * 23], list(range(24))),
        ([900 * K, *[1] * 22], []),
    ],
)
def test_pieces_that_touch_are_joined_where_it_is_cheap(lengths: list[int], chosen: list[int]) -> None:
    assert crowded(*lengths) == (chosen, sum(map(abs, lengths)))


def test_windows_are_taken_whole_and_as_many_as_follow_each_other() -> None:
    long = PieceRow(0, 0, 7, WINDOW + 100)
    short = [PieceRow(long.length + 10 * n, n, 0, 10) for n in range(1, 31)]
    last = PieceRow(short[-1].start + 10, 99, 0, 3 * WINDOW)
    rows = [long, *short, last]
    found, at = next_crowded(rows, 0)
    assert found[0] == PieceRow(WINDOW, 0, 7 + WINDOW, 100)
    assert found[1:-1] == short
    assert found[-1] == last._replace(length=2 * WINDOW - last.start)
    assert at == 3 * WINDOW, "the window behind it was looked at, too"
    assert next_crowded([last], at) == ([], last.start + last.length)
    assert next_crowded([*short[20:], last], WINDOW + 300) == ([], last.start + last.length)
    again = [row._replace(start=last.start + 3 * WINDOW + 10 * n) for n, row in enumerate(short)]
    found, _ = next_crowded([*short, last, *again], 0)
    assert found[-1].start == last.start, "not what lies far behind"


def test_a_piece_of_terabytes_is_passed_at_once() -> None:
    rows = [PieceRow(5, 0, 0, 5 << 40), *(PieceRow((5 << 40) + 5 + n, 1, 0, 1) for n in range(40))]
    found, _ = next_crowded(rows, 0)
    assert found == [PieceRow(5 << 40, 0, (5 << 40) - 5, 5), *rows[1:]]
    assert next_crowded(rows[:1], 0) == ([], (5 << 40) + 5)


def test_a_batch_has_a_limit() -> None:
    found, at = crowded(*[10] * 1000)
    assert len(found) == BATCH_PIECES
    assert at == 10 * BATCH_PIECES
    rows = laid(*[20 * K] * 1000)
    found_rows, at = next_crowded(rows, 0)
    assert sum(row.length for row in found_rows) == BATCH_BYTES == at


@given(st.lists(st.integers(1, 4 * BYTES_PER_PIECE), min_size=1, max_size=300), st.integers(0, 100))
def test_what_is_left_is_within_the_bound(lengths: list[int], seed: int) -> None:
    """However a file lies, it ends with a piece for each `BYTES_PER_PIECE`, and one or two for its end."""
    rng = random.Random(seed)
    rows = laid(*(rng.choice([length, 1 + length % 5000]) for length in lengths))
    size = sum(row.length for row in rows)
    at, is_fruitless = 0, True
    for _ in range(10 * len(rows)):
        found, at = next_crowded([row for row in rows if row.start + row.length > at], at)
        if found:
            is_fruitless = False
            low, high = found[0].start, found[-1].start + found[-1].length
            assert sum(row.length for row in found) == high - low
            before = [row._replace(length=min(row.length, low - row.start)) for row in rows if row.start < low]
            after = [_behind(row, high) for row in rows if row.start + row.length > high]
            rows = [*before, PieceRow(low, 0, 0, high - low), *after]
        if at >= size:
            if is_fruitless:
                break
            at, is_fruitless = 0, True
    assert at >= size, "it came to an end"
    assert len(rows) <= 2 + size // BYTES_PER_PIECE


def _behind(row: PieceRow, at: int) -> PieceRow:
    start = max(row.start, at)
    return PieceRow(start, row.content, row.content_start + start - row.start, row.start + row.length - start)


OLD = (Piece(0, 1, 0, 10), Piece(10, 2, 5, 10), Piece(40, 1, 40, 10))


@pytest.mark.parametrize(
    ("present", "lays"),
    [
        ([(0, 1, 0, 10), (10, 2, 5, 10), (40, 1, 40, 10)], [(0, 0, 20), (40, 20, 10)]),
        ([], []),
        ([(0, 3, 0, 10), (10, 2, 5, 10), (40, 1, 40, 10)], [(10, 10, 10), (40, 20, 10)]),
        ([(0, 1, 0, 10), (10, 2, 6, 10), (40, 2, 40, 10)], [(0, 0, 10)]),
        (
            [(0, 1, 0, 4), (4, 9, 0, 3), (7, 1, 7, 3), (10, 2, 5, 2), (15, 2, 10, 5)],
            [(0, 0, 4), (7, 7, 5), (15, 15, 5)],
        ),
        ([(0, 1, 0, 200)], [(0, 0, 10), (40, 20, 10)]),
    ],
    ids=["as it was", "gone", "another content", "another place in it", "written over in places", "one again"],
)
def test_only_what_is_as_it_was_read_is_laid_over(
    present: list[tuple[int, int, int, int]], lays: list[tuple[int, int, int]]
) -> None:
    rows = [PieceRow(*row) for row in present]

    def of(first: int, end: int) -> list[PieceRow]:
        return [row for row in rows if row.start < end and row.start + row.length > first]

    assert still_there(OLD, of) == tuple(Lay(*lay) for lay in lays)
