"""The arithmetic of AWS Signature Version 4: what is signed, and with which key. For who checks and who signs. Pure."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import quote_from_bytes

from couchestord.errors import SignatureDoesNotMatch

ALGORITHM: Final = "AWS4-HMAC-SHA256"
EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
_PLAIN: Final = b"/-_.~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""What stands for itself in the path that is signed."""
_BLOCK_BYTES: Final = 64
_INNER_PAD: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD: Final = bytes(byte ^ 0x5C for byte in range(256))


class SigningKey:
    """A key that signs often: HMAC-SHA256 with both of its pads hashed once. A third of the price of `hmac.digest`."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        assert len(key) <= _BLOCK_BYTES
        padded = key.ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(padded.translate(_INNER_PAD))
        self._outer = hashlib.sha256(padded.translate(_OUTER_PAD))

    def sign(self, text: str) -> str:
        """The signature of a text, in hex."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text.encode("utf-8"))
        outer.update(inner.digest())
        return outer.hexdigest()


def signing_key(secret: str, date: str, region: str) -> SigningKey:
    """The key that one secret gives for one day (YYYYMMDD) and region."""
    key = ("AWS4" + secret).encode("utf-8")
    for part in (date, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode("ascii"), "sha256")
    return SigningKey(key)


def string_to_sign(timestamp: str, scope: str, canonical: bytes) -> str:
    return f"{ALGORITHM}\n{timestamp}\n{scope}\n{hashlib.sha256(canonical).hexdigest()}"


def canonical_request(
    method: bytes,
    path: bytes,
    fields: Sequence[tuple[bytes, bytes]],
    headers: Mapping[bytes, bytes],
    signed_headers: Sequence[bytes],
    payload: bytes,
) -> bytes:
    """What a request is signed over. Path and fields of the query decoded, headers by lower-case name, `payload` as
    x-amz-content-sha256 says it. Raises SignatureDoesNotMatch when a signed header is not there.
    """
    try:
        lines = [b"%b:%b" % (name, headers[name]) for name in signed_headers]
    except KeyError as error:
        raise SignatureDoesNotMatch(
            f"the signed header {error.args[0].decode('ascii')} is not in the request"
        ) from None
    block = b"\n".join(lines)
    if b"  " in block:
        block = b"\n".join([b" ".join(line.split()) if b"  " in line else line for line in lines])
    if path.translate(None, _PLAIN):
        path = quote_from_bytes(path, safe="/-_.~").encode("ascii")
    query = canonical_query(fields) if fields else b""
    return b"%b\n%b\n%b\n%b\n\n%b\n%b" % (method, path, query, block, b";".join(signed_headers), payload)


def canonical_query(fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A query in the one order and spelling that is signed, which is fit to be sent as well."""
    pairs = sorted(
        (quote_from_bytes(name, safe="-_.~"), quote_from_bytes(value, safe="-_.~"))
        for name, value in fields
        if name != b"X-Amz-Signature"
    )
    return "&".join(f"{name}={value}" for name, value in pairs).encode("ascii")
