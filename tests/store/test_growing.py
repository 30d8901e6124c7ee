"""Which requests need room, and when they are refused for the lack of it."""

import pytest

from couchestord.errors import Error, JournalFull, NoSpace
from couchestord.io import filerequests as fr
from couchestord.io import requests as rq
from couchestord.io.mutations import Extent
from couchestord.store.growing import Room, grows

CUT = fr.PublishFile(17, 0, 0, (), 1, 1)
WRITTEN = fr.PublishFile(17, 5, 0, (fr.NewBytes(5, (Extent(5),), ()),), 1, 1, b"bytes")
IN_STRIPES = fr.PublishFile(17, 5, 0, (fr.NewBytes(5, (Extent(5, 20, 1),), ()),), 1, 1)
JOINED = fr.JoinPieces(17, (), ())
FULL = NoSpace("full")


@pytest.mark.parametrize(("request_", "expected"), [(WRITTEN, True), (IN_STRIPES, True), (CUT, False), (JOINED, False)])
def test_a_file_grows_with_its_bytes(request_: object, expected: bool) -> None:
    assert grows(request_) == expected


@pytest.mark.parametrize(
    ("room", "refused"),
    [
        (Room(None, None), []),
        (Room(None, None, FULL), [WRITTEN]),
        (Room(FULL, None), [WRITTEN, IN_STRIPES]),
        (Room(FULL, JournalFull("full")), [WRITTEN, IN_STRIPES, CUT]),
    ],
)
def test_what_makes_room_is_never_refused(room: Room, refused: list[object]) -> None:
    for request in (WRITTEN, IN_STRIPES, CUT, JOINED, rq.DropSegment(20)):
        try:
            room.check(request)
        except Error:
            assert request in refused
        else:
            assert request not in refused
