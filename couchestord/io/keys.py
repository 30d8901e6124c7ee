"""Keys and bucket names: how a key falls into a path of the tree, and what may be created.

A key is cut after every `/`. Each part but the last names a directory and keeps its `/`; the last names the object in
it and may be empty. So `a//b` is the object `b` in the directory `/` in the directory `a/`, and the key `a/` is the
object with the empty name in `a/`. `a`, `a/`, `a//b` and `a/b` are four entries that do not touch one another.

Why the `/` stays in the name of a directory: a walk in depth, each directory in bytewise order of names, then gives
keys in bytewise order. Take two names p < q of one directory. If they differ at a byte that both have, all keys below
p come before all keys below q. Else p is a proper prefix of q. Then p is no directory, because `/` stands only at the
end of a name; it is one object, and the shorter key comes first.

Pure: bytes in, bytes out.
"""

import re

from couchestord.errors import InvalidArgument, InvalidBucketName, KeyTooLong
from couchestord.model import BUCKET_NAME_LENGTH_MAX, BUCKET_NAME_LENGTH_MIN, KEY_LENGTH_BYTES_MAX

_BUCKET_CHARACTERS = re.compile(r"[a-z0-9][a-z0-9.-]*[a-z0-9]")
_IP_ADDRESS = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+")
_BUCKET_PREFIXES_RESERVED = ("xn--", "sthree-", "amzn-s3-demo-")
_BUCKET_SUFFIXES_RESERVED = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")


def split_key(key: bytes) -> tuple[tuple[bytes, ...], bytes]:
    """The directories of a key, outermost first, each ending in `/`, and the object's name, which may be empty.

    Takes any bytes, a prefix of a key too: then the last part is where the range of names begins (see `prefix_range`).
    """
    *directories, name = key.split(b"/")
    return tuple([part + b"/" for part in directories]), name


def prefix_range(prefix: bytes) -> tuple[bytes, bytes | None]:
    """The half-open range `low <= x < high` of the byte strings that begin with `prefix`; None: no upper bound."""
    stem = prefix.rstrip(b"\xff")
    if not stem:
        return prefix, None
    return prefix, stem[:-1] + bytes([stem[-1] + 1])


def check_key(key: bytes) -> None:
    """Refuses a key that S3 may not create: KeyTooLong above 1024 bytes, InvalidArgument when empty or not UTF-8.

    For writes only. A mount can make names that this refuses; reading, listing and deleting them must go on working.
    """
    if len(key) > KEY_LENGTH_BYTES_MAX:
        raise KeyTooLong(f"the key has {len(key)} bytes, at most {KEY_LENGTH_BYTES_MAX} are allowed")
    if not key:
        raise InvalidArgument("the key is empty")
    try:
        key.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"the key is not UTF-8: byte {error.start} cannot be decoded") from None


def check_bucket_name(name: str) -> None:
    """Refuses a name that S3 does not allow for a new bucket: raises InvalidBucketName, which says why."""
    if not BUCKET_NAME_LENGTH_MIN <= len(name) <= BUCKET_NAME_LENGTH_MAX:
        raise InvalidBucketName(
            f"a bucket name has {BUCKET_NAME_LENGTH_MIN} to {BUCKET_NAME_LENGTH_MAX} characters, this one {len(name)}"
        )
    if not _BUCKET_CHARACTERS.fullmatch(name):
        raise InvalidBucketName("a bucket name has a-z, 0-9, '.' and '-' only, with a letter or digit at both ends")
    if ".." in name:
        raise InvalidBucketName("a bucket name does not contain '..'")
    if _IP_ADDRESS.fullmatch(name):
        raise InvalidBucketName("a bucket name does not look like an IP address")
    if name.startswith(_BUCKET_PREFIXES_RESERVED):
        raise InvalidBucketName(f"bucket names that begin with {', '.join(_BUCKET_PREFIXES_RESERVED)} are reserved")
    if name.endswith(_BUCKET_SUFFIXES_RESERVED):
        raise InvalidBucketName(f"bucket names that end in {', '.join(_BUCKET_SUFFIXES_RESERVED)} are reserved")
