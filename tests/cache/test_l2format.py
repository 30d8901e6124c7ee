"""Seen to fail with: sums not compared, no salt, an index of another turn taken, a version that is not looked at."""

from array import array

import pytest

from couchestord.cache import l2format as fmt
from couchestord.errors import Corrupt, UnknownFormat
from couchestord.io.checksum import xxh3_64

SALT = 77
STORED = bytes(range(100))
HEAD = fmt.Head(1, 1 << 40, 9, 300, len(STORED), 4, 6, xxh3_64(STORED))
STATE = fmt.State(bytes(16), bytes(range(16)), 1 << 20, 3, (50, 20, 90), fmt.Mark(7, b"token678"))


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)


def test_a_record_says_what_was_written() -> None:
    record = b"before" + fmt.pack_head(SALT, HEAD) + STORED
    assert fmt.unpack_head(SALT, record, 6) == HEAD
    assert bytes(fmt.stored_of(HEAD, record, 6) or b"") == STORED
    assert fmt.record_bytes(len(STORED)) % fmt.ALIGNMENT_BYTES == 0
    assert 0 <= fmt.record_bytes(len(STORED)) - len(record) + 6 < fmt.ALIGNMENT_BYTES


def test_a_flip_anywhere_in_a_record_is_seen() -> None:
    record = fmt.pack_head(SALT, HEAD) + STORED
    for at in range(len(record)):
        changed = flipped(record, at, at % 8)
        head = fmt.unpack_head(SALT, changed)
        assert head is None or fmt.stored_of(head, changed) is None


def test_a_record_of_another_folder_or_cut_short_is_none() -> None:
    record = fmt.pack_head(SALT, HEAD) + STORED
    assert fmt.unpack_head(SALT + 1, record) is None
    assert fmt.unpack_head(SALT, record[: fmt.HEAD_BYTES - 1]) is None
    assert fmt.stored_of(HEAD, record[:-1]) is None


def test_a_segment_page_is_of_its_folder_number_and_turn() -> None:
    page = fmt.pack_segment(SALT, 3, 12)
    assert len(page) == fmt.PAGE_BYTES
    assert fmt.unpack_segment(SALT, 3, page) == 12
    assert fmt.unpack_segment(SALT, 4, page) is None
    assert fmt.unpack_segment(SALT + 1, 3, page) is None
    assert fmt.unpack_segment(SALT, 3, b"") is None
    assert all(fmt.unpack_segment(SALT, 3, flipped(page, at)) is None for at in range(28))


def test_an_index_is_whole_and_of_its_turn_or_none() -> None:
    index = fmt.SegmentIndex(3, 12, 8192, True, array("Q", [1, 1 << 63]), array("Q", [5, 6]))
    packed = fmt.pack_index(SALT, index)
    assert len(packed) == fmt.index_bytes(2)
    assert fmt.unpack_index(SALT, 3, 12, packed + bytes(99)) == index
    assert fmt.unpack_index(SALT, 3, 11, packed) is None
    assert fmt.unpack_index(SALT, 2, 12, packed) is None
    assert fmt.unpack_index(SALT + 1, 3, 12, packed) is None
    assert fmt.unpack_index(SALT, 3, 12, packed[:-1]) is None
    assert fmt.unpack_index(SALT, 3, 12, b"") is None
    assert all(
        fmt.unpack_index(SALT, 3, 12, flipped(packed, at)) is None for at in range(len(packed)) if at not in (6, 7)
    )


def test_a_state_is_whole_or_damage() -> None:
    page = fmt.pack_state(STATE)
    assert len(page) == fmt.PAGE_BYTES
    assert fmt.unpack_state(page) == STATE
    for at in range(len(page.rstrip(b"\0"))):
        with pytest.raises(Corrupt):
            fmt.unpack_state(flipped(page, at))
    for cut in (0, 11, 40):
        with pytest.raises(Corrupt):
            fmt.unpack_state(page[:cut])


def test_a_state_with_the_most_openings_fits_its_page() -> None:
    full = fmt.State(bytes(16), bytes(16), 1 << 28, 1 << 31, (fmt.ID_MAX,) * 256, fmt.Mark(1 << 40, bytes(8)))
    assert fmt.unpack_state(fmt.pack_state(full)) == full


def test_a_newer_format_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fmt, "VERSION", 2)
    page = fmt.pack_state(STATE)
    monkeypatch.undo()
    with pytest.raises(UnknownFormat):
        fmt.unpack_state(page)


def test_limits_are_the_lowest_of_all_openings_since() -> None:
    assert STATE.limits == [fmt.ID_MAX, 90, 20, 20]


def test_another_folder_or_store_has_another_salt() -> None:
    other_folder = fmt.State(STATE.store_id, bytes(16), 1 << 20, 3, (), STATE.mark)
    other_store = fmt.State(b"x" * 16, STATE.folder_id, 1 << 20, 3, (), STATE.mark)
    assert len({STATE.salt, other_folder.salt, other_store.salt}) == 3
