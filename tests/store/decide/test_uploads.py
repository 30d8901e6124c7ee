"""What an upload is refused for, and that a refusal changes nothing."""

import stat
from collections.abc import Callable

import pytest
from decide_rig import DecideRig

from couchestord.errors import (
    EntityTooLarge,
    EntityTooSmall,
    InvalidArgument,
    InvalidPart,
    InvalidPartOrder,
    InvalidRange,
    KeyTooLong,
    NoSuchBucket,
    NoSuchKey,
    NoSuchUpload,
    PreconditionFailed,
)
from couchestord.io import filerequests as fr
from couchestord.io import mutations as mu
from couchestord.io import requests as rq
from couchestord.io.checksum import xxh3_64
from couchestord.io.fileoutcomes import Lay
from couchestord.model import OBJECT_BYTES_MAX, PART_BYTES_MIN, PART_NUMBER_MAX, Attributes, Conditions
from couchestord.store.decide.context import find_version

KEY = b"a/key"
MIN = PART_BYTES_MIN
HOLES = ((1, MIN), (2, 2 * MIN - 5))
"""(part, where it begins in the source): one of zeroes alone, one that begins with some."""


@pytest.fixture(autouse=True)
def other_bucket(rig: DecideRig) -> None:
    rig.bucket("other")


def refused(rig: DecideRig, error: type[Exception], call: Callable[[], object]) -> Exception:
    """The call raises that error, and neither a record is written nor an id used."""
    before = rig.catalog.applier.sequence, rig.catalog.applier.next_id
    with pytest.raises(error) as caught:
        call()
    assert (rig.catalog.applier.sequence, rig.catalog.applier.next_id) == before
    return caught.value


def size_of(rig: DecideRig, key: bytes = KEY) -> int:
    bucket = rig.catalog.reading.bucket("bucket")
    assert bucket is not None
    return find_version(rig.catalog.reading, bucket, key, None)[2].size


def root_of(rig: DecideRig) -> int:
    bucket = rig.catalog.reading.bucket("bucket")
    assert bucket is not None
    return bucket.root


def part_copy(
    upload: str, source: bytes, first: int | None = None, last: int | None = None, number: int = 1
) -> rq.CopyPart:
    return rq.CopyPart("bucket", KEY, upload, number, "bucket", source, None, first, last, Conditions())


def test_begin_refusals(rig: DecideRig) -> None:
    refused(rig, NoSuchBucket, lambda: rig.upload(KEY, bucket="nobody"))
    refused(rig, InvalidArgument, lambda: rig.upload(b""))
    refused(rig, KeyTooLong, lambda: rig.upload(b"x" * 1025))


def test_ids_of_one_key_sort_by_age(rig: DecideRig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rig.upload(KEY) < rig.upload(KEY)
    monkeypatch.setattr(rig.clock, "now_ns", lambda: 1 << 60)  # within a tick of it
    made = [rig.upload(KEY) for _ in range(20)]
    assert made == sorted(made)


def test_part_refusals(rig: DecideRig) -> None:
    upload = rig.upload(KEY)
    for number in (0, -1, PART_NUMBER_MAX + 1):
        refused(rig, InvalidArgument, lambda number=number: rig.part(KEY, upload, number, 10))  # type: ignore[misc]
    refused(rig, NoSuchUpload, lambda: rig.part(KEY, "0" * 48, 1, 10))
    refused(rig, NoSuchUpload, lambda: rig.part(b"another", upload, 1, 10))
    refused(rig, NoSuchUpload, lambda: rig.part(KEY, upload, 1, 10, bucket="other"))
    refused(rig, NoSuchBucket, lambda: rig.part(KEY, upload, 1, 10, bucket="nobody"))
    rig.part(KEY, upload, PART_NUMBER_MAX, 10)


def test_part_copy_refusals(rig: DecideRig) -> None:
    upload = rig.upload(KEY)
    info = rig.put(b"source", b"x" * 100)
    rig.put(b"empty")
    refused(rig, NoSuchKey, lambda: rig.do(part_copy(upload, b"nothing")))
    for first, last in ((0, 100), (100, 100), (50, 49), (200, 300)):
        error = refused(rig, InvalidRange, lambda: rig.do(part_copy(upload, b"source", first, last)))  # noqa: B023
        assert isinstance(error, InvalidRange)
    refused(rig, InvalidRange, lambda: rig.do(part_copy(upload, b"empty", 0, 0)))
    unlike = Conditions(if_none_match=(info.etag,))
    request = rq.CopyPart("bucket", KEY, upload, 1, "bucket", b"source", None, None, None, unlike)
    refused(rig, PreconditionFailed, lambda: rig.do(request))
    refused(rig, NoSuchUpload, lambda: rig.do(part_copy("0" * 48, b"source")))
    assert rig.do(part_copy(upload, b"source", 99, 99)).size_bytes == 1
    assert rig.do(part_copy(upload, b"empty")).size_bytes == 0
    whole = rig.do(part_copy(upload, b"source"))
    assert (whole.size_bytes, whole.etag) == (100, info.etag)


def test_a_part_may_be_a_hole_of_its_source(rig: DecideRig) -> None:
    node = rig.do(fr.MakeNode(root_of(rig), b"sparse", stat.S_IFREG | 0o644, 0, 0))
    new = fr.NewBytes(MIN, (mu.Extent(MIN),), (Lay(2 * MIN, 0, MIN),))
    rig.do(fr.PublishFile(node.id, 3 * MIN, 0, (new,), 1, 1, bytes(MIN), xxh3_64(bytes(MIN))))
    upload = rig.upload(KEY)
    copies = [rig.do(part_copy(upload, b"sparse", first, first + MIN - 1, number)) for number, first in HOLES]
    assert [part.size_bytes for part in copies] == [MIN, MIN]
    rig.complete(KEY, upload, [(number, part.etag) for (number, _), part in zip(HOLES, copies, strict=True)])
    assert size_of(rig) == 2 * MIN
    hole = rig.upload(KEY)
    part = rig.do(part_copy(hole, b"sparse", 5, 6))
    rig.complete(KEY, hole, [(1, part.etag)])
    assert size_of(rig) == 2


def test_complete_refusals_leave_the_upload(rig: DecideRig) -> None:
    upload = rig.upload(KEY)
    one, two = rig.part(KEY, upload, 1, MIN), rig.part(KEY, upload, 2, 10)

    def complete(*parts: tuple[int, str]) -> object:
        return rig.complete(KEY, upload, list(parts))

    refused(rig, InvalidArgument, complete)
    refused(rig, InvalidPartOrder, lambda: complete((2, two), (1, one)))
    refused(rig, InvalidPartOrder, lambda: complete((1, one), (1, one)))
    refused(rig, InvalidPart, lambda: complete((1, one), (3, two)))
    refused(rig, InvalidPart, lambda: complete((1, two)))
    refused(rig, InvalidPart, lambda: complete((1, "")))
    refused(rig, NoSuchUpload, lambda: rig.complete(b"another", upload, [(1, one)]))
    refused(rig, NoSuchUpload, lambda: rig.complete(KEY, upload, [(1, one)], bucket="other"))
    refused(rig, NoSuchBucket, lambda: rig.complete(KEY, upload, [(1, one)], bucket="nobody"))
    refused(rig, NoSuchKey, lambda: rig.complete(KEY, upload, [(1, one)], conditions=Conditions(if_match=("*",))))
    assert rig.complete(KEY, upload, [(1, one), (2, two)]).size_bytes == MIN + 10
    assert size_of(rig) == MIN + 10


def test_a_part_that_is_too_small_counts_only_before_the_last(rig: DecideRig) -> None:
    upload = rig.upload(KEY)
    small, large = rig.part(KEY, upload, 1, MIN - 1), rig.part(KEY, upload, 2, MIN)
    refused(rig, EntityTooSmall, lambda: rig.complete(KEY, upload, [(1, small), (2, large)]))
    assert rig.complete(KEY, upload, [(1, small)]).size_bytes == MIN - 1


def test_parts_that_add_up_to_too_much(rig: DecideRig) -> None:
    upload = rig.upload(KEY)
    half = OBJECT_BYTES_MAX // 2
    etags = [(number, rig.part(KEY, upload, number, half)) for number in (1, 2)]
    last = rig.part(KEY, upload, 3, OBJECT_BYTES_MAX - 2 * half + 1)
    refused(rig, EntityTooLarge, lambda: rig.complete(KEY, upload, [*etags, (3, last)]))
    assert rig.complete(KEY, upload, etags).size_bytes == 2 * half


def test_a_part_that_comes_again_takes_the_place(rig: DecideRig) -> None:
    upload = rig.upload(KEY)
    old = rig.part(KEY, upload, 1, 10, tag=b"old")
    new = rig.part(KEY, upload, 1, 20, tag=b"new")
    refused(rig, InvalidPart, lambda: rig.complete(KEY, upload, [(1, old)]))
    assert rig.complete(KEY, upload, [(1, new)]).size_bytes == 20


def test_complete_again_answers_the_same_until_it_is_forgotten(rig: DecideRig) -> None:
    upload = rig.upload(KEY)
    etag = rig.part(KEY, upload, 1, 10)
    first = rig.complete(KEY, upload, [(1, etag)])
    rig.put(KEY, b"another")
    sequence = rig.catalog.applier.sequence
    assert rig.complete(KEY, upload, [(1, etag)]) == first
    assert rig.catalog.applier.sequence == sequence
    assert size_of(rig) == len(b"another"), "the object is not made again"
    refused(rig, NoSuchUpload, lambda: rig.part(KEY, upload, 2, 10))
    refused(rig, NoSuchUpload, lambda: rig.do(rq.AbortUpload("bucket", KEY, upload)))
    refused(rig, NoSuchUpload, lambda: rig.complete(b"another", upload, [(1, etag)]))
    rig.do(rq.ForgetResults(0))
    assert rig.catalog.applier.sequence == sequence, "there was none so old"
    rig.do(rq.ForgetResults(rig.clock.now))
    refused(rig, NoSuchUpload, lambda: rig.complete(KEY, upload, [(1, etag)]))


def test_abort(rig: DecideRig) -> None:
    upload = rig.upload(KEY)
    etag = rig.part(KEY, upload, 1, 10)
    refused(rig, NoSuchUpload, lambda: rig.do(rq.AbortUpload("bucket", b"another", upload)))
    rig.do(rq.AbortUpload("bucket", KEY, upload))
    refused(rig, NoSuchUpload, lambda: rig.do(rq.AbortUpload("bucket", KEY, upload)))
    refused(rig, NoSuchUpload, lambda: rig.complete(KEY, upload, [(1, etag)]))
    refused(rig, NoSuchUpload, lambda: rig.part(KEY, upload, 2, 10))
    refused(rig, NoSuchKey, lambda: rig.copy(b"copy", KEY))


def test_attributes_are_those_of_the_beginning(rig: DecideRig) -> None:
    attributes = Attributes(metadata={"a": "b"})
    upload = rig.do(rq.MakeUpload("bucket", KEY, attributes)).upload_id
    etag = rig.part(KEY, upload, 1, 10)
    assert rig.complete(KEY, upload, [(1, etag)]).attributes == attributes
