"""Pieces of files that were written over here and there: the job `join-pieces`.

A publication lays pieces over a file, and each content stays whole as long as any of its bytes is in a piece. So a file
that is written over for long has ever more pieces, and holds ever more bytes that nobody can read. This reads some of
them and writes one content that takes their place, by a record that does so wherever the file is still made of them:
what was written meanwhile stays. The file's bytes are the same, so nothing that S3 or a mount shows of it changes.

Theory of operation. Two things are looked for in a file, from its beginning to its end and around again: parts of it
in which many pieces touch, when it has too many (`pieces.next_crowded`), and contents of which little is left, when it
holds too much. Of these all pieces are moved, wherever they are, so that a content that is begun is gone with the next
batch or two, and the room that it takes meanwhile is theirs. Which files are worn says a table that is kept with the
pieces; none is searched for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import trio

from couchestord import logs
from couchestord.ec.codec import Buffer
from couchestord.ec.moves import find_bad
from couchestord.ec.segments import SegmentPool, Submit
from couchestord.ec.throttle import Throttle
from couchestord.errors import DataLost, NoSpace, ShuttingDown, StaleInode, Unavailable
from couchestord.io.catalog.files import FileReader, WornRow
from couchestord.io.catalog.read import PieceRow, SegmentRow
from couchestord.io.checksum import xxh3_64
from couchestord.io.filerequests import JoinPieces
from couchestord.io.mutations import IN_BLOB, IN_JOURNAL, LOST, Extent
from couchestord.io.outcome import Piece
from couchestord.service import Progress
from couchestord.store.athand import ReaderParts
from couchestord.store.options import INLINE_BYTES_MAX
from couchestord.store.pieces import BATCH_BYTES, BATCH_PIECES, next_crowded
from couchestord.store.reader import ExtentSource
from couchestord.store.runs import Run, content_runs

log = logs.get(__name__)
PAGE_PIECES: Final = 512
"""Looked at in one step."""
LOOK_BYTES: Final = 256 << 10
"""What a step costs that finds nothing, as bytes."""
PIECES_COUNTED_MAX: Final = 8192
"""In one step, to find contents of which little is left: nobody else has a turn meanwhile."""
PIECES_MANY: Final = 64
CANDIDATES_MAX: Final = 16
HANDS_MAX: Final = 4096
PASSED_OVER_S: Final = 900.0
"""A file that was searched in vain is searched again after so long: a copy that had its contents, too, may be gone."""
_END: Final = 1 << 62
LIVE_PERCENT: Final = 50
"""A content of which so much is left, or less, is given up when its file holds as much again as it has ..."""
LIVE_PERCENT_PRESSED: Final = 75
"""... and while the disks are nearly full one of which so much is left, when it holds a third more."""


class _Sought(NamedTuple):
    """A file, and what is looked for in it."""

    inode: int
    live_percent: int
    """Contents of which no more than that is left; 0: parts with many pieces."""


@dataclass(slots=True)
class _Hand:
    """How far a file was searched."""

    at: int = 0
    is_fruitless: bool = True
    """Nothing was found since its beginning."""
    full: set[int] = field(default_factory=set)
    """Contents of many pieces of which more than little was left. Written at random, they are in every page ..."""
    loose: set[int] = field(default_factory=set)
    """... and those of which little was, which are not gone with the first batch."""


class Joiner:
    """A service: a batch a step. What lies in a bucket only, or is lost, stays as it is, and what is being read stays
    where it is until that is done.
    """

    name = "join-pieces"

    def __init__(
        self,
        files: FileReader,
        policy_of: Callable[[int], int],
        parts: ReaderParts,
        pool: SegmentPool,
        submit: Submit,
        throttle: Throttle,
        is_pressed: Callable[[], bool] = lambda: False,
        gives_way: Callable[[], bool] = lambda: False,
    ) -> None:
        """`policy_of`: see `Buckets`. `is_pressed`: whether the disks are nearly full. `gives_way`: whether what room
        is left is compaction's.
        """
        self._files = files
        self._policy_of = policy_of
        self._parts = parts
        self._pool = pool
        self._submit = submit
        self._throttle = throttle
        self._is_pressed = is_pressed
        self._gives_way = gives_way
        self._hands: dict[_Sought, _Hand] = {}
        self._passed_over: dict[_Sought, tuple[WornRow, float]] = {}
        """How worn files were when they were searched in vain, and until when that counts."""
        self._trouble = ""
        """Why the last step failed."""
        self.has_work = False
        """Whether the last step found something to do, and could."""
        self.joined_pieces_count = 0
        self.joined_bytes = 0

    @property
    def interval_s(self) -> float:
        return 0.2 if self._is_pressed() else 1.0

    async def work(self) -> Progress:
        """Join a batch of pieces of the file that is worn most, or look through some of its pieces in vain."""
        is_pressed = self._is_pressed()
        found = self._choose(is_pressed)
        self.has_work = found is not None
        if found is None:
            return Progress.IDLE
        row, sought = found
        if self._gives_way() or not self._throttle.is_open(urgent=is_pressed or row.is_overrun):
            return Progress.THROTTLED
        try:
            await self._search(row, sought)
        except ShuttingDown:
            raise
        except (NoSpace, Unavailable) as error:
            if str(error) != self._trouble:
                log.warning("pieces were not joined yet", reason=str(error))
            self._trouble = str(error)
            self.has_work = False
            return Progress.IDLE
        self._trouble = ""
        return Progress.BUSY

    # -- which ---------------------------------------------------------------------------------------------------------

    def _choose(self, is_pressed: bool) -> tuple[WornRow, _Sought] | None:
        limit = CANDIDATES_MAX + len(self._passed_over)
        percent = LIVE_PERCENT_PRESSED if is_pressed else LIVE_PERCENT
        for row in self._files.loose(limit):
            sought = _Sought(row.inode, percent)
            if percent * row.held > 100 * row.live and not self._is_passed_over(row, sought):
                return row, sought
        for row in self._files.crowded(limit):
            sought = _Sought(row.inode, 0)
            if not self._is_passed_over(row, sought):
                return row, sought
        return None

    def _is_passed_over(self, row: WornRow, sought: _Sought) -> bool:
        """It was searched in vain, and is not much more worn by now."""
        if sought not in self._passed_over:
            return False
        then, end_s = self._passed_over[sought]
        return trio.current_time() < end_s and row.pieces < 1.25 * then.pieces and row.held < 1.25 * then.held

    async def _search(self, row: WornRow, sought: _Sought) -> None:
        if sought not in self._hands and len(self._hands) >= HANDS_MAX:
            self._hands.clear()
            self._passed_over.clear()
        hand = self._hands.setdefault(sought, _Hand())
        found = self._parts.catalog.pieces(row.inode, hand.at, _END, PAGE_PIECES)
        # the first may end before
        page = [piece for piece in found if piece.start + piece.length > hand.at]
        is_last, contents = len(found) < PAGE_PIECES, dict[int, int]()
        if sought.live_percent:
            count, contents = self._to_count(page, hand)
            is_last = is_last and count == len(page)
            del page[count:]
        end = page[-1].start + page[-1].length if page else hand.at
        if not sought.live_percent:
            crowded, behind = self._next_crowded(page, hand.at)
            joined_bytes = await self._join(row.inode, crowded) if crowded else 0
        else:
            joined_bytes, behind = 0, end
            for inode, pieces in self._of_loose_contents(sought, contents, hand).items():
                joined_bytes += await self._join(inode, sorted(pieces))
            if joined_bytes:
                behind = hand.at  # there may be more
        if joined_bytes:
            hand.is_fruitless = False
        else:
            self._throttle.spend(LOOK_BYTES)
        hand.at = behind
        if behind < end or not is_last:
            return
        del self._hands[sought]
        if hand.is_fruitless:
            self._passed_over[sought] = row, trio.current_time() + PASSED_OVER_S
        else:
            self._passed_over.pop(sought, None)

    def _next_crowded(self, page: Sequence[PieceRow], at: int) -> tuple[list[PieceRow], int]:
        found, behind = next_crowded(page, at)
        if all(map(self._is_here, found)):
            return found, behind
        found, behind = next_crowded([piece for piece in page if self._is_here(piece)], at)
        return found, behind if found else page[-1].start + page[-1].length

    def _to_count(self, page: Sequence[PieceRow], hand: _Hand) -> tuple[int, dict[int, int]]:
        """How many pieces of a page can be looked at in one step, and the contents of those that may be loose, with how
        many pieces of each are to be counted.
        """
        refs = self._files.references({piece.content for piece in page})
        contents: dict[int, int] = {}
        for index, piece in enumerate(page):
            if piece.content in hand.full or piece.content in contents:
                continue
            count = 0 if piece.content in hand.loose else refs[piece.content]
            if contents and sum(contents.values()) + count > PIECES_COUNTED_MAX:
                return index, contents
            contents[piece.content] = count
        return len(page), contents

    def _of_loose_contents(
        self, sought: _Sought, contents: Mapping[int, int], hand: _Hand
    ) -> dict[int, list[PieceRow]]:
        """Pieces of those contents of which little is left, by inode: a copy of a file has some of them, too."""
        wanted: dict[int, list[PieceRow]] = {}
        counted = [content for content, count in contents.items() if count]
        many = {content for content in counted if contents[content] >= PIECES_MANY}
        found_loose = set(self._files.loose_contents(counted, sought.live_percent))
        hand.full |= many - found_loose
        loose = sorted(found_loose | contents.keys() - set(counted))
        hand.loose |= many & found_loose
        left_bytes, left_count = BATCH_BYTES, BATCH_PIECES
        for content in loose:
            found = self._files.pieces_of(content, left_count)
            if not all(self._is_here(piece) for _, piece in found):
                continue
            for of, piece in found:
                cut = piece._replace(length=min(piece.length, left_bytes))
                wanted.setdefault(of, []).append(cut)
                left_bytes -= cut.length
                if not left_bytes:
                    return wanted
            left_count -= len(found)
            if not left_count:
                break
        return wanted

    def _runs(self, piece: PieceRow) -> list[Run]:
        return content_runs(self._parts.catalog, piece.content, piece.content_start, piece.content_start + piece.length)

    def _is_here(self, piece: PieceRow) -> bool:
        """Whether all of it is on the disks."""
        return not any(run.extent is None or run.extent.segment in (IN_BLOB, LOST) for run in self._runs(piece))

    # -- one content ---------------------------------------------------------------------------------------------------

    async def _join(self, inode: int, pieces: Sequence[PieceRow]) -> int:
        """Answers how many bytes of the file were joined."""
        old = tuple(Piece(piece.start, piece.content, piece.content_start, piece.length) for piece in pieces)
        try:
            policy = self._policy_of(inode)
            body = await self._read([run for piece in pieces for run in self._runs(piece)])
        except StaleInode:
            return 0
        except DataLost as error:
            log.error("pieces cannot be joined: they cannot be read", inode=inode, reason=str(error))
            return 0
        if len(body) != sum(piece.length for piece in old):
            return 0  # of an inode whose turn came late: it is made of others by now
        joined_bytes = await self._write(inode, old, body, policy)
        self._throttle.spend(2 * len(body))
        self.joined_bytes += joined_bytes
        self.joined_pieces_count += len(old) if joined_bytes else 0
        return joined_bytes

    async def _read(self, runs: Sequence[Run]) -> bytes:
        """Verified. Raises DataLost, Unavailable."""
        parts = self._parts
        segments: dict[int, SegmentRow | None] = {}
        records: list[int] = []
        for run in runs:
            assert run.extent is not None
            if run.extent.segment == IN_JOURNAL:
                records.append(run.extent.stripe)
            elif run.extent.segment not in segments:
                segments[run.extent.segment] = parts.catalog.layout(run.extent.segment)
        held = list(segments)
        parts.pins.hold(held, records)
        try:
            body = bytearray()
            for run in runs:
                assert run.extent is not None
                source = ExtentSource(parts, run.extent, segments.get(run.extent.segment))
                body += await source.load(run.offset, run.length)
            return bytes(body)
        finally:
            parts.pins.release(held, records)

    async def _write(self, inode: int, old: tuple[Piece, ...], body: bytes, policy: int) -> int:
        if len(body) <= INLINE_BYTES_MAX:
            request = JoinPieces(inode, old, (Extent(len(body)),), policy, body, xxh3_64(body))
            inline_bytes: int = await self._submit(request)
            return inline_bytes
        async with self._pool.writer(policy) as writer:
            size = writer.policy.stripe_bytes
            stripes: list[Buffer] = [memoryview(body)[at : at + size] for at in range(0, len(body), size)]
            places = await writer.append_many(stripes)
            await writer.sync()
            if await find_bad(self._pool, writer, places):
                return 0
            joined_bytes: int = await self._submit(JoinPieces(inode, old, tuple(writer.runs), policy))
        return joined_bytes
