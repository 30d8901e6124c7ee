import msgspec
import pytest

from couchestord import errors
from couchestord.io import filerequests as fr
from couchestord.io import requests as rq
from couchestord.io.catalog.files import NodeRow
from couchestord.io.checksum import xxh3_64
from couchestord.io.fileoutcomes import Lay
from couchestord.io.mutations import Extent
from couchestord.model import Attributes, Conditions
from couchestord.replica import messages as ms

ATTRIBUTES = Attributes({"content-type": "text/plain"}, {"a": "b"}, {"sha256": "x", "type": "FULL_OBJECT"})
CONDITIONS = Conditions(("*",), ("e",), 1, 2, "ann")
REQUESTS = [
    rq.MakeBucket("box", "ann", "p"),
    rq.RemoveBucket("box"),
    rq.SetVersioning("box", "Enabled"),
    rq.PutObject("box", b"\xff/k", 3, b"e" * 16, ATTRIBUTES, CONDITIONS, (Extent(3),), b"abc", xxh3_64(b"abc"), 7),
    rq.CopyObject("box", b"k", "other", b"s", None, None, CONDITIONS, Conditions()),
    rq.CopyObject("box", b"k", "other", b"s", "v", ATTRIBUTES, CONDITIONS, Conditions()),
    rq.DeleteObject("box", b"k", "v", CONDITIONS),
    rq.MakeUpload("box", b"k", ATTRIBUTES),
    rq.PutPart("box", b"k", "u", 1, 3, b"e" * 16, {"crc32": "x"}, (Extent(3),), b"abc", 1, 0),
    rq.CopyPart("box", b"k", "u", 2, "other", b"s", None, 0, 5, Conditions()),
    rq.CompleteUpload("box", b"k", "u", ((1, "a"), (2, "b")), CONDITIONS, {"sha256": "x"}),
    rq.AbortUpload("box", b"k", "u"),
    fr.MakeNode(7, b"\xff", 0o120777, 1, 2, 0, b"to/there"),
    fr.LinkNode(9, 7, b"n"),
    fr.UnlinkNode(7, b"n", True),
    fr.RemoveDirectory(7, b"d"),
    fr.RenameNode(7, b"n", 8, b"\xfe", True, True),
    fr.ChangeInode(9, 0o100600, None, 0, None, 5, 6),
    fr.MakeSpill(),
    fr.PublishFile(9, 5, 2, (fr.NewBytes(3, (Extent(3),), (Lay(2, 0, 1), Lay(4, 1, 1)), 4),), 6, 7, b"abc", 1, 12),
    fr.SetXattr(9, b"user.\xff", None, True, False),
]


def passed(request: object) -> object:
    sent = ms.pack(ms.Submit(1, type(request).__name__, ms.raw(request)))
    message = ms.unpack_from_reader(sent)
    assert isinstance(message, ms.Submit)
    return ms.unpack_request(message)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_request_arrives_as_it_was(request_: object) -> None:
    assert passed(request_) == request_


def test_every_request_that_may_be_made_is_tried() -> None:
    assert {type(request) for request in REQUESTS} == set(ms.ANSWERS)


@pytest.mark.parametrize(
    "request_", [rq.MakeUser("mallory", admin=True), rq.DropSegment(16), rq.PutSetting("a", b""), fr.FreeOrphans((9,))]
)
def test_what_no_front_end_asks_is_refused(request_: object) -> None:
    with pytest.raises(errors.NotSupported):
        passed(request_)


def test_file_is_answered_as_it_is() -> None:
    node = NodeRow(9, False, 2, 5, None, 0o100600, 1, 2, 0, b"\xff", 3, 4, 5, 6, b"\x93")
    assert ms.unpack_value(ms.raw(node), ms.ANSWERS[fr.MakeNode]) == node


@pytest.mark.parametrize("message", [ms.ClaimMount(3, None, True), ms.ClaimMount(3, "box", False)])
def test_claim_arrives_as_it_was(message: ms.ClaimMount) -> None:
    assert ms.unpack_from_reader(ms.pack(message)) == message


def test_question_for_open_files_arrives_as_it_was() -> None:
    message = ms.WhichOpen(3, [1, 1 << 62])
    assert ms.unpack_from_store(ms.pack(message)) == message


def leaves(kind: type[errors.Error]) -> list[type[errors.Error]]:
    return [kind, *(leaf for below in kind.__subclasses__() for leaf in leaves(below))]


@pytest.mark.parametrize("kind", leaves(errors.Error), ids=lambda kind: kind.__name__)
def test_error_arrives_as_it_was(kind: type[errors.Error]) -> None:
    facts = {errors.InvalidRange: (17,), errors.NotModified: ("etag",)}.get(kind, ())
    error = kind("why it is so", *facts)
    message = ms.unpack_from_store(ms.pack(ms.refuse(5, error)))
    assert isinstance(message, ms.Refusal)
    found = ms.error_of(message)
    assert (type(found), str(found), found.__dict__) == (kind, str(error), error.__dict__)


def test_unknown_error_is_an_internal_one() -> None:
    assert type(ms.error_of(ms.Refusal(1, "Surprise", "what", {}))) is errors.InternalError


@pytest.mark.parametrize("data", [b"", b"\x90", b"\x93\x02", msgspec.msgpack.encode([99, 1])])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        ms.unpack_from_reader(data)
