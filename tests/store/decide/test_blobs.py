"""Blobs: what was confirmed is a copy, of what is still there; and what has no other place keeps it."""

import random
import sqlite3
import stat
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from catalog_check import check_catalog
from decide_rig import DecideRig

from couchestord.errors import Unavailable
from couchestord.io import filerequests as fr
from couchestord.io import mutations as mu
from couchestord.io import requests as rq
from couchestord.io.catalog.check import find_faults
from couchestord.io.catalog.copies import CopyReader
from couchestord.io.catalog.read import ExtentRow, SegmentRow
from couchestord.io.checksum import xxh3_64
from couchestord.io.fileoutcomes import Lay

EPOCH = 7


def segment(rig: DecideRig) -> int:
    made: SegmentRow = rig.do(rq.MakeSegment(4, 2, 1 << 20, (0, 1, 2, 3, 4, 5)))
    return made.id


def in_stripes(rig: DecideRig, segment: int, *keys: bytes) -> list[ExtentRow]:
    """New objects of 10 bytes, moved there."""
    for key in keys:
        rig.put(key, b"0123456789")
    rows = rig.catalog.reading.extents_in_journal(0, 100)
    moves = [rq.ExtentMove(row.id, (row.segment, row.stripe, row.stripe_start), (segment, row.id, 0)) for row in rows]
    assert rig.do(rq.MoveExtents(tuple(moves))) == len(keys)
    return [extent(rig, row.id) for row in rows]


def extent(rig: DecideRig, id_: int) -> ExtentRow:
    row = rig.catalog.reading.extent(id_)
    assert row is not None
    return row


def upload(rig: DecideRig, rows: list[ExtentRow]) -> int:
    blob: int = rig.do(rq.BeginBlob(EPOCH))
    held = tuple((row.id, 100 + number, row.length) for number, row in enumerate(rows))
    assert rig.do(rq.ConfirmBlob(EPOCH, blob, 1000, held)) == len(rows)
    return blob


def evict(rig: DecideRig, row: ExtentRow, place: tuple[int, int]) -> int:
    old = (row.segment, row.stripe, row.stripe_start)
    moved: int = rig.do(rq.MoveExtents((rq.ExtentMove(row.id, old, (mu.IN_BLOB, *place)),)))
    return moved


def test_what_is_confirmed_waits_no_more(rig: DecideRig) -> None:
    one, two, three = in_stripes(rig, segment(rig), b"1", b"2", b"3")
    copies = rig.catalog.copies
    assert copies.waiting(0, 10) == [(row.id, 10) for row in (one, two, three)]
    blob = upload(rig, [one, three])
    assert copies.waiting(0, 10) == [(two.id, 10)]
    assert copies.waiting(two.id, 10) == []
    assert copies.copy(three.id) == (EPOCH, blob, 101, 10)
    assert copies.copy(two.id) is None
    assert copies.totals() == (1, 1000, 20, 0)


def test_what_has_no_copy_may_be_lost(rig: DecideRig) -> None:
    one, two = in_stripes(rig, segment(rig), b"1", b"2")
    upload(rig, [one])
    for row, moved_count in ((one, 0), (two, 1)):
        move = rq.ExtentMove(row.id, (row.segment, row.stripe, row.stripe_start), (mu.LOST, 0, 0))
        assert rig.do(rq.MoveExtents((move,))) == moved_count
    assert extent(rig, one.id) == one
    assert extent(rig, two.id)[3:] == (mu.LOST, 0, 0)


def test_only_what_is_still_the_same_gets_a_copy(rig: DecideRig) -> None:
    gone, there, copied = in_stripes(rig, segment(rig), b"1", b"2", b"3")
    upload(rig, [copied])
    blob = rig.do(rq.BeginBlob(EPOCH))
    rig.delete(b"1")
    held = ((gone.id, 0, 10), (there.id, 50, 11), (copied.id, 99, 10), (999, 1, 10))
    assert rig.do(rq.ConfirmBlob(EPOCH, blob, 1000, held)) == 0
    assert [row.id for row in rig.catalog.copies.dead(10)] == [blob]


def test_a_blob_is_confirmed_once_and_in_its_epoch(rig: DecideRig) -> None:
    (row,) = in_stripes(rig, segment(rig), b"1")
    blob = rig.do(rq.BeginBlob(EPOCH))
    for epoch, number in ((EPOCH - 1, blob), (EPOCH + 1, blob), (EPOCH, blob + 1)):
        with pytest.raises(Unavailable):
            rig.do(rq.ConfirmBlob(epoch, number, 1000, ((row.id, 0, 10),)))
    rig.do(rq.ConfirmBlob(EPOCH, blob, 1000, ()))
    assert rig.do(rq.DropBlob(blob))
    with pytest.raises(Unavailable):
        rig.do(rq.ConfirmBlob(EPOCH, blob, 1000, ((row.id, 0, 10),)))


def test_a_blob_is_confirmed_piece_by_piece(rig: DecideRig) -> None:
    one, two = in_stripes(rig, segment(rig), b"1", b"2")
    blob = rig.do(rq.BeginBlob(EPOCH))
    for row in (one, two):
        assert rig.do(rq.ConfirmBlob(EPOCH, blob, 1000, ((row.id, 5, 10),))) == 1
        assert rig.do(rq.ConfirmBlob(EPOCH, blob, 1000, ((row.id, 5, 10),))) == 0
    assert rig.catalog.copies.totals() == (1, 1000, 20, 0)


def test_what_is_packed_anew_has_the_new_place(rig: DecideRig) -> None:
    here, away, other = in_stripes(rig, segment(rig), b"1", b"2", b"3")
    blob, another = upload(rig, [here, away]), upload(rig, [other])
    assert evict(rig, away, (blob, 101)) == 1
    packed = rig.do(rq.BeginBlob(EPOCH))
    held = tuple((row.id, 70, 10) for row in (here, away, other))
    assert rig.do(rq.ConfirmBlob(EPOCH, packed, 1000, held, replaces=blob)) == 2
    assert extent(rig, away.id)[3:] == (mu.IN_BLOB, packed, 70)
    assert extent(rig, here.id) == here
    found = [rig.catalog.copies.copy(row.id) for row in (here, away, other)]
    assert [copy.blob for copy in found if copy] == [packed, packed, another]
    assert [row.id for row in rig.catalog.copies.dead(10)] == [blob]


def test_ids_that_were_asked_for_are_nobody_elses(rig: DecideRig) -> None:
    blob = rig.do(rq.BeginBlob(EPOCH, ids=5))
    assert rig.do(rq.BeginBlob(EPOCH)) == blob + 6


def test_what_a_mount_publishes_has_the_ids_that_it_has_in_blobs(rig: DecideRig) -> None:
    bucket = rig.catalog.reading.bucket("bucket")
    assert bucket is not None
    file = rig.do(fr.MakeNode(bucket.root, b"file", stat.S_IFREG | 0o600, 0, 0)).id
    blob, other = rig.do(rq.BeginBlob(EPOCH, ids=5)), rig.do(rq.BeginBlob(EPOCH))
    inside = mu.Extent(10, mu.IN_BLOB, blob, 50), mu.Extent(10, mu.IN_BLOB, other, 70)
    short = (mu.Extent(10),)
    contents = (
        fr.NewBytes(10, short, (Lay(0, 0, 10),)),
        fr.NewBytes(20, inside, (Lay(10, 0, 20),), content=blob + 1),
        fr.NewBytes(10, short, (Lay(30, 0, 10),)),
    )
    publish = fr.PublishFile(file, 40, 0, contents, 1, 2, b"0123456789", xxh3_64(b"0123456789"))
    for number in (blob, other):
        with pytest.raises(Unavailable):
            rig.do(publish)  # what was not confirmed may go at any moment
        rig.do(rq.ConfirmBlob(EPOCH, number, 1000, ()))
    free = rig.catalog.applier.next_id
    rig.do(publish)
    pieces = rig.catalog.reading.pieces(file, 0, 40)
    assert [piece.content for piece in pieces] == [free, blob + 1, free + 1]
    assert rig.catalog.applier.next_id == free + 2
    assert [extent(rig, blob + 1 + number)[3:] for number in range(2)] == [
        (each.segment, each.stripe, each.start) for each in inside
    ]
    assert rig.catalog.copies.totals() == (2, 2000, 20, 20)
    rig.delete(b"file")
    assert rig.catalog.copies.totals() == (2, 2000, 0, 0)
    assert rig.do(rq.DropBlob(other))
    again = rig.do(fr.MakeNode(bucket.root, b"again", stat.S_IFREG | 0o600, 0, 0)).id
    with pytest.raises(Unavailable):
        rig.do(replace(publish, inode=again))


def test_what_lies_in_a_bucket_only(rig: DecideRig) -> None:
    home = segment(rig)
    one, two = in_stripes(rig, home, b"1", b"2")
    blob = upload(rig, [one])
    assert evict(rig, one, (blob, 99)) == 0, "its copy is elsewhere"
    assert evict(rig, two, (blob, 100)) == 0, "it has no copy"
    assert evict(rig, one, (blob, 100)) == 1
    assert evict(rig, one, (blob, 100)) == 0, "it is no longer where it was"
    assert extent(rig, one.id)[3:] == (mu.IN_BLOB, blob, 100)
    assert rig.catalog.copies.totals() == (1, 1000, 10, 10)
    assert rig.catalog.copies.bytes_in_stripes() == 10
    assert rig.do(rq.LoseCopies(blob, (one.id,))) == 0, "there is no other place"
    rig.delete(b"1")
    assert rig.catalog.copies.totals() == (1, 1000, 0, 0)


def test_thin_blobs_are_found_the_emptiest_first(rig: DecideRig) -> None:
    rows = in_stripes(rig, segment(rig), *(b"%d" % number for number in range(21)))
    empty, thinner, thin, half = upload(rig, rows[:1]), upload(rig, rows[1:3]), upload(rig, rows[3:7]), rows[7:12]
    for size, held in ((100, half), (101, rows[12:17]), (9, rows[17:])):
        blob = rig.do(rq.BeginBlob(EPOCH))
        rig.do(rq.ConfirmBlob(EPOCH, blob, size, tuple((row.id, 0, 10) for row in held)))
        if size == 101:
            barely = blob
    rig.do(rq.BeginBlob(EPOCH))
    rig.delete(b"0")
    copies = rig.catalog.copies
    assert [row.id for row in copies.dead(10)] == [empty]
    assert [row.id for row in copies.thin(10)] == [thinner, thin, barely]
    assert [row.id for row in copies.thin(1)] == [thinner]
    assert copies.extents_count(thinner) == 2
    assert copies.extents_count(empty) == 0
    assert copies.dead_bytes() == 3000 + 100 + 101 + 9 - 200
    assert rig.do(rq.DropBlob(empty))
    assert copies.dead_bytes() == 3000 + 100 + 101 + 9 - 200, "it is there still"
    with closing(sqlite3.connect(rig.path)) as connection:
        asked: list[str] = []
        CopyReader(Asked(connection, asked)).thin(10)  # type: ignore[arg-type]
        plan = connection.execute(f"explain query plan {asked[0]}", (10,)).fetchall()
        assert "blob_thin" in str(plan)
        assert "TEMP B-TREE" not in str(plan)


class Asked:
    """A connection that notes what is asked."""

    def __init__(self, connection: sqlite3.Connection, asked: list[str]) -> None:
        self._connection = connection
        self._asked = asked

    def execute(self, statement: str, values: tuple[object, ...] = ()) -> object:
        self._asked.append(statement)
        return self._connection.execute(statement, values)


def test_readers_find_what_is_packed_anew_in_its_new_place(rig: DecideRig) -> None:
    """They keep the place of an object until it changes, and the blob that it lay in is deleted some time."""
    [row] = in_stripes(rig, segment(rig), b"key")
    blob = upload(rig, [row])
    assert evict(rig, row, (blob, 100)) == 1
    bucket = rig.catalog.reading.bucket("bucket")
    assert bucket is not None
    moves = rig.catalog.generations.moves
    for place in ((blob, 100), (rig.do(rq.BeginBlob(EPOCH)), 70)):
        if place[0] != blob:
            assert rig.do(rq.ConfirmBlob(EPOCH, place[0], 1000, ((row.id, 70, 10),), replaces=blob)) == 1
            assert rig.catalog.generations.moves > moves
        found = rig.catalog.reading.entry(bucket.root, b"key")
        assert found is not None
        assert found.extent is not None
        assert found.extent[3:] == (mu.IN_BLOB, *place)


def test_lost_copies_are_made_anew(rig: DecideRig) -> None:
    one, two = in_stripes(rig, segment(rig), b"1", b"2")
    blob, other = upload(rig, [one]), upload(rig, [two])
    assert rig.do(rq.LoseCopies(blob, (one.id, two.id, 999))) == 1
    assert rig.catalog.copies.waiting(0, 10) == [(one.id, 10)]
    assert [row.id for row in rig.catalog.copies.dead(10)] == [blob]
    assert upload(rig, [one]) > other


def test_what_is_dropped(rig: DecideRig) -> None:
    (one,) = in_stripes(rig, segment(rig), b"1")
    blob = upload(rig, [one])
    assert not rig.do(rq.DropBlob(blob)), "something is in it"
    assert not rig.do(rq.ForgetBlob(EPOCH + 1, blob)), "it counts"
    rig.delete(b"1")
    assert not rig.do(rq.ForgetBlob(EPOCH + 1, blob)), "it was not dropped"
    assert rig.do(rq.DropBlob(blob))
    assert not rig.do(rq.DropBlob(blob))
    sequence = rig.catalog.applier.sequence
    assert not rig.catalog.copies.dropped(sequence, 10)
    assert [row.id for row in rig.catalog.copies.dropped(sequence + 1, 10)] == [blob]
    assert rig.do(rq.ForgetBlob(EPOCH, blob))
    assert not rig.do(rq.ForgetBlob(EPOCH, blob))
    begun = rig.do(rq.BeginBlob(EPOCH))
    assert not rig.do(rq.DropBlob(begun))
    assert not rig.do(rq.ForgetBlob(EPOCH, begun)), "it is being put perhaps"
    assert [row.id for row in rig.catalog.copies.begun_before(EPOCH + 1, 0, 10)] == [begun]
    assert not rig.catalog.copies.begun_before(EPOCH, 0, 10)
    assert rig.do(rq.ForgetBlob(EPOCH + 1, begun))
    assert rig.catalog.copies.blob(begun) is None


def test_whatever_happens_counts_are_right(rig: DecideRig) -> None:
    rng = random.Random(3)
    home = segment(rig)
    for step in range(60):
        (row,) = in_stripes(rig, home, b"%d" % rng.randrange(20))
        if rng.random() < 0.5:
            blob = upload(rig, [row])
            if rng.random() < 0.5:
                evict(rig, row, (blob, 100))
        if rng.random() < 0.3:
            live = [number for number in range(20) if rig.catalog.reading.live(root(rig), b"%d" % number)]
            rig.delete(b"%d" % rng.choice(live))
        if step % 10 == 0:
            check_catalog(rig.path)


def root(rig: DecideRig) -> int:
    bucket = rig.catalog.reading.bucket("bucket")
    assert bucket is not None
    return bucket.root


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("update blob set live_bytes=live_bytes+1", "blobs whose live bytes are miscounted"),
        ("update blob set only_bytes=only_bytes+1", "blobs whose live bytes are miscounted"),
        ("update blob set state=0", "copies in blobs that are not confirmed"),
        ("delete from blob", "copies in blobs that are not confirmed"),
        ("update extent set stripe_start=7 where segment=1", "extents in segment 1 that are not where their copy is"),
        ("update extent set copy_blob=null where segment=1", "extents in segment 1 that are not where their copy is"),
    ],
)
def test_contradictions_are_found(rig: DecideRig, tmp_path: Path, statement: str, said: str) -> None:
    one, two = in_stripes(rig, segment(rig), b"1", b"2")
    evict(rig, one, (upload(rig, [one, two]), 100))
    copy = tmp_path / "copy.sqlite"
    with closing(sqlite3.connect(rig.path)) as whole:
        whole.execute("vacuum into ?", (str(copy),))
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        assert not find_faults(connection)
        connection.execute("begin")
        assert connection.execute(statement).rowcount
        assert any(said in fault for fault in find_faults(connection))
        connection.execute("rollback")
