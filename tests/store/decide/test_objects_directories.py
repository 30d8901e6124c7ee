"""Empty directories that mounts keep, as the objects that S3 takes them for."""

from typing import Any

import pytest
from decide_rig import DecideRig

from couchestord.errors import NoSuchKey, NoSuchVersion, PreconditionFailed
from couchestord.io import filerequests as fr
from couchestord.io import requests as rq
from couchestord.io.catalog.catalog import dump
from couchestord.io.catalog.read import BucketRow, EntryRow
from couchestord.model import Attributes, Conditions, DeleteResult
from couchestord.store.decide.context import find_version
from couchestord.store.values import decode_attributes, etag_text

MODE = 0o40755


def bucket_row(rig: DecideRig) -> BucketRow:
    row = rig.catalog.reading.bucket("bucket")
    assert row is not None
    return row


def make(rig: DecideRig, *names: bytes) -> int:
    """Directories, each in the one before it; the number of the last."""
    at = bucket_row(rig).root
    for name in names:
        at = rig.do(fr.MakeNode(at, name, MODE, 5, 6)).id
    return at


def found(rig: DecideRig, key: bytes, version_id: str | None = None) -> EntryRow | None:
    """What a GET finds."""
    try:
        return find_version(rig.catalog.reading, bucket_row(rig), key, version_id)[2]
    except (NoSuchKey, NoSuchVersion):
        return None


def directories(rig: DecideRig) -> set[bytes]:
    """Names of all but the root."""
    rows: list[Any] = dump(rig.path)["directory"]
    return {name for _, parent, name, *_ in rows if parent}


def test_what_an_empty_directory_is(rig: DecideRig) -> None:
    assert found(rig, b"") is None  # that of a bucket is none
    id_ = make(rig, b"a", b"b")
    row = found(rig, b"a/b/")
    assert row is not None
    assert (row.inode, row.size, row.content, row.modified_ns) == (id_, 0, None, rig.clock.now)
    assert decode_attributes(row.attributes) == Attributes({"content-type": "application/x-directory"})
    assert found(rig, b"a/") is found(rig, b"a/b") is found(rig, b"a") is found(rig, b"") is None
    rig.put(b"a/b/c")
    assert found(rig, b"a/b/") is None
    rig.delete(b"a/b/c")
    assert found(rig, b"a/b/") == row


def test_its_etag_is_its_own(rig: DecideRig) -> None:
    etags = set()
    one = make(rig, b"one")
    for _ in range(3):
        row = found(rig, b"one/")
        assert row is not None
        etags.add(etag_text(row.etag))
        rig.do(fr.MakeNode(one, b"x", MODE, 0, 0))
        rig.do(fr.RemoveDirectory(one, b"x"))
    etags.add(rig.put(b"object").etag)
    make(rig, b"other")
    row = found(rig, b"other/")
    assert row is not None
    etags.add(etag_text(row.etag))
    assert len(etags) == 5


def test_a_delete_removes_it_with_its_attributes(rig: DecideRig) -> None:
    id_ = make(rig, b"a")
    rig.do(fr.SetXattr(id_, b"user.x", b"y"))
    assert rig.delete(b"a/") == DeleteResult()
    assert directories(rig) == set()
    tables = dump(rig.path)
    assert tables["xattr"] == []
    assert id_ not in {row[0] for row in tables["inode"]}
    rig.do(rq.RemoveBucket("bucket"))


def test_with_it_go_those_that_it_lay_in(rig: DecideRig) -> None:
    """Else who deletes all that is listed would find others listed, as often as they are deep."""
    for way in ([b"a", b"b", b"c"], [b"full", b"x", b"y"]):
        make(rig, *way)
    rig.put(b"full/f")
    assert directories(rig) == {b"a/", b"b/", b"c/", b"full/", b"x/", b"y/"}
    rig.delete(b"a/b/c/")
    rig.delete(b"full/x/y/")
    assert directories(rig) == {b"full/"}


def test_a_delete_of_one_that_is_not_empty_does_nothing(rig: DecideRig) -> None:
    make(rig, b"a", b"b")
    rig.put(b"c/d/e")
    for key in (b"a/", b"c/", b"c/d/", b"none/", b"/"):
        assert rig.delete(key) == DeleteResult()
    assert directories(rig) == {b"a/", b"b/", b"c/", b"d/"}


def test_an_object_of_its_name_hides_it_and_takes_it_along(rig: DecideRig) -> None:
    make(rig, b"a")
    info = rig.put(b"a/", b"marker")
    row = found(rig, b"a/")
    assert row is not None
    assert (row.size, etag_text(row.etag)) == (6, info.etag)
    assert directories(rig) == {b"a/"}
    rig.delete(b"a/")
    assert directories(rig) == set()
    make(rig, b"b", b"c")
    rig.put(b"b/")
    rig.delete(b"b/")
    assert (found(rig, b"b/"), directories(rig)) == (None, {b"b/", b"c/"})


def test_conditions_see_it(rig: DecideRig) -> None:
    make(rig, b"a")
    row = found(rig, b"a/")
    assert row is not None
    with pytest.raises(PreconditionFailed):
        rig.put(b"a/", conditions=Conditions(if_none_match=("*",)))
    with pytest.raises(PreconditionFailed):
        rig.put(b"a/", conditions=Conditions(if_match=("other",)))
    with pytest.raises(PreconditionFailed):
        rig.delete(b"a/", conditions=Conditions(if_match=("other",)))
    rig.put(b"a/", b"1", conditions=Conditions(if_match=(etag_text(row.etag),)))
    rig.delete(b"a/")
    make(rig, b"a")
    row = found(rig, b"a/")
    assert row is not None
    rig.delete(b"a/", conditions=Conditions(if_match=(etag_text(row.etag),)))
    with pytest.raises(NoSuchKey):
        rig.delete(b"a/", conditions=Conditions(if_match=("*",)))
    rig.put(b"a/", conditions=Conditions(if_none_match=("*",)))


def test_a_copy_of_it_is_an_object(rig: DecideRig) -> None:
    id_ = make(rig, b"a")
    info = rig.copy(b"copied/", b"a/")
    row, copied = found(rig, b"a/"), found(rig, b"copied/")
    assert row is not None
    assert copied is not None
    assert (copied.size, copied.etag, copied.attributes) == (0, row.etag, row.attributes)
    assert (row.inode, info.size_bytes) == (id_, 0)
    upload = rig.upload(b"joined")
    part = rig.do(rq.CopyPart("bucket", b"joined", upload, 1, "bucket", b"a/", None, None, None, Conditions()))
    assert part.size_bytes == 0
    assert rig.complete(b"joined", upload, [(1, part.etag)]).size_bytes == 0


@pytest.mark.parametrize("versioning", ["Enabled", "Suspended"])
def test_where_versions_are_kept_it_is_the_null_version(rig: DecideRig, versioning: str) -> None:
    id_ = make(rig, b"p", b"a")
    rig.do(rq.SetVersioning("bucket", versioning))
    for _ in range(2):
        for version_id in (None, "null"):
            row = found(rig, b"p/a/", version_id)
            assert row is not None
            assert row.inode == id_
        marker = rig.delete(b"p/a/")
        assert marker.delete_marker
        assert found(rig, b"p/a/") is None
        assert found(rig, b"p/a/", f"{id_:016x}") is None
        assert rig.delete(b"p/a/", marker.version_id) == DeleteResult(marker.version_id, True)
        put = rig.put(b"p/a/", b"object")
        hiding = found(rig, b"p/a/")
        assert hiding is not None
        assert hiding.size == 6
        rig.delete(b"p/a/", put.version_id)
    with pytest.raises(PreconditionFailed):
        rig.delete(b"p/a/", "null", conditions=Conditions(if_match=("other",)))
    assert rig.delete(b"p/a/", "null") == DeleteResult("null")
    assert directories(rig) == set()
    assert rig.delete(b"p/a/", "null") == DeleteResult("null")
