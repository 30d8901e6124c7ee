"""S3's semantics of PUT, copy and delete."""

import stat
from functools import partial
from itertools import permutations

import pytest
from catalog_check import check_catalog
from decide_rig import DecideRig

from couchestord.errors import (
    AccessDenied,
    InvalidArgument,
    KeyTooLong,
    MethodNotAllowed,
    NoSuchBucket,
    NoSuchKey,
    NoSuchVersion,
    PreconditionFailed,
)
from couchestord.io import filerequests as fr
from couchestord.io import requests as rq
from couchestord.io.catalog.catalog import dump
from couchestord.io.catalog.read import EntryRow
from couchestord.model import Attributes, Conditions, DeleteResult
from couchestord.store.decide.context import find_version
from couchestord.store.values import is_marker, version_id

KEY = b"a/key"


def state(rig: DecideRig, key: bytes = KEY) -> list[str]:
    """Live object (or "-"), then noncurrent ones, newest first: size, `null` or `v`, `!` for a marker."""
    bucket = rig.catalog.reading.bucket("bucket")
    assert bucket is not None
    directory = rig.catalog.reading.directory(bucket.root, (b"a/",))
    if directory is None:
        return ["-"]
    live = rig.catalog.reading.entry(directory, b"key")
    rows = ([live] if live else []) + rig.catalog.reading.versions(directory, b"key")
    shown = [
        f"{row.size}{'null' if version_id(row, 'Enabled') == 'null' else 'v'}{'!' if is_marker(row) else ''}"
        for row in rows
    ]
    return shown if live else ["-", *shown]


def versioning(rig: DecideRig, it: str) -> None:
    rig.do(rq.SetVersioning("bucket", it))


def test_without_versioning_a_put_replaces(rig: DecideRig) -> None:
    assert rig.put(KEY, b"1").version_id is None
    rig.put(KEY, b"22")
    assert state(rig) == ["2null"]
    assert rig.delete(KEY) == DeleteResult()
    assert rig.delete(KEY) == DeleteResult()
    assert rig.delete(b"nowhere/at/all") == DeleteResult()
    assert state(rig) == ["-"]


def test_the_table_of_versions(rig: DecideRig) -> None:
    rig.put(KEY, b"1")
    versioning(rig, "Enabled")
    two = rig.put(KEY, b"22")
    assert two.version_id is not None
    assert state(rig) == ["2v", "1null"]
    marker = rig.delete(KEY)
    assert marker.delete_marker
    assert marker.version_id not in (None, "null", two.version_id)
    assert state(rig) == ["-", "0v!", "2v", "1null"]
    rig.put(KEY, b"333")
    assert state(rig) == ["3v", "0v!", "2v", "1null"]
    versioning(rig, "Suspended")
    assert rig.put(KEY, b"4444").version_id == "null"
    assert state(rig) == ["4null", "3v", "0v!", "2v"], "the null version is one"
    rig.put(KEY, b"55555")
    assert state(rig) == ["5null", "3v", "0v!", "2v"]
    assert rig.delete(KEY) == DeleteResult("null", True)
    assert state(rig) == ["-", "0null!", "3v", "0v!", "2v"]
    assert rig.delete(KEY) == DeleteResult("null", True)
    assert state(rig) == ["-", "0null!", "3v", "0v!", "2v"]
    versioning(rig, "Enabled")
    rig.put(KEY, b"666666")
    assert state(rig) == ["6v", "0null!", "3v", "0v!", "2v"]


def test_deleting_a_version_promotes_the_newest_left(rig: DecideRig) -> None:
    versioning(rig, "Enabled")
    ids = [rig.put(KEY, b"x" * size).version_id for size in (1, 2, 3)]
    assert rig.delete(KEY, ids[2]) == DeleteResult(ids[2], False)
    assert state(rig) == ["2v", "1v"]
    assert rig.delete(KEY, ids[0]) == DeleteResult(ids[0], False)
    assert state(rig) == ["2v"]
    marker = rig.delete(KEY).version_id
    assert state(rig) == ["-", "0v!", "2v"]
    older = rig.delete(KEY).version_id
    assert rig.delete(KEY, older) == DeleteResult(older, True)
    assert state(rig) == ["-", "0v!", "2v"], "a marker is not promoted"
    assert rig.delete(KEY, marker) == DeleteResult(marker, True)
    assert state(rig) == ["2v"]
    rig.delete(KEY, ids[1])
    assert state(rig) == ["-"]


def test_deleting_an_older_version_under_a_marker_leaves_it_deleted(rig: DecideRig) -> None:
    versioning(rig, "Enabled")
    ids = [rig.put(KEY, b"x" * size).version_id for size in (1, 2)]
    rig.delete(KEY)
    rig.delete(KEY, ids[0])
    assert state(rig) == ["-", "0v!", "2v"]


def test_deleting_what_is_not_there_is_no_error(rig: DecideRig) -> None:
    assert rig.delete(KEY, "0" * 16) == DeleteResult("0" * 16)
    with pytest.raises(NoSuchVersion):
        rig.delete(KEY, "nonsense")
    rig.put(KEY, b"1")
    assert rig.delete(KEY, "0" * 16) == DeleteResult("0" * 16)
    assert state(rig) == ["1null"]
    assert rig.delete(KEY, "null") == DeleteResult("null")
    assert state(rig) == ["-"]


@pytest.mark.parametrize("long", [b"x" * 1025, b"y/" * 513, b"a/" + b"\xff"])
def test_a_marker_is_made_only_under_a_key_that_can_be_or_is(rig: DecideRig, long: bytes) -> None:
    """What a mount has made may lie under another one, and is deleted as anything is."""
    rig.put(b"a/here")
    versioning(rig, "Enabled")
    before = dump(rig.path)
    with pytest.raises(KeyTooLong if len(long) > 1024 else InvalidArgument):
        rig.delete(long)
    assert dump(rig.path) == before


def test_what_lies_under_a_longer_key_gets_its_marker(rig: DecideRig) -> None:
    at = rig.catalog.reading.bucket("bucket").root  # type: ignore[union-attr]
    for _ in range(5):
        at = rig.do(fr.MakeNode(at, b"n" * 255, stat.S_IFDIR | 0o755, 0, 0)).id
    rig.do(fr.MakeNode(at, b"file", stat.S_IFREG | 0o644, 0, 0))
    versioning(rig, "Enabled")
    key = (b"n" * 255 + b"/") * 5 + b"file"
    for _ in range(2):
        assert rig.delete(key).delete_marker
    assert rig.delete(key, "null") == DeleteResult("null")


def test_versions_are_found_by_id(rig: DecideRig) -> None:
    rig.put(KEY, b"1")
    versioning(rig, "Enabled")
    two = rig.put(KEY, b"22").version_id
    bucket = rig.catalog.reading.bucket("bucket")
    assert bucket is not None
    reading = rig.catalog.reading
    assert find_version(reading, bucket, KEY, None)[2].size == 2
    assert find_version(reading, bucket, KEY, two)[2].size == 2
    assert find_version(reading, bucket, KEY, "null")[2].size == 1
    with pytest.raises(NoSuchVersion):
        find_version(reading, bucket, KEY, "00000000000000ff")
    with pytest.raises(NoSuchVersion):
        find_version(reading, bucket, b"a/other", two)
    with pytest.raises(NoSuchKey):
        find_version(reading, bucket, b"a/other", None)


@pytest.mark.parametrize("state_", ["", "Enabled"])
def test_conditions_of_puts(rig: DecideRig, state_: str) -> None:
    if state_:
        versioning(rig, state_)
    with pytest.raises(NoSuchKey):
        rig.put(KEY, b"1", conditions=Conditions(if_match=("*",)))
    info = rig.put(KEY, b"1", conditions=Conditions(if_none_match=("*",)))
    with pytest.raises(PreconditionFailed):
        rig.put(KEY, b"2", conditions=Conditions(if_none_match=("*",)))
    with pytest.raises(PreconditionFailed):
        rig.put(KEY, b"2", conditions=Conditions(if_match=("0" * 32,)))
    rig.put(KEY, b"2", conditions=Conditions(if_match=(info.etag,)))
    rig.delete(KEY)
    rig.put(KEY, b"3", conditions=Conditions(if_none_match=("*",)))


def test_conditions_of_deletes(rig: DecideRig) -> None:
    with pytest.raises(NoSuchKey):
        rig.delete(KEY, conditions=Conditions(if_match=("*",)))
    info = rig.put(KEY, b"1")
    with pytest.raises(PreconditionFailed):
        rig.delete(KEY, conditions=Conditions(if_match=("0" * 32,)))
    with pytest.raises(PreconditionFailed):
        rig.delete(KEY, "null", conditions=Conditions(if_match=("0" * 32,)))
    for version in (None, "null"):
        with pytest.raises(PreconditionFailed):  # S3 has no such condition; the key is not deleted against it
            rig.delete(KEY, version, conditions=Conditions(if_none_match=("*",)))
    assert rig.delete(b"gone", conditions=Conditions(if_none_match=("*",))) == DeleteResult()
    assert rig.delete(KEY, conditions=Conditions(if_match=(info.etag,))) == DeleteResult()


def test_a_bucket_that_changed_hands_is_not_changed(rig: DecideRig) -> None:
    rig.put(KEY, b"1")
    other, owner = Conditions(bucket_owner="another"), Conditions(bucket_owner="owner")
    upload = rig.upload(KEY)
    for change in (
        partial(rig.put, KEY, conditions=other),
        partial(rig.delete, KEY, conditions=other),
        partial(rig.copy, b"copy", KEY, conditions=other),
        partial(rig.copy, b"copy", KEY, source_conditions=other),
        partial(rig.complete, KEY, upload, [(1, "x")], conditions=other),
        partial(rig.do, rq.RemoveBucket("bucket", "another")),
    ):
        with pytest.raises(AccessDenied):
            change()
    rig.put(KEY, conditions=owner)
    rig.copy(b"copy", KEY, conditions=owner, source_conditions=owner)
    for key in (KEY, b"copy"):
        rig.delete(key, conditions=owner)
    rig.do(rq.RemoveBucket("bucket", "owner"))


def test_a_refusal_changes_nothing(rig: DecideRig) -> None:
    before = rig.catalog.applier.sequence, rig.catalog.applier.next_id
    for key, error in ((b"", InvalidArgument), (b"x" * 1025, KeyTooLong), (b"\xff", InvalidArgument)):
        with pytest.raises(error):
            rig.put(key)
    with pytest.raises(NoSuchBucket):
        rig.put(KEY, bucket="nobody")
    with pytest.raises(NoSuchKey):
        rig.put(b"new/directory", conditions=Conditions(if_match=("*",)))
    assert (rig.catalog.applier.sequence, rig.catalog.applier.next_id) == before


def test_copies_share_the_bytes_and_outlive_the_source(rig: DecideRig) -> None:
    rig.put(KEY, b"12345", attributes=Attributes(metadata={"a": "b"}))
    assert rig.copy(b"copy", KEY).attributes.metadata == {"a": "b"}
    assert rig.copy(b"bare", b"copy", attributes=Attributes()).attributes == Attributes()
    rig.delete(KEY)
    check_catalog(rig.path)
    rows = rig.catalog.reading
    bucket = rows.bucket("bucket")
    assert bucket is not None
    copy, bare = rows.live(bucket.root, b"copy"), rows.live(bucket.root, b"bare")
    assert copy is not None
    assert bare is not None
    assert copy.content == bare.content is not None
    assert (copy.size, copy.etag) == (5, bare.etag)
    rig.put(b"empty")
    assert rig.copy(b"empty too", b"empty").size_bytes == 0


def test_a_copy_onto_itself_must_change_something(rig: DecideRig) -> None:
    rig.put(KEY, b"12345")
    with pytest.raises(InvalidArgument):
        rig.copy(KEY, KEY)
    assert rig.copy(KEY, KEY, attributes=Attributes(metadata={"n": "1"})).attributes.metadata == {"n": "1"}
    assert state(rig) == ["5null"]
    versioning(rig, "Enabled")
    rig.copy(KEY, KEY)
    rig.copy(KEY, KEY, version_id="null")
    assert state(rig) == ["5v", "5v", "5null"]


def test_copy_refusals(rig: DecideRig) -> None:
    versioning(rig, "Enabled")
    info = rig.put(KEY, b"12345")
    marker = rig.delete(KEY)
    with pytest.raises(NoSuchKey):
        rig.copy(b"copy", KEY)
    with pytest.raises(MethodNotAllowed):
        rig.copy(b"copy", KEY, version_id=marker.version_id)
    with pytest.raises(PreconditionFailed):
        rig.copy(b"copy", KEY, version_id=info.version_id, source_conditions=Conditions(if_none_match=(info.etag,)))
    with pytest.raises(NoSuchKey):
        rig.copy(b"copy", KEY, version_id=info.version_id, conditions=Conditions(if_match=("*",)))
    assert rig.copy(b"copy", KEY, version_id=info.version_id).size_bytes == 5


# -- hard links, made before versions are kept -------------------------------------------------------------------------

LINKED, OTHER, THIRD = b"linked", b"other", b"third"


def link(rig: DecideRig) -> int:
    """A file of three names in a bucket that keeps versions from then on; its number."""
    rig.put(LINKED, b"linked")
    row = live(rig, LINKED)
    assert row is not None
    bucket = rig.catalog.reading.bucket("bucket")
    assert bucket is not None
    for name in (OTHER, THIRD):
        rig.do(fr.LinkNode(row.inode, bucket.root, name))
    versioning(rig, "Enabled")
    return row.inode


def live(rig: DecideRig, key: bytes) -> EntryRow | None:
    bucket = rig.catalog.reading.bucket("bucket")
    assert bucket is not None
    return rig.catalog.reading.live(bucket.root, key)


def check_names(rig: DecideRig, inode: int, count: int, *names: bytes) -> None:
    """So many entries and versions hold the file; these names are it, and it shows what they say of it."""
    check_catalog(rig.path)
    for key in (LINKED, OTHER, THIRD):
        row = live(rig, key)
        assert (row is not None and row.inode == inode) == (key in names)
    node, shown = rig.catalog.files.node(inode), rig.catalog.files.object(inode)
    if not count:
        assert node is None
        return
    assert node is not None
    assert node.nlink == count
    if names:
        row = live(rig, names[0])
        assert row is not None
        assert shown is not None
        assert (node.published_ns, shown.etag) == (row.modified_ns, row.etag)


@pytest.mark.parametrize("name", [LINKED, OTHER])
def test_the_null_version_of_a_linked_name_goes_alone(rig: DecideRig, name: bytes) -> None:
    inode = link(rig)
    left = [key for key in (LINKED, OTHER, THIRD) if key != name]
    rig.put(name, b"new")
    check_names(rig, inode, 3, *left)
    rig.delete(name, "null")
    check_names(rig, inode, 2, *left)
    rig.delete(left[0], "null")
    check_names(rig, inode, 1, left[1])
    rig.delete(left[1], "null")
    check_names(rig, inode, 0)


def test_a_linked_name_comes_back_when_what_was_put_over_it_goes(rig: DecideRig) -> None:
    inode = link(rig)
    for key in (OTHER, LINKED, THIRD):
        new = rig.put(key, b"new").version_id
        marker = rig.delete(key).version_id
        rig.delete(key, new)
        rig.delete(key, marker)
        check_names(rig, inode, 3, LINKED, OTHER, THIRD)
    new = {key: rig.put(key, b"new").version_id for key in (LINKED, OTHER, THIRD)}
    for key in new:
        check_names(rig, inode, 3)
        rig.delete(key, new[key])
        check_names(rig, inode, 3, key)
        new[key] = rig.put(key, b"new").version_id
    rig.delete(LINKED, "null")
    rig.delete(OTHER, new[OTHER])
    check_names(rig, inode, 2, OTHER)
    rig.delete(THIRD, new[THIRD])
    check_names(rig, inode, 2, OTHER, THIRD)


def test_a_new_null_version_drops_one_of_several_that_a_file_is(rig: DecideRig) -> None:
    inode = link(rig)
    rig.put(LINKED, b"new")
    rig.delete(OTHER)
    versioning(rig, "Suspended")
    rig.put(LINKED, b"newer")
    check_names(rig, inode, 2, THIRD)
    rig.put(THIRD, b"newer")
    check_names(rig, inode, 1)
    rig.delete(OTHER)
    check_names(rig, inode, 0)


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_a_file_goes_with_the_last_that_holds_it(rig: DecideRig, order: tuple[int, ...]) -> None:
    inode = link(rig)
    new = rig.put(LINKED, b"new").version_id
    rig.delete(OTHER)
    versions = [(LINKED, "null"), (OTHER, "null"), (THIRD, "null"), (LINKED, new)]
    for index in order:
        rig.delete(*versions[index])
        check_catalog(rig.path)
        holding = {it for it in order[order.index(index) + 1 :] if it < 3}
        assert (rig.catalog.files.node(inode) is not None) == bool(holding)
    left = dump(rig.path)
    assert [left[table] for table in ("entry", "inode", "link", "content", "extent")] == [[], [], [], [], []]
