"""Names that mounts show, and the way back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from decide_rig import DecideRig
from hypothesis import given
from hypothesis import strategies as st

from couchestord.errors import EntryExists, InvalidName, NameTooLong
from couchestord.io import filerequests as fr
from couchestord.store.finding import find_entry
from couchestord.store.names import ESCAPE, NAME_BYTES_MAX, escaped, is_plain, shown

ODD = [b"", b".", b"..", b"\0", b"a\0b", b"n" * 255, b"n" * 256, ESCAPE, ESCAPE + b"7", ESCAPE + b"07", ESCAPE + b"A"]
bare_names = st.one_of(
    st.binary(max_size=6).map(lambda name: name.replace(b"/", b"")),
    st.sampled_from([b"a", b"b", *ODD]),
    st.integers(1, 40).map(lambda id_: ESCAPE + b"%x" % id_),
)
numbers = st.one_of(st.integers(1, 40), st.integers(1, (1 << 63) - 1))


@st.composite
def directories(draw: st.DrawFn) -> dict[bytes, int]:
    """Numbers by the tree's names; an object may stand beside a directory of its name."""
    bare = draw(st.lists(st.tuples(bare_names, st.sampled_from([b"", b"/", b"both"])), max_size=8))
    names = {name + end for name, kind in bare for end in ([b"", b"/"] if kind == b"both" else [kind])}
    found = draw(st.lists(numbers, min_size=len(names), max_size=len(names), unique=True))
    return dict(zip(sorted(names), found, strict=True))


def called(directory: dict[bytes, int], name: bytes) -> bytes:
    return shown(name, directory[name], has_twin=not name.endswith(b"/") and name + b"/" in directory)


@given(directories())
def test_no_two_entries_have_the_same_name(directory: dict[bytes, int]) -> None:
    names = [called(directory, name) for name in directory]
    assert len(set(names)) == len(names)


@given(directories())
def test_a_file_system_can_show_every_name(directory: dict[bytes, int]) -> None:
    for name in directory:
        found = called(directory, name)
        assert 0 < len(found) <= NAME_BYTES_MAX
        assert found not in (b".", b"..")
        assert not set(b"\0/") & set(found)


@given(directories())
def test_every_name_leads_back(directory: dict[bytes, int]) -> None:
    for name, id_ in directory.items():
        found = called(directory, name)
        number = escaped(found)
        if number is None:
            assert found == name.removesuffix(b"/")
        else:
            assert number == id_


@given(bare_names, numbers)
def test_plain_names_stay_as_they_are(name: bytes, id_: int) -> None:
    if is_plain(name):
        assert shown(name, id_) == shown(name + b"/", id_) == name
        assert escaped(name) is None
    assert escaped(shown(name, id_, has_twin=True)) == id_
    assert shown(name + b"/", id_) == shown(name, id_)


@pytest.mark.parametrize("digits", [b"", b"g", b"07", b"A", b" 7", b"7 ", b"0x7", b"1_0", b"+7", "٣".encode()])
def test_only_what_is_shown_is_a_number(digits: bytes) -> None:
    assert escaped(ESCAPE + digits) is None


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[DecideRig]:
    rig = DecideRig(tmp_path)
    rig.bucket()
    yield rig
    rig.close()


def root_of(rig: DecideRig) -> int:
    row = rig.catalog.writing.bucket("bucket")
    assert row is not None
    return row.root


def found(rig: DecideRig, name: bytes, directory: int | None = None) -> bytes | None:
    """The tree's name of what the root shows under a name."""
    row = find_entry(rig.catalog.files, root_of(rig) if directory is None else directory, name)
    return row.name if row is not None else None


def called_in_root(rig: DecideRig) -> dict[bytes, bytes]:
    """What the root shows, by the tree's names."""
    listed = rig.catalog.files.entries(root_of(rig), None, 100)
    return {row.name: shown(row.name, row.cookie, has_twin=has_twin) for row, has_twin in listed}


NEVER = [
    b"",
    b".",
    b"..",
    b"a/",
    b"a/b",
    b"/",
    b"a\0",
    b"n" * 256,
    ESCAPE,
    ESCAPE + b"zz",
    ESCAPE + b"-1",
    ESCAPE + b"0",
]


@pytest.mark.parametrize("name", [*NEVER, ESCAPE + b"f" * 16, ESCAPE + b"8" + b"0" * 15, ESCAPE + b"f" * 240])
def test_names_that_nothing_has(rig: DecideRig, name: bytes) -> None:
    # keys that would be those names were they taken as they are
    for key in (b"a/b", b"a//", b"./x", b"../x", b"n" * 256, ESCAPE + b"zz", ESCAPE + b"0", ESCAPE + b"-1"):
        rig.put(key)
    assert found(rig, name) is None


def test_what_cannot_be_shown_is_found_by_its_number(rig: DecideRig) -> None:
    keys = [b"a", b"a/b", b".", b"..", b"./x", b"../x", b"n" * 256, b"/x", b"p", ESCAPE + b"7"]
    for key in keys:
        rig.put(key)
    called = called_in_root(rig)
    assert len(called) == len(keys)
    assert {name for name, shown_as in called.items() if not shown_as.startswith(ESCAPE)} == {b"a/", b"p"}
    assert {name: found(rig, shown_as) for name, shown_as in called.items()} == {name: name for name in called}
    # a number leads back only to what is shown by it
    by_name = {row.name: row.cookie for row, _ in rig.catalog.files.entries(root_of(rig), None, 100)}
    assert found(rig, ESCAPE + b"%x" % by_name[b"p"]) is None
    assert found(rig, ESCAPE + b"%x" % by_name[b"a/"]) is None
    # nor elsewhere
    assert found(rig, called[b"."], by_name[b"a/"]) is None


def test_of_an_object_and_a_directory_of_its_name_the_directory_is_shown(rig: DecideRig) -> None:
    rig.put(b"a")
    assert found(rig, b"a") == b"a"
    rig.put(b"a/b")
    assert found(rig, b"a") == b"a/"
    assert found(rig, called_in_root(rig)[b"a"]) == b"a"
    twin = called_in_root(rig)[b"a"]
    rig.delete(b"a/b")
    assert found(rig, b"a") == b"a"
    assert found(rig, twin) is None


def test_second_name_of_a_file_is_found_by_its_own_number(rig: DecideRig) -> None:
    rig.put(b"p")
    inode = rig.catalog.files.entries(root_of(rig), None, 1)[0][0].node.id
    rig.do(fr.LinkNode(inode, root_of(rig), b"q"))
    rig.put(b"q/x")  # hides it
    called = called_in_root(rig)
    assert called[b"q"] != ESCAPE + b"%x" % inode
    assert found(rig, called[b"q"]) == b"q"
    row = find_entry(rig.catalog.files, root_of(rig), called[b"q"])
    assert row is not None
    assert row.node.id == inode
    assert found(rig, ESCAPE + b"%x" % inode) is None


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0", ESCAPE, ESCAPE + b"7"])
def test_such_names_cannot_be_made(rig: DecideRig, name: bytes) -> None:
    with pytest.raises(InvalidName):
        rig.do(fr.MakeNode(root_of(rig), name, 0o100644, 0, 0))


def test_names_that_are_too_long_or_taken_cannot_be_made(rig: DecideRig) -> None:
    rig.put(b"a/b")
    with pytest.raises(NameTooLong):
        rig.do(fr.MakeNode(root_of(rig), b"n" * 256, 0o100644, 0, 0))
    with pytest.raises(EntryExists):
        rig.do(fr.MakeNode(root_of(rig), b"a", 0o100644, 0, 0))
