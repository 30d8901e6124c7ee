"""What S3 keeps with an object, as extended attributes of the file that it is. Pure.

Each is called `user.s3.` and what S3 calls it in a header, without `x-amz-`. They can be read, and not be set.

The etag is read by its name and not listed: every file has one, and who copies files with all of their attributes
(rsync -X, mv) would fail to set it, or to remove it, for each of them.
"""

from typing import Final

from couchestord.io.catalog.files import ObjectRow
from couchestord.store.values import decode_attributes, etag_text

PREFIX: Final = b"user.s3."
ETAG: Final = PREFIX + b"etag"
_NAME_BYTES_MAX: Final = 255
"""A kernel asks for no longer one."""


def is_of_s3(name: bytes) -> bool:
    """Whether an attribute of that name could only be one of these."""
    return name.startswith(PREFIX)


def xattrs_of(row: ObjectRow) -> dict[bytes, bytes]:
    """Values by name. Metadata whose name is too long for an attribute is left out."""
    kept = decode_attributes(row.attributes)
    said = dict(kept.headers)
    said |= {f"checksum-{name}": value for name, value in kept.checksums.items()}
    said |= {f"meta.{name}": value for name, value in kept.metadata.items()}
    found = {PREFIX + name.encode(): value.encode() for name, value in said.items()}
    found[ETAG] = etag_text(row.etag).encode()
    return {name: value for name, value in found.items() if len(name) <= _NAME_BYTES_MAX}
