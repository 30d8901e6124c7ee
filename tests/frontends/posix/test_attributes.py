"""What a file system shows of what S3 made, and of what mounts made."""

import stat
from typing import Any

import pytest

from couchestord.frontends.posix.attributes import stat_of
from couchestord.io.catalog.files import NodeRow
from couchestord.model import Attributes
from couchestord.store.values import encode_attributes


def node(metadata: dict[str, str] | None = None, **changes: Any) -> NodeRow:
    """A file that S3 has put, with metadata of its user."""
    attributes = encode_attributes(Attributes({}, metadata or {}))
    found = NodeRow(9, False, 1, 5, 3, None, None, None, None, None, None, None, None, 77, attributes)
    return found._replace(**changes)


def test_nobody_said_anything() -> None:
    found = stat_of(node())
    assert (found.ino, found.nlink, found.size) == (9, 1, 5)
    assert (found.mode, found.uid, found.gid, found.rdev) == (stat.S_IFREG | 0o644, 0, 0, 0)
    assert (found.accessed_ns, found.modified_ns, found.changed_ns) == (77, 77, 77)


def test_directory_that_s3_made() -> None:
    assert stat_of(node(is_directory=True, attributes=None)).mode == stat.S_IFDIR | 0o755


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("0600", 0o600),  # octal
        ("384", 0o600),  # decimal
        ("33188", 0o644),  # decimal, with the type of a file, as s3fs writes it
        ("0100755", 0o755),
        ("04755", 0o755),  # setuid of a stranger is not believed
        ("01777", 0o777),
        ("0", 0),
        ("00", 0),
        ("16877", 0o755),  # of a directory: it stays a file
        ("41471", 0o777),  # of a symbolic link: it stays a file
    ],
)
def test_mode_of_metadata(text: str, mode: int) -> None:
    assert stat_of(node({"mode": text})).mode == stat.S_IFREG | mode


@pytest.mark.parametrize(
    "text",
    ["", " ", "rw", "-1", "+644", "0o644", "0x1ff", "6 4", "0,7", "6.", "١٢", "²", "1" * 13, "1e3", "6_4", "644\n"],
)
def test_odd_texts_say_nothing(text: str) -> None:
    found = stat_of(node({"mode": text, "uid": text, "gid": text}), trust_owners=True)
    assert (found.mode, found.uid, found.gid) == (stat.S_IFREG | 0o644, 0, 0)


@pytest.mark.parametrize("text", ["0689", "08"])
def test_modes_that_are_not_octal_say_nothing(text: str) -> None:
    assert stat_of(node({"mode": text})).mode == stat.S_IFREG | 0o644


@pytest.mark.parametrize(
    ("text", "id_"),
    [
        ("1000", 1000),
        ("0", 0),
        ("0100", 100),  # no client writes ids in octal
        ("4294967294", 4294967294),
        ("4294967295", 0),  # -1: chown(2) takes it for none
        ("4294967296", 0),  # no kernel has such a one
        ("999999999999", 0),
    ],
)
def test_ids_of_metadata(text: str, id_: int) -> None:
    found = stat_of(node({"uid": text, "gid": "7"}), trust_owners=True)
    assert (found.uid, found.gid) == (id_, 7)
    found = stat_of(node({"gid": text, "uid": "7"}), trust_owners=True)
    assert (found.uid, found.gid) == (7, id_)


def test_owners_count_only_where_clients_are_trusted() -> None:
    said = node({"uid": "1000", "gid": "100", "mode": "0640"})
    found, trusted = stat_of(said), stat_of(said, trust_owners=True)
    assert (found.uid, found.gid, found.mode) == (0, 0, stat.S_IFREG | 0o640)
    assert (trusted.uid, trusted.gid, trusted.mode) == (1000, 100, stat.S_IFREG | 0o640)


def test_owner_stays_when_a_mount_has_changed_something_else() -> None:
    """Else who may change the mode of a file would lose it by that."""
    changed = node({"uid": "1000", "gid": "100", "mode": "0640"}, mode=stat.S_IFREG | 0o600)
    found, trusted = stat_of(changed), stat_of(changed, trust_owners=True)
    assert (found.uid, found.gid, found.mode) == (0, 0, stat.S_IFREG | 0o600)
    assert (trusted.uid, trusted.gid, trusted.mode) == (1000, 100, stat.S_IFREG | 0o600)
    given = stat_of(changed._replace(uid=5), trust_owners=True)
    assert (given.uid, given.gid) == (5, 100)


def test_what_a_mount_said_goes_before_metadata() -> None:
    said = {"uid": "1000", "gid": "100", "mode": "0640"}
    owned = stat_of(node(said, uid=5, gid=0), trust_owners=True)
    assert (owned.uid, owned.gid) == (5, 0)
    made = node(said, mode=stat.S_IFREG | 0o4711, uid=0, gid=0, accessed_ns=1, modified_ns=0, changed_ns=3, rdev=4)
    found = stat_of(made, trust_owners=True)
    assert (found.mode, found.uid, found.gid, found.rdev) == (stat.S_IFREG | 0o4711, 0, 0, 4)
    assert (found.accessed_ns, found.modified_ns, found.changed_ns) == (1, 0, 3)
