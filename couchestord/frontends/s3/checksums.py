"""The checksums that S3 knows, over a body as it arrives. Pure.

CRC64NVME needs the optional package awscrt; without it the algorithm is refused, never ignored.
"""

import base64
import binascii
import hashlib
import zlib
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Final, Protocol

import google_crc32c

from couchestord.errors import BadDigest, InvalidDigest, InvalidRequest, NotSupported
from couchestord.store.objectsums import types_of

PREFIX: Final = "x-amz-checksum-"
_PREFIX_BYTES: Final = PREFIX.encode("ascii")
DIGEST_BYTES: Final[Mapping[str, int]] = {"crc32": 4, "crc32c": 4, "crc64nvme": 8, "sha1": 20, "sha256": 32}
"""The algorithms, with the length of their value."""


class Checksum(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...

    def digest(self) -> bytes: ...


class _Crc:
    """A CRC made by a function (data, value so far) -> value."""

    def __init__(self, extend: Callable[[bytes | memoryview, int], int], length_bytes: int) -> None:
        self._extend = extend
        self._length_bytes = length_bytes
        self._value = 0

    def update(self, data: bytes | memoryview, /) -> None:
        self._value = self._extend(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._length_bytes, "big")


def _extend_crc32c(data: bytes | memoryview, value: int) -> int:
    return int(google_crc32c.extend(value, bytes(data)))


def _extend_crc64nvme() -> Callable[[bytes | memoryview, int], int]:
    """Raises ImportError."""
    extend: Callable[[bytes, int], int] = import_module("awscrt.checksums").crc64nvme
    return lambda data, value: extend(bytes(data), value)


def new_checksum(algorithm: str) -> Checksum:
    """Raises InvalidRequest for an unknown algorithm, NotSupported for one whose library is not installed."""
    match algorithm:
        case "crc32":
            return _Crc(zlib.crc32, 4)
        case "crc32c":
            return _Crc(_extend_crc32c, 4)
        case "crc64nvme":
            try:
                return _Crc(_extend_crc64nvme(), 8)
            except ImportError:
                raise NotSupported("CRC64NVME needs the package awscrt on the server") from None
        case "sha1":
            return hashlib.sha1(usedforsecurity=False)
        case "sha256":
            return hashlib.sha256()
    raise InvalidRequest(f"the checksum algorithm {algorithm!r} is not known")


def decode_value(text: str, length_bytes: int) -> bytes:
    """A checksum as it travels, in base64. Raises InvalidDigest."""
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        value = b""
    if len(value) != length_bytes:
        raise InvalidDigest("the checksum is not base64 of the right length")
    return value


class BodyChecksums:
    """What a request claims about its body, and the body's own values.

    Raises InvalidDigest, InvalidRequest or NotSupported when made, for claims that cannot be checked.
    """

    def __init__(self, headers: Mapping[bytes, bytes]) -> None:
        self._expected: dict[str, bytes | None] = {}
        self._running: dict[str, Checksum] = {}
        self.algorithm = ""
        """The x-amz-checksum algorithm; empty when the client sent none."""
        md5 = headers.get(b"content-md5")
        if md5 is not None:
            self._expected["md5"] = decode_value(md5.decode("latin-1"), 16)
            self._running["md5"] = hashlib.md5(usedforsecurity=False)
        values = _values(headers)
        self.trailers = _announced(headers)
        trailing = [name.removeprefix(PREFIX) for name in self.trailers or () if name.startswith(PREFIX)]
        if len(values) + len(trailing) > 1:
            raise InvalidRequest("expecting a single x-amz-checksum- header or trailer")
        for algorithm, text in values.items():
            self._add(algorithm, decode_value(text, DIGEST_BYTES[algorithm]))
        for algorithm in trailing:
            if algorithm not in DIGEST_BYTES:
                raise InvalidRequest(f"the checksum algorithm {algorithm!r} is not known")
            self._add(algorithm, None)
        declared = headers.get(b"x-amz-sdk-checksum-algorithm")
        if declared is not None and declared.decode("latin-1").lower() != self.algorithm:
            raise InvalidRequest("x-amz-sdk-checksum-algorithm names a checksum that is not in the request")

    def _add(self, algorithm: str, expected: bytes | None) -> None:
        self.algorithm = algorithm
        self._expected[algorithm] = expected
        self._running[algorithm] = new_checksum(algorithm)

    def update(self, data: bytes | memoryview) -> None:
        for checksum in self._running.values():
            checksum.update(data)

    def verify(self, trailers: Mapping[str, str]) -> None:
        """The body is complete. Raises BadDigest when it does not match, InvalidDigest for a bad trailer."""
        for algorithm, expected in self._expected.items():
            if expected is None:
                expected = decode_value(trailers.get(PREFIX + algorithm, ""), DIGEST_BYTES[algorithm])
            if self._running[algorithm].digest() != expected:
                raise BadDigest(f"the {algorithm.upper()} of the body is not the one that came with it")

    def values(self) -> dict[str, str]:
        """What to store, by algorithm; call it after `verify`."""
        if not self.algorithm:
            return {}
        return {self.algorithm: base64.b64encode(self._running[self.algorithm].digest()).decode("ascii")}


def upload_checksums(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """`algorithm` and `type` of the checksum that an upload is begun for. Raises InvalidRequest, NotSupported."""
    algorithm = headers.get(b"x-amz-checksum-algorithm", b"").decode("latin-1").lower()
    type_ = headers.get(b"x-amz-checksum-type", b"").decode("latin-1").upper()
    if not algorithm:
        if type_:
            raise InvalidRequest("x-amz-checksum-type needs an x-amz-checksum-algorithm")
        return {}
    new_checksum(algorithm)
    type_ = type_ or types_of(algorithm)[0]
    if type_ not in types_of(algorithm):
        raise InvalidRequest(f"there is no checksum {algorithm.upper()} of type {type_}")
    return {"algorithm": algorithm, "type": type_}


def object_checksums(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """What a complete says the object's checksum is, by algorithm, and its `type` if it says that.

    Raises InvalidDigest, InvalidRequest.
    """
    found = _values(headers)
    if len(found) > 1:
        raise InvalidRequest("expecting a single x-amz-checksum- header")
    for algorithm, text in found.items():
        decode_value(text.partition("-")[0], DIGEST_BYTES[algorithm])
    if (type_ := headers.get(b"x-amz-checksum-type")) is not None:
        found["type"] = type_.decode("latin-1").upper()
    return found


def _values(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    found = {}
    for name, value in headers.items():
        if not name.startswith(_PREFIX_BYTES):
            continue
        algorithm = name.decode("latin-1").removeprefix(PREFIX)
        if algorithm in ("algorithm", "type", "mode"):
            continue
        if algorithm not in DIGEST_BYTES:
            raise InvalidRequest(f"the checksum algorithm {algorithm!r} is not known")
        found[algorithm] = value.decode("latin-1")
    return found


def _announced(headers: Mapping[bytes, bytes]) -> frozenset[str] | None:
    value = headers.get(b"x-amz-trailer")
    if value is None:
        return None
    return frozenset(name.strip().lower() for name in value.decode("latin-1").split(",") if name.strip())
