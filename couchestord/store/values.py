"""How values of the model are kept in rows and records. Pure."""

from collections.abc import Mapping

import msgspec

from couchestord.errors import NoSuchVersion
from couchestord.io.catalog.apply import ENTRY_VERSIONED, VERSION_MARKER
from couchestord.io.catalog.read import BucketRow, EntryRow
from couchestord.io.catalog.tree import EmptyDirectory
from couchestord.model import Attributes, BucketInfo, ObjectInfo

NULL_VERSION = "null"
_MD5_BYTES = 16


class _Attributes(msgspec.Struct, frozen=True, array_like=True):
    headers: dict[str, str] = {}
    metadata: dict[str, str] = {}
    checksums: dict[str, str] = {}


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Attributes)
_EMPTY = Attributes()


def encode_attributes(attributes: Attributes) -> bytes:
    """Empty bytes for attributes without anything in them."""
    if not (attributes.headers or attributes.metadata or attributes.checksums):
        return b""
    return _ENCODER.encode(_Attributes(dict(attributes.headers), dict(attributes.metadata), dict(attributes.checksums)))


def decode_attributes(encoded: bytes | None) -> Attributes:
    """As `encode_attributes` took them."""
    if not encoded:
        return _EMPTY
    found = _DECODER.decode(encoded)
    return Attributes(found.headers, found.metadata, found.checksums)


_OF_DIRECTORIES = encode_attributes(Attributes({"content-type": "application/x-directory"}))


def encode_mapping(mapping: Mapping[str, str]) -> bytes:
    """Empty bytes for an empty mapping."""
    return _ENCODER.encode(dict(mapping)) if mapping else b""


def decode_mapping(encoded: bytes | None) -> dict[str, str]:
    """As `encode_mapping` took it."""
    return msgspec.msgpack.decode(encoded, type=dict[str, str]) if encoded else {}


def pack_etag(md5: bytes, parts_count: int = 0) -> bytes:
    """An etag as rows hold it: 16 bytes of MD5, and the number of parts behind it for a multipart object."""
    return md5 + parts_count.to_bytes(2, "big") if parts_count else md5


def etag_text(packed: bytes) -> str:
    """An etag as S3 shows it, without quotes."""
    text = packed[:_MD5_BYTES].hex()
    return f"{text}-{int.from_bytes(packed[_MD5_BYTES:], 'big')}" if len(packed) > _MD5_BYTES else text


def parts_count(packed: bytes) -> int | None:
    """Number of parts of a multipart object's etag."""
    return int.from_bytes(packed[_MD5_BYTES:], "big") if len(packed) > _MD5_BYTES else None


def version_id(row: EntryRow, versioning: str) -> str | None:
    """The version id that S3 shows for a row in a bucket of that versioning state."""
    if row.flags & ENTRY_VERSIONED:
        return f"{row.inode:016x}"
    return NULL_VERSION if versioning else None


def key_words(key: bytes) -> str:
    """A key as a message names it."""
    return repr(key.decode("utf-8", "backslashreplace"))


def parse_version_id(text: str) -> int | None:
    """The id behind a version id, None for the null version. Raises NoSuchVersion for what is no version id."""
    if text == NULL_VERSION:
        return None
    if len(text) != 16:
        raise NoSuchVersion(f"there is no version {text!r}")
    try:
        id_ = int(text, 16)
    except ValueError:
        raise NoSuchVersion(f"there is no version {text!r}") from None
    if f"{id_:016x}" != text:
        raise NoSuchVersion(f"there is no version {text!r}")
    return id_


def is_marker(row: EntryRow) -> bool:
    return bool(row.flags & VERSION_MARKER)


def object_of_directory(it: EmptyDirectory) -> EntryRow:
    """What S3 shows of an empty directory: an object without bytes, another one after each change."""
    etag = pack_etag(it.id.to_bytes(8, "big") + it.changed_ns.to_bytes(8, "big"), 1)
    return EntryRow(it.id, None, 0, etag, it.changed_ns, 0, _OF_DIRECTORIES)


def object_info(bucket: BucketRow, key: bytes, row: EntryRow) -> ObjectInfo:
    """A row as the store's callers see it."""
    return ObjectInfo(
        bucket=bucket.name,
        key=key,
        size_bytes=row.size,
        etag=etag_text(row.etag),
        modified_ns=row.modified_ns,
        attributes=decode_attributes(row.attributes),
        version_id=version_id(row, bucket.versioning),
        delete_marker=is_marker(row),
        parts_count=parts_count(row.etag),
    )


def bucket_info(row: BucketRow, policy: str) -> BucketInfo:
    return BucketInfo(row.name, row.created_ns, row.owner, row.versioning, policy)
