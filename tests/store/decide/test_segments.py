"""Segments: what comes too late, or twice, changes nothing."""

from decide_rig import DecideRig

from couchestord.io import requests as rq
from couchestord.io.catalog.read import ExtentRow, SegmentRow
from couchestord.io.catalog.segments import STATE_OPEN, STATE_SEALED

DISKS = (0, 1, -1, 3, 4, -1)
NONE = 999


def make(rig: DecideRig) -> int:
    made: SegmentRow = rig.do(rq.MakeSegment(4, 2, 1 << 20, DISKS))
    return made.id


def row_of(rig: DecideRig, id_: int) -> SegmentRow:
    row = rig.catalog.reading.segment(id_)
    assert row is not None
    return row


def changes(rig: DecideRig, request: object) -> tuple[bool, object]:
    """(whether a record was written, the answer)."""
    before = rig.catalog.applier.sequence
    answer = rig.do(request)
    return rig.catalog.applier.sequence > before, answer


def extent_of(rig: DecideRig) -> ExtentRow:
    (row,) = rig.catalog.reading.extents_in_journal(0, 2)
    return row


def move(rig: DecideRig, segment: int, *, old: tuple[int, int, int] | None = None) -> rq.MoveExtents:
    row = extent_of(rig)
    return rq.MoveExtents((rq.ExtentMove(row.id, old or (row.segment, row.stripe, row.stripe_start), (segment, 1, 0)),))


def test_a_segment_without_a_disk_for_a_shard_lacks_it(rig: DecideRig) -> None:
    row: SegmentRow = rig.do(rq.MakeSegment(4, 2, 1 << 20, DISKS))
    assert row == row_of(rig, row.id), "what is answered is what was made"
    assert (row.state, row.epoch, row.missing, row.disks) == (STATE_OPEN, 7, 0b100100, DISKS)


def test_seal(rig: DecideRig) -> None:
    id_ = make(rig)
    assert changes(rig, rq.SealSegment(id_, 5, 0b1))[0]
    row = row_of(rig, id_)
    assert (row.state, row.stripes_end, row.missing) == (STATE_SEALED, 5, 0b100101)
    assert not changes(rig, rq.SealSegment(id_, 5))[0], "the same again"
    assert changes(rig, rq.SealSegment(id_, 5, 0b10))[0], "a shard that was lost meanwhile"
    assert not changes(rig, rq.SealSegment(NONE, 5))[0]


def test_drop(rig: DecideRig) -> None:
    id_ = make(rig)
    assert changes(rig, rq.DropSegment(id_)) == (False, False), "it is open"
    rig.put(b"key", b"12345")
    rig.do(move(rig, id_))
    rig.do(rq.SealSegment(id_, 2))
    assert changes(rig, rq.DropSegment(id_)) == (False, False), "it holds something"
    rig.delete(b"key")
    assert changes(rig, rq.DropSegment(id_)) == (True, True)
    assert changes(rig, rq.DropSegment(id_)) == (False, False)


def test_shards_lost_and_placed(rig: DecideRig) -> None:
    id_ = make(rig)
    assert changes(rig, rq.LoseShards(id_, 0b1))[0]
    assert not changes(rig, rq.LoseShards(id_, 0b100001))[0], "known already"
    assert not changes(rig, rq.LoseShards(NONE, 0b1))[0]
    assert changes(rig, rq.PlaceShard(id_, 2, 5)) == (True, True)
    row = row_of(rig, id_)
    assert (row.missing, row.disks[2]) == (0b100001, 5)
    assert changes(rig, rq.PlaceShard(NONE, 2, 5)) == (False, False), "it was dropped meanwhile: the file is garbage"


def test_moves_compare_first(rig: DecideRig) -> None:
    id_, gone = make(rig), make(rig)
    rig.put(b"key", b"12345")
    assert changes(rig, move(rig, id_, old=(0, NONE, 0))) == (False, 0), "it lies elsewhere"
    rig.do(rq.SealSegment(gone, 1))
    rig.do(rq.DropSegment(gone))
    assert changes(rig, move(rig, gone)) == (False, 0), "where it was written to is gone"
    request = move(rig, id_)
    assert changes(rig, request) == (True, 1)
    assert row_of(rig, id_).live_bytes == 5
    assert changes(rig, request) == (False, 0), "a move is done once"
    rig.delete(b"key")
    assert changes(rig, request) == (False, 0), "there is no such extent any more"
