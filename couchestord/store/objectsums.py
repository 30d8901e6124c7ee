"""Checksums of an object of parts, from those of its parts, without reading a byte of it. Pure.

FULL_OBJECT is what the bytes of the object in a row give: only CRCs can be combined to it. COMPOSITE is the checksum of
the parts' checksums in a row, and says their number behind a dash.
"""

import base64
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

FULL_OBJECT: Final = "FULL_OBJECT"
COMPOSITE: Final = "COMPOSITE"


class _Polynomial(NamedTuple):
    """Of a CRC that is reflected, begins with ones and ends inverted, as all of S3's do."""

    bits: int
    reflected: int


_POLYNOMIALS: Final = {
    "crc32": _Polynomial(32, 0xEDB88320),
    "crc32c": _Polynomial(32, 0x82F63B78),
    "crc64nvme": _Polynomial(64, 0x9A6C9329AC4BC9B5),
}
_TYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "crc32": (COMPOSITE, FULL_OBJECT),
    "crc32c": (COMPOSITE, FULL_OBJECT),
    "crc64nvme": (FULL_OBJECT,),
    "sha1": (COMPOSITE,),
    "sha256": (COMPOSITE,),
}


def types_of(algorithm: str) -> tuple[str, ...]:
    """The types of checksum that an object of parts may have by that algorithm, the usual one first."""
    return _TYPES[algorithm]


def checksum_of_parts(algorithm: str, type_: str, parts: Sequence[tuple[str, int]]) -> str:
    """The checksum of an object, in base64, of the (checksum in base64, size in bytes) of its parts."""
    values = [base64.b64decode(text) for text, _ in parts]
    if type_ == COMPOSITE:
        digest = _digests(algorithm)(b"".join(values))
        return f"{base64.b64encode(digest).decode('ascii')}-{len(parts)}"
    polynomial = _POLYNOMIALS[algorithm]
    crc = 0
    shifts: dict[int, int] = {}  # the parts but the last mostly have one size
    for value, (_, size_bytes) in zip(values, parts, strict=True):
        shift = shifts.get(size_bytes)
        if shift is None:
            shift = shifts[size_bytes] = _power(size_bytes, polynomial)
        crc = _multiply(shift, crc, polynomial) ^ int.from_bytes(value, "big")
    return base64.b64encode(crc.to_bytes(polynomial.bits // 8, "big")).decode("ascii")


def _digests(algorithm: str) -> Callable[[bytes], bytes]:
    match algorithm:
        case "sha1":
            return lambda data: hashlib.sha1(data, usedforsecurity=False).digest()
        case "sha256":
            return lambda data: hashlib.sha256(data).digest()
        case "crc32":
            return lambda data: zlib.crc32(data).to_bytes(4, "big")
    return lambda data: _crc(data, _POLYNOMIALS[algorithm])


def _crc(data: bytes, polynomial: _Polynomial) -> bytes:
    """Slow: for the few bytes of the parts' checksums."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (polynomial.reflected if value & 1 else 0)
        table.append(value)
    ones = (1 << polynomial.bits) - 1
    crc = ones
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return (crc ^ ones).to_bytes(polynomial.bits // 8, "big")


def _multiply(a: int, b: int, polynomial: _Polynomial) -> int:
    """The product of two remainders. Reflected: the highest bit is that of x^0."""
    bit = 1 << polynomial.bits - 1
    product = 0
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = b >> 1 ^ (polynomial.reflected if b & 1 else 0)
    return product


def _power(size_bytes: int, polynomial: _Polynomial) -> int:
    """x^(8 * size_bytes): by it a CRC is multiplied when so many bytes follow."""
    square = 1 << polynomial.bits - 9  # x^8
    power = 1 << polynomial.bits - 1
    while size_bytes:
        if size_bytes & 1:
            power = _multiply(square, power, polynomial)
        square = _multiply(square, square, polynomial)
        size_bytes >>= 1
    return power
