import dataclasses
import struct

import pytest
from stripe_rig import pattern, reseal

from couchestord.ec import shards as sh
from couchestord.ec.codec import Codec, ZfecEngine
from couchestord.errors import Corrupt, InvalidArgument, UnknownFormat

IDENTITY = sh.SegmentIdentity(b"store of a test!", 77, 5, 4, 2)
SEGMENT = sh.SegmentHeader(
    b"store of a test!", 77, 5, 3, sh.ALGORITHM, 4, 2, 0, 1 << 20, sh.CHECK_BYTES, (0, 1, 2, 3, -1, 5)
)
CODEC = Codec(4, 2, ZfecEngine())


def encode(length: int = 200_000) -> sh.EncodedStripe:
    return sh.encode_stripe(CODEC, IDENTITY, 66, pattern(length))


def test_a_stripe_keeps_its_data_in_order_and_pads_with_zeros() -> None:
    data = pattern(200_001)
    stripe = sh.encode_stripe(CODEC, IDENTITY, 66, data)
    assert stripe.shard_length == 50_048
    assert b"".join(stripe.payloads[:4]) == data.ljust(4 * 50_048, b"\0")
    assert stripe.pages_count == 1 + 13
    for index in range(6):
        written = b"".join(bytes(buffer) for buffer in stripe.buffers(index))
        assert len(written) == stripe.pages_count * sh.PAGE_BYTES
        header = sh.unpack_stripe_header(written[: sh.PAGE_BYTES], IDENTITY, 66, index)
        assert (header.length, header.shard_length) == (200_001, 50_048)
        sh.verify_blocks(header, 0, stripe.payloads[index])
        sh.verify_blocks(header, 2, stripe.payloads[index][2 * sh.CHECK_BYTES :])


@pytest.mark.parametrize("length", [1, 63, 64, 255, 256, 257, 65536, 1 << 20])
def test_any_four_shards_give_the_data_back(length: int) -> None:
    data = pattern(length)
    stripe = sh.encode_stripe(CODEC, IDENTITY, 1, data)
    rebuilt = CODEC.reconstruct({index: stripe.payloads[index] for index in (1, 3, 4, 5)}, [0, 2])
    assert b"".join([rebuilt[0], stripe.payloads[1], rebuilt[2], stripe.payloads[3]])[:length] == data


def test_parity_goes_into_the_buffers_given() -> None:
    parity = [bytearray(50_048), bytearray(50_048)]
    stripe = sh.encode_stripe(CODEC, IDENTITY, 66, pattern(200_001), parity)
    assert stripe.payloads[4] is parity[0]
    assert [bytes(each) for each in parity] == [bytes(each) for each in encode(200_001).payloads[4:]]


def test_a_full_stripe_of_1_mib_takes_65_pages_of_each_file() -> None:
    assert sh.full_stripe_pages(4, 1 << 20) == 65
    assert sh.shard_length(1 << 20, 4) == 256 << 10
    assert sh.shard_length(1, 4) == 64


def test_a_flip_of_any_byte_of_a_header_is_found() -> None:
    page = encode().pages[2]
    used = 4096 - len(page.rstrip(b"\0"))
    for at in range(0, 4096 - used):
        broken = bytearray(page)
        broken[at] ^= 0x40
        with pytest.raises((Corrupt, UnknownFormat)):
            sh.unpack_stripe_header(broken, IDENTITY, 66, 2)


@pytest.mark.parametrize(
    "other",
    [
        {"store_id": b"another store!!!"},
        {"segment": 78},
        {"epoch": 6},
        {"k": 5, "m": 1},
    ],
)
def test_a_shard_of_another_is_refused(other: dict[str, object]) -> None:
    page = encode().pages[2]
    with pytest.raises(Corrupt, match="stands in the place"):
        sh.unpack_stripe_header(page, dataclasses.replace(IDENTITY, **other), 66, 2)  # type: ignore[arg-type]


def test_another_index_or_stripe_is_refused() -> None:
    stripe = encode()
    for number, index in ((66, 1), (67, 2), (66, 3)):
        with pytest.raises(Corrupt, match="stands in the place"):
            sh.unpack_stripe_header(stripe.pages[2], IDENTITY, number, index)


def test_a_zeroed_or_short_page_is_refused() -> None:
    for page in (bytes(4096), b"", encode().pages[0][:4095]):
        with pytest.raises(Corrupt):
            sh.unpack_stripe_header(page, IDENTITY, 66, 0)


def test_a_newer_version_is_refused_as_unknown() -> None:
    page = encode().pages[0]
    assert reseal(page, 4, b"\x01\x00") == page
    with pytest.raises(UnknownFormat, match="newer couchestord"):
        sh.unpack_stripe_header(reseal(page, 4, b"\x02\x00"), IDENTITY, 66, 0)


def test_a_header_that_contradicts_itself_is_refused() -> None:
    page = encode().pages[0]
    with pytest.raises(Corrupt, match="contradicts"):
        sh.unpack_stripe_header(reseal(page, 60, struct.pack("<I", 1)), IDENTITY, 66, 0)


def test_a_flip_in_a_block_is_found_and_other_blocks_stay_good() -> None:
    stripe = encode()
    header = sh.unpack_stripe_header(stripe.pages[5], IDENTITY, 66, 5)
    payload = bytearray(stripe.payloads[5])
    payload[sh.CHECK_BYTES + 17] ^= 1
    sh.verify_blocks(header, 0, payload[: sh.CHECK_BYTES])
    sh.verify_blocks(header, 2, payload[2 * sh.CHECK_BYTES :])
    with pytest.raises(Corrupt, match="block 1"):
        sh.verify_blocks(header, 0, payload)
    with pytest.raises(Corrupt):
        sh.verify_blocks(header, 1, payload[: sh.CHECK_BYTES])  # block 0 in the place of block 1


@pytest.mark.parametrize("length", [0, 1, sh.CHECK_BYTES - 1, 50_047, 50_049])
def test_a_range_that_ends_within_a_block_is_refused(length: int) -> None:
    stripe = encode()
    header = sh.unpack_stripe_header(stripe.pages[0], IDENTITY, 66, 0)
    with pytest.raises(Corrupt, match="cut short"):
        sh.verify_blocks(header, 0, bytes(stripe.payloads[0]).ljust(50_049, b"\0")[:length])


def test_a_segment_header_comes_back() -> None:
    page = sh.pack_segment_header(SEGMENT)
    assert len(page) == 4096
    assert sh.unpack_segment_header(page) == SEGMENT
    sh.check_segment_header(SEGMENT, IDENTITY, 3)
    for index, identity in ((2, IDENTITY), (3, dataclasses.replace(IDENTITY, epoch=4))):
        with pytest.raises(Corrupt, match="stands in the place"):
            sh.check_segment_header(SEGMENT, identity, index)


def test_a_flip_in_a_segment_header_is_found() -> None:
    page = sh.pack_segment_header(SEGMENT)
    for at in range(len(page.rstrip(b"\0"))):
        if at in (6, 7):
            continue  # reserved
        broken = bytearray(page)
        broken[at] ^= 0x20
        with pytest.raises((Corrupt, UnknownFormat)):
            sh.unpack_segment_header(broken)
    with pytest.raises(Corrupt):
        sh.unpack_segment_header(page[:100])


def test_what_only_a_newer_program_reads_is_unknown() -> None:
    import msgspec

    for change in ({"algorithm": "lrc"}, {"local_groups": 2}, {"check_bytes": 4096}):
        changed = msgspec.structs.replace(SEGMENT, **change)
        with pytest.raises(UnknownFormat):
            sh.unpack_segment_header(sh.pack_segment_header(changed))


def test_stripe_sizes_are_limited_by_the_sums_of_a_header() -> None:
    sh.check_stripe_bytes(4, 1 << 20)
    sh.check_stripe_bytes(4, sh.BLOCKS_MAX * sh.CHECK_BYTES * 4)
    with pytest.raises(InvalidArgument):
        sh.check_stripe_bytes(4, sh.BLOCKS_MAX * sh.CHECK_BYTES * 4 + 1)
    with pytest.raises(InvalidArgument):
        sh.check_stripe_bytes(4, 0)
    largest = sh.BLOCKS_MAX * sh.CHECK_BYTES
    codec = Codec(1, 1, ZfecEngine())
    identity = dataclasses.replace(IDENTITY, k=1, m=1)
    stripe = sh.encode_stripe(codec, identity, 1, bytes(largest))
    header = sh.unpack_stripe_header(stripe.pages[1], identity, 1, 1)
    sh.verify_blocks(header, 0, stripe.payloads[1])


def test_names_of_shard_files() -> None:
    assert sh.shard_path(255, 12) == "segments/00000000000000ff.12"
    assert sh.parse_shard_name("00000000000000ff.12") == (255, 12)
    for name in (
        "ff.1",
        "00000000000000FF.1",
        "00000000000000ff",
        "00000000000000ff.01",
        "00000000000000ff.1.new",
        "x" * 16 + ".1",
    ):
        assert sh.parse_shard_name(name) is None
