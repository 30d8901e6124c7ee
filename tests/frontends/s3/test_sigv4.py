"""Signatures against AWS's published examples for S3, and against what must be refused."""

import pytest

from couchestord.errors import (
    AccessDenied,
    AuthorizationHeaderMalformed,
    AuthorizationQueryMalformed,
    Denied,
    InvalidAccessKeyId,
    InvalidArgument,
    InvalidRequest,
    NotSupported,
    RequestTimeTooSkewed,
    SignatureDoesNotMatch,
)
from couchestord.frontends.s3.routes import parse_target
from couchestord.frontends.s3.sigv4 import Authorized, Payload, Verifier
from couchestord.model import AccessKey
from couchestord.signing import EMPTY_SHA256, canonical_request, signing_key, string_to_sign

# Key pair, time and signatures of "Signature Calculations for the Authorization Header" in the S3 API reference.
KEY = AccessKey("u", "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", 0)
NOON_NS = 1369353600 * 1_000_000_000
SCOPE = "AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request"
SIGNED = "host;range;x-amz-content-sha256;x-amz-date"
HOST = b"examplebucket.s3.amazonaws.com"


def verify(
    method: bytes, target: bytes, headers: dict[bytes, bytes], *, now_ns: int = NOON_NS, region: str = "us-east-1"
) -> Authorized:
    verifier = Verifier(region, lambda name: KEY if name == KEY.access_key else None)
    return verifier.verify(method, parse_target(target), headers, now_ns)


def authorization(signed: str, signature: str, scope: str = SCOPE) -> bytes:
    return f"AWS4-HMAC-SHA256 Credential={scope},SignedHeaders={signed},Signature={signature}".encode()


def get_object(**changes: bytes) -> dict[bytes, bytes]:
    headers = {
        b"host": HOST,
        b"range": b"bytes=0-9",
        b"x-amz-content-sha256": EMPTY_SHA256.encode(),
        b"x-amz-date": b"20130524T000000Z",
        b"authorization": authorization(
            "host;range;x-amz-content-sha256;x-amz-date",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
    }
    return headers | {name.replace("_", "-").encode(): value for name, value in changes.items()}


def test_get_object_example() -> None:
    found = verify(b"GET", b"/test.txt", get_object())
    assert (found.access_key, found.payload, found.payload_sha256) == (KEY, Payload.HASHED, EMPTY_SHA256)


def test_put_object_example() -> None:
    headers = {
        b"date": b"Fri, 24 May 2013 00:00:00 GMT",
        b"host": HOST,
        b"x-amz-content-sha256": b"44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
        b"x-amz-date": b"20130524T000000Z",
        b"x-amz-storage-class": b"REDUCED_REDUNDANCY",
        b"authorization": authorization(
            "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
    }
    assert verify(b"PUT", b"/test%24file.text", headers).payload is Payload.HASHED
    assert verify(b"PUT", b"/test$file.text", headers).payload is Payload.HASHED


@pytest.mark.parametrize(
    ("query", "signature"),
    [
        (b"lifecycle", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        (b"max-keys=2&prefix=J", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
        (b"prefix=J&max-keys=2", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)
def test_query_examples(query: bytes, signature: str) -> None:
    headers = get_object()
    del headers[b"range"]
    headers[b"authorization"] = authorization("host;x-amz-content-sha256;x-amz-date", signature)
    assert verify(b"GET", b"/?" + query, headers).access_key is KEY


def test_signed_chunks_example() -> None:
    headers = {
        b"content-encoding": b"aws-chunked",
        b"content-length": b"66824",
        b"host": b"s3.amazonaws.com",
        b"x-amz-content-sha256": b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        b"x-amz-date": b"20130524T000000Z",
        b"x-amz-decoded-content-length": b"66560",
        b"x-amz-storage-class": b"REDUCED_REDUNDANCY",
        b"authorization": authorization(
            "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;"
            "x-amz-storage-class",
            "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
        ),
    }
    assert verify(b"PUT", b"/examplebucket/chunkObject.txt", headers).payload is Payload.SIGNED_CHUNKS


PRESIGNED = (
    b"/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2F"
    b"aws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature="
    b"aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
)


def test_presigned_example_and_its_expiry() -> None:
    headers = {b"host": HOST}
    assert verify(b"GET", PRESIGNED, headers).payload is Payload.UNSIGNED
    assert verify(b"GET", PRESIGNED, headers, now_ns=NOON_NS + 86400 * 10**9)
    for now_ns in (NOON_NS + 86401 * 10**9, NOON_NS - 1000 * 10**9):
        with pytest.raises(AccessDenied):
            verify(b"GET", PRESIGNED, headers, now_ns=now_ns)
    for old, new in [
        (b"Expires=86400", b"Expires=0"),
        (b"Expires=86400", b"Expires=-1"),
        (b"Expires=86400", b"Expires=604801"),
        (b"Expires=86400", b"Expires=" + b"9" * 5000),
        (b"Expires=86400", b"Expires=0000000001" + b"0" * 5000),
        (b"Expires=86400", b"Expires=0000000001999999"),
        (b"SignedHeaders=host", b"SignedHeaders=host%3Bhost"),
        (b"X-Amz-Date=20130524T000000Z&", b""),
        (b"20130524T000000Z", b"20130525T000000Z"),
        (b"us-east-1", b"eu-west-1"),
    ]:
        with pytest.raises(AuthorizationQueryMalformed):
            verify(b"GET", PRESIGNED.replace(old, new), headers)
    with pytest.raises(SignatureDoesNotMatch):
        verify(b"GET", PRESIGNED.replace(b"86400", b"86401"), headers)
    with pytest.raises(AccessDenied):
        verify(b"GET", PRESIGNED, {**headers, b"x-amz-acl": b"public-read"})
    with pytest.raises(InvalidArgument):
        verify(b"GET", PRESIGNED, get_object())


@pytest.mark.parametrize(
    ("method", "target", "changes"),
    [
        (b"HEAD", b"/test.txt", {}),
        (b"GET", b"/test.txt2", {}),
        (b"GET", b"/test.txt?acl", {}),
        (b"GET", b"/test.txt", {"range": b"bytes=0-10"}),
        (b"GET", b"/test.txt", {"host": b"other"}),
        (b"GET", b"/test.txt", {"x_amz_date": b"20130524T000001Z"}),
        (b"GET", b"/test.txt", {"x_amz_content_sha256": b"UNSIGNED-PAYLOAD"}),
        (b"GET", b"/test.txt", {"authorization": authorization(SIGNED, "")}),
        (b"GET", b"/test.txt", {"authorization": authorization("host;x-amz-content-sha256;x-amz-date", "0" * 64)}),
    ],
)
def test_any_change_breaks_the_signature(method: bytes, target: bytes, changes: dict[str, bytes]) -> None:
    with pytest.raises(SignatureDoesNotMatch):
        verify(method, target, get_object(**changes))


@pytest.mark.parametrize("seconds", [-901, 901, 86399])
def test_skew_over_15_minutes_is_refused(seconds: int) -> None:
    with pytest.raises(RequestTimeTooSkewed):
        verify(b"GET", b"/test.txt", get_object(), now_ns=NOON_NS + seconds * 10**9)


def test_skew_up_to_15_minutes_is_fine() -> None:
    for seconds in (-900, 900):
        verify(b"GET", b"/test.txt", get_object(), now_ns=NOON_NS + seconds * 10**9)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"authorization": b"AWS AKIAIOSFODNN7EXAMPLE:sig"}, NotSupported),
        ({"authorization": b"Bearer x"}, InvalidArgument),
        ({"authorization": b"AWS4-HMAC-SHA256"}, AuthorizationHeaderMalformed),
        ({"authorization": b"AWS4-HMAC-SHA256 Credential=a/b,SignedHeaders=host,Signature=0"}, Denied),
        ({"authorization": authorization(SIGNED, "0", SCOPE.replace("/s3/", "/ec2/"))}, AuthorizationHeaderMalformed),
        ({"authorization": authorization("range", "0")}, AccessDenied),
        # a canonical request as long as the square of the head, which it took a minute to make
        ({"authorization": authorization(SIGNED + ";host" * 2, "0")}, AuthorizationHeaderMalformed),
        (
            {"authorization": authorization(";".join([SIGNED, *map(str, range(200))]), "0")},
            AuthorizationHeaderMalformed,
        ),
        ({"authorization": authorization("host;range;x-amz-date", "0")}, AccessDenied),
        ({"authorization": authorization(SIGNED, "\xff")}, SignatureDoesNotMatch),
        ({"x_amz_date": b"yesterday"}, AccessDenied),
        ({"x_amz_date": b"20130230T000000Z"}, Denied),
    ],
)
def test_malformed_authorization_is_refused(changes: dict[str, bytes], error: type[Exception]) -> None:
    with pytest.raises(error):
        verify(b"GET", b"/test.txt", get_object(**changes))


def test_anonymous_unknown_key_and_missing_hash_are_refused() -> None:
    with pytest.raises(AccessDenied):
        verify(b"GET", b"/test.txt", {b"host": HOST})
    unknown = authorization(SIGNED, "0" * 64, "X" + SCOPE)
    with pytest.raises(InvalidAccessKeyId):
        verify(b"GET", b"/test.txt", get_object(authorization=unknown))
    headers = get_object(authorization=authorization("host;range;x-amz-date", "0" * 64))
    del headers[b"x-amz-content-sha256"]
    with pytest.raises(InvalidRequest):
        verify(b"GET", b"/test.txt", headers)


def test_a_wrong_region_is_named() -> None:
    with pytest.raises(AuthorizationHeaderMalformed, match="expecting 'eu-1'"):
        verify(b"GET", b"/test.txt", get_object(), region="eu-1")


def test_the_cache_of_signing_keys_is_bounded() -> None:
    secrets = iter(range(3000))
    verifier = Verifier("us-east-1", lambda _: AccessKey("u", KEY.access_key, str(next(secrets)), 0))
    for _ in range(3000):
        with pytest.raises(SignatureDoesNotMatch):
            verifier.verify(b"GET", parse_target(b"/test.txt"), get_object(), NOON_NS)
    assert len(verifier._signing_keys) <= 1024


def test_a_key_of_one_day_is_not_taken_for_the_next() -> None:
    verifier, names = Verifier("us-east-1", lambda _: KEY), [b"host", b"x-amz-content-sha256", b"x-amz-date"]
    for day in ("20130524", "20130525", "20130524"):
        timestamp, scope = f"{day}T000000Z", f"{day}/us-east-1/s3/aws4_request"
        headers = {name: value for name, value in get_object().items() if name in names}
        headers[b"x-amz-date"] = timestamp.encode()
        canonical = canonical_request(b"GET", b"/test.txt", (), headers, names, EMPTY_SHA256.encode())
        signature = signing_key(KEY.secret_key, day, "us-east-1").sign(string_to_sign(timestamp, scope, canonical))
        signed = b";".join(names).decode()
        headers[b"authorization"] = authorization(signed, signature, f"{KEY.access_key}/{scope}")
        now_ns = NOON_NS + (day == "20130525") * 86_400_000_000_000
        verifier.verify(b"GET", parse_target(b"/test.txt"), headers, now_ns)


def test_a_key_made_anew_with_another_secret_is_not_served_from_the_cache() -> None:
    keys = [KEY]
    verifier = Verifier("us-east-1", lambda _: keys[0])
    verifier.verify(b"GET", parse_target(b"/test.txt"), get_object(), NOON_NS)
    keys[0] = AccessKey("u", KEY.access_key, "another secret", 0)
    with pytest.raises(SignatureDoesNotMatch):
        verifier.verify(b"GET", parse_target(b"/test.txt"), get_object(), NOON_NS)


def test_what_a_known_client_states_is_no_proof() -> None:
    """A second request under a known credential and list of headers is checked like the first."""
    keys = {KEY.access_key: KEY}
    verifier = Verifier("us-east-1", keys.get)
    target = parse_target(b"/test.txt")
    right = get_object()
    known = right[b"authorization"][:-64]
    for _ in range(2):
        assert verifier.verify(b"GET", target, right, NOON_NS).access_key is KEY
    for forged in (b"0" * 64, b"", b"f0e8", b"\xff" * 64, right[b"authorization"][-64:] + b",Signature=" + b"0" * 64):
        with pytest.raises((SignatureDoesNotMatch, AuthorizationHeaderMalformed)):
            verifier.verify(b"GET", target, right | {b"authorization": known + forged}, NOON_NS)
    with pytest.raises(SignatureDoesNotMatch):
        verifier.verify(b"PUT", target, right, NOON_NS)
    with pytest.raises(AccessDenied, match="x-amz-copy-source"):
        verifier.verify(b"GET", target, right | {b"x-amz-copy-source": b"b/k"}, NOON_NS)
    with pytest.raises(RequestTimeTooSkewed):
        verifier.verify(b"GET", target, right, NOON_NS + 901 * 1_000_000_000)
    with pytest.raises(RequestTimeTooSkewed):
        verifier.verify(b"GET", target, right | {b"x-amz-date": b"20130524T001501Z"}, NOON_NS)
    keys.clear()
    with pytest.raises(InvalidAccessKeyId):
        verifier.verify(b"GET", target, right, NOON_NS)


def test_only_what_was_signed_rightly_is_remembered_and_not_without_bound() -> None:
    verifier = Verifier("us-east-1", lambda _: KEY)
    target = parse_target(b"/test.txt")
    for number in range(3):
        headers = get_object(authorization=authorization(f"host;x-{number}", "0" * 64))
        with pytest.raises(AccessDenied):
            verifier.verify(b"GET", target, headers, NOON_NS)
    assert len(verifier._stated) == 0
    day, times = 1369353600, {}
    for number in range(1100):
        # a client that states something else every time: another spelling of the same list
        first, second = (b"," + b" " * spaces for spaces in divmod(number, 40))
        header = get_object()[b"authorization"].replace(b",SignedHeaders", first + b"SignedHeaders")
        header = header.replace(b",Signature=", second + b"Signature=")
        verifier.verify(b"GET", target, get_object(authorization=header), day * 1_000_000_000)
        times[number] = len(verifier._stated)
    assert max(times.values()) == 1024
    header = get_object()[b"authorization"].replace(b",SignedHeaders", b"," + b" " * 1024 + b"SignedHeaders")
    verifier.verify(b"GET", target, get_object(authorization=header), day * 1_000_000_000)
    assert header[:-64] not in verifier._stated


def test_a_signature_in_another_place_is_right_each_time() -> None:
    verifier, usual = Verifier("us-east-1", lambda _: KEY), get_object()[b"authorization"]
    credential, signed, signature = usual.removeprefix(b"AWS4-HMAC-SHA256 ").split(b",")
    for order in ((signature, signed, credential), (credential, signature, signed)):
        headers = get_object(authorization=b"AWS4-HMAC-SHA256 " + b",".join(order))
        for _ in range(2):
            verifier.verify(b"GET", parse_target(b"/test.txt"), headers, NOON_NS)
