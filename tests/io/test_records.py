"""Journal file headers and records."""

import random
import struct

import pytest

from couchestord.errors import Corrupt, UnknownFormat
from couchestord.io import records as rec
from couchestord.io.checksum import xxh3_64

STORE = b"0123456789abcdef"
HEADER = rec.FileHeader(STORE, 3, 1000, (0, 2, 5), 1004)


def record(
    store: bytes = STORE, epoch: int = 3, sequence: int = 9, meta: bytes = b"meta", body: bytes = b"body"
) -> bytes:
    return rec.pack_record(store, epoch, sequence, sequence, meta, len(body), xxh3_64(body)) + body


def test_file_header_comes_back() -> None:
    page = rec.pack_file_header(HEADER)
    assert len(page) == rec.FILE_HEADER_BYTES
    assert rec.unpack_file_header(page) == HEADER


def test_each_flipped_byte_of_a_file_header_is_refused() -> None:
    page = rec.pack_file_header(HEADER)
    for at in range(len(page.rstrip(b"\0"))):
        damaged = bytearray(page)
        damaged[at] ^= 0x81
        with pytest.raises(Corrupt):
            rec.unpack_file_header(bytes(damaged))


def test_file_of_a_newer_format_is_unknown() -> None:
    page = rec.pack_file_header(HEADER)
    length = struct.unpack("<I", page[8:12])[0]
    head = page[:4] + struct.pack("<H", rec.FILE_FORMAT + 1) + page[6:12]
    newer = head + struct.pack("<Q", xxh3_64(head + page[20 : 20 + length])) + page[20:]
    with pytest.raises(UnknownFormat):
        rec.unpack_file_header(newer)


def test_file_names_sort_and_come_back() -> None:
    keys = [(1, 1), (1, 300), (2, 5), (300, 2), (2**60, 2**60)]
    names = [rec.file_name(*key) for key in keys]
    assert names == sorted(names)
    assert [rec.parse_file_name(name) for name in names] == keys
    for name in ("", "x", names[0] + ".new", names[0][:-1], names[0].replace("-", "_"), "g" * 16 + "-" + "0" * 16):
        assert rec.parse_file_name(name) is None
    # what a number may look like as well: such a file is not ours
    for number in ("000000000000000A", "0x00000000000001", "+000000000000001", "0000000000000_01", " 00000000000000a"):
        assert rec.parse_file_name(f"{number}-{1:016x}") is None
        assert rec.parse_file_name(f"{1:016x}-{number}") is None


@pytest.mark.parametrize("body", [b"", b"x", b"body" * 1000])
def test_record_comes_back_at_any_offset(body: bytes) -> None:
    data = b"before" + record(body=body) + b"behind"
    head = rec.unpack_record(STORE, data, 6)
    assert (head.epoch, head.sequence, head.group, head.meta_length, head.body_length) == (3, 9, 9, 4, len(body))
    assert head.length == len(data) - 12


def test_each_flipped_byte_of_a_record_is_refused() -> None:
    data = record()
    for at in range(len(data)):
        for xor in (1, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[at] ^= xor
            with pytest.raises(Corrupt):
                rec.unpack_record(STORE, bytes(damaged))


def test_each_cut_record_is_refused() -> None:
    data = record()
    for length in range(len(data)):
        with pytest.raises(Corrupt):
            rec.unpack_record(STORE, data[:length])


def test_nothing_of_a_record_of_an_epoch_that_is_not_wanted_is_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may send bodies that are full of heads, each of which promises megabytes."""
    data = record()
    head = rec.unpack_record(STORE, data)
    assert rec.unpack_record(STORE, data, epoch=head.epoch) == head
    monkeypatch.setattr(rec, "xxh3_64", None)
    with pytest.raises(Corrupt, match="another epoch"):
        rec.unpack_record(STORE, data, epoch=head.epoch + 1)


def test_a_record_of_another_store_never_passes() -> None:
    with pytest.raises(Corrupt):
        rec.unpack_record(STORE, record(store=b"another store..."))


def test_epoch_sequence_and_group_are_under_the_sum() -> None:
    other = record(epoch=4, sequence=10)
    mine = record()
    for low, high in ((16, 24), (24, 32), (32, 40)):
        with pytest.raises(Corrupt):
            rec.unpack_record(STORE, mine[:low] + other[low:high] + mine[high:])


def test_record_of_a_newer_version_is_unknown() -> None:
    data = bytearray(record())
    data[4] = rec.RECORD_VERSION + 1
    head = bytes(data[: rec.HEAD_BYTES - 8])
    data[rec.HEAD_BYTES - 8 : rec.HEAD_BYTES] = struct.pack("<Q", xxh3_64(STORE + head + b"meta"))
    with pytest.raises(UnknownFormat):
        rec.unpack_record(STORE, bytes(data))


def test_noise_is_no_record() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        with pytest.raises(Corrupt):
            rec.unpack_record(STORE, rec.RECORD_MAGIC + rng.randbytes(200))


def test_records_over_the_limits_are_not_packed() -> None:
    """The reader would take them for noise."""
    with pytest.raises(AssertionError):
        rec.pack_record(STORE, 1, 1, 1, bytes(rec.META_BYTES_MAX + 1), 0, 0)
    with pytest.raises(AssertionError):
        rec.pack_record(STORE, 1, 1, 1, b"", rec.BODY_BYTES_MAX + 1, 0)


def test_digest_tells_meta_and_body_apart() -> None:
    digests = {rec.record_digest(meta, total) for meta in (b"a", b"b") for total in (1, 2)}
    assert len(digests) == 4
