"""aws-chunked: AWS's published example, every way to cut it, and every way to damage it."""

import base64
import hashlib
import itertools
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from couchestord.errors import Error, IncompleteBody, InvalidRequest, SignatureDoesNotMatch
from couchestord.frontends.s3.chunked import ChunkedDecoder, Framing
from couchestord.frontends.s3.sigv4 import SigningScope
from couchestord.signing import EMPTY_SHA256, signing_key

# "Signature Calculations: transferring payload in multiple chunks" of the S3 API reference.
SIGNING = SigningScope(
    signing_key("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "20130524", "us-east-1"),
    "20130524T000000Z",
    "20130524/us-east-1/s3/aws4_request",
    "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
)
EXAMPLE = (
    b"10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n"
    + b"a" * 65536
    + b"\r\n"
    b"400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n" + b"a" * 1024 + b"\r\n"
    b"0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n"
)
CRC32 = frozenset({"x-amz-checksum-crc32"})


def decode(framing: Framing, *pieces: bytes) -> bytes:
    decoder = ChunkedDecoder(framing)
    out = b"".join(piece for data in pieces for piece in decoder.feed(data))
    decoder.finish()
    return out


def signed(body: bytes, chunk_bytes: int, *, trailer: bool) -> bytes:
    """`body` as an SDK frames it."""
    out, previous = b"", SIGNING.seed_signature
    for start in range(0, len(body) + chunk_bytes, chunk_bytes):
        data = body[start : start + chunk_bytes]
        if not data and start < len(body):
            continue
        text = f"AWS4-HMAC-SHA256-PAYLOAD\n{SIGNING.timestamp}\n{SIGNING.scope}\n{previous}\n{EMPTY_SHA256}\n"
        previous = SIGNING.key.sign(text + hashlib.sha256(data).hexdigest())
        out += b"%x;chunk-signature=%s\r\n" % (len(data), previous.encode())
        out += data + b"\r\n" if data else b""
        if not data:
            break
    if trailer:
        line = b"x-amz-checksum-crc32:" + base64.b64encode(zlib.crc32(body).to_bytes(4, "big"))
        text = f"AWS4-HMAC-SHA256-TRAILER\n{SIGNING.timestamp}\n{SIGNING.scope}\n{previous}\n"
        signature = SIGNING.key.sign(text + hashlib.sha256(line + b"\n").hexdigest())
        out += line + b"\r\nx-amz-trailer-signature:" + signature.encode() + b"\r\n"
    return out + b"\r\n"


def unsigned(body: bytes, trailer: bytes = b"x-amz-checksum-crc32:AAAAAA==\r\n") -> bytes:
    return b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(body), body, trailer)


BODY = b"hello, world"
SIGNED = Framing(len(BODY), SIGNING, None)
SIGNED_TRAILER = Framing(len(BODY), SIGNING, CRC32)
UNSIGNED = Framing(len(BODY), None, CRC32)
FRAMES = [
    (SIGNED, signed(BODY, 5, trailer=False)),
    (SIGNED_TRAILER, signed(BODY, 5, trailer=True)),
    (UNSIGNED, unsigned(BODY)),
]
each_mode = pytest.mark.parametrize(("framing", "framed"), FRAMES, ids=["signed", "signed-trailer", "unsigned-trailer"])


def test_the_published_example() -> None:
    assert decode(Framing(66560, SIGNING, None), EXAMPLE) == b"a" * 66560


@each_mode
def test_every_cut_gives_the_same(framing: Framing, framed: bytes) -> None:
    for cut in range(len(framed) + 1):
        assert decode(framing, framed[:cut], framed[cut:]) == BODY
    assert decode(framing, *(framed[at : at + 1] for at in range(len(framed)))) == BODY


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(1, 100), st.lists(st.integers(0, 3000), max_size=10))
def test_any_body_any_chunks_any_cuts(body: bytes, chunk_bytes: int, cuts: list[int]) -> None:
    framed = signed(body, chunk_bytes, trailer=True)
    edges = sorted({0, *(min(cut, len(framed)) for cut in cuts), len(framed)})
    pieces = [framed[a:b] for a, b in itertools.pairwise(edges)]
    assert decode(Framing(len(body), SIGNING, CRC32), *pieces) == body


@pytest.mark.parametrize(("framing", "framed"), FRAMES[:2], ids=["signed", "signed-trailer"])
def test_no_byte_of_a_signed_frame_can_change(framing: Framing, framed: bytes) -> None:
    for at in range(len(framed)):
        changed = framed[:at] + bytes([framed[at] ^ 1]) + framed[at + 1 :]
        if changed.lower() == framed.lower() or changed[at : at + 1] == b"\x0c":
            continue
        with pytest.raises(Error):
            decode(framing, changed)


@each_mode
def test_no_truncation_is_taken_for_the_end(framing: Framing, framed: bytes) -> None:
    for end in range(len(framed)):
        with pytest.raises(IncompleteBody):
            decode(framing, framed[:end])


@each_mode
def test_nothing_may_follow(framing: Framing, framed: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode(framing, framed + b"x")


def test_chunks_cannot_be_swapped_dropped_or_unsigned() -> None:
    framed = signed(b"aaaaabbbbb", 5, trailer=False)
    size = framed.index(b"aaaaa") + 7
    first, second, rest = framed[:size], framed[size : 2 * size], framed[2 * size :]
    for wrong in (second + first + rest, first + first + rest, first + unsigned(b"bbbbb", b"")):
        with pytest.raises(SignatureDoesNotMatch):
            decode(Framing(10, SIGNING, None), wrong)
    for short in (first + rest, rest):
        with pytest.raises(Error):
            decode(Framing(10, SIGNING, None), short)


@pytest.mark.parametrize(
    "framed",
    [
        unsigned(BODY, b""),
        unsigned(BODY, b"x-amz-checksum-crc32:a\r\nx-amz-checksum-crc32:b\r\n"),
        unsigned(BODY, b"x-amz-checksum-sha1:a\r\n"),
        unsigned(BODY, b"x-amz-checksum-crc32:a\r\nx-amz-meta-a:b\r\n"),
        unsigned(BODY, b"x-amz-checksum-crc32:a\r\nx-amz-trailer-signature:b\r\n"),
        unsigned(BODY, b"x-amz-checksum-crc32:" + b"a" * 2000 + b"\r\n"),
        unsigned(BODY, b"nonsense\r\n"),
        unsigned(BODY[:-1]),
        unsigned(BODY + b"!"),
        unsigned(BODY).replace(b"\r\n", b"\n"),
        unsigned(BODY).replace(b"c\r\n", b"+c\r\n", 1),
        unsigned(BODY).replace(b"c\r\n", b"0xc\r\n", 1),
        unsigned(BODY).replace(b"c\r\n", b"-c\r\n", 1),
        unsigned(BODY).replace(b"c\r\n", b"c;ext=1\r\n", 1),
        unsigned(BODY).replace(b"c\r\n", b"b\r\n", 1),
        b"f" * 5000,
        b"ffffffffffffffff\r\n",
        b"\r\n",
    ],
)
def test_malformed_frames_are_refused(framed: bytes) -> None:
    with pytest.raises((InvalidRequest, IncompleteBody, SignatureDoesNotMatch)):
        decode(UNSIGNED, framed)


def test_a_chunk_that_is_too_long_is_refused_before_its_bytes() -> None:
    with pytest.raises(IncompleteBody):
        list(ChunkedDecoder(UNSIGNED).feed(b"d\r\n"))


def test_trailers_are_handed_out_and_may_end_in_lf_crlf() -> None:
    decoder = ChunkedDecoder(UNSIGNED)
    list(decoder.feed(unsigned(BODY, b"x-amz-checksum-crc32:AAAAAA==\n\r\n")))
    decoder.finish()
    assert decoder.trailers == {"x-amz-checksum-crc32": "AAAAAA=="}
