"""What a file system shows of a file or directory. Pure."""

import stat
from collections.abc import Mapping
from typing import Final, NamedTuple

from couchestord.io.catalog.files import NodeRow
from couchestord.store.values import decode_attributes

FILE_MODE: Final = 0o644
DIRECTORY_MODE: Final = 0o755
"""Of what S3 made, where nobody said another."""


class Stat(NamedTuple):
    """As stat(2) tells it. Times in nanoseconds since 1970."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    accessed_ns: int
    modified_ns: int
    changed_ns: int


def stat_of(node: NodeRow, *, trust_owners: bool = False) -> Stat:
    """`trust_owners`: believe what S3 clients say of the owner of an object."""
    mode, uid, gid = node.mode, node.uid, node.gid
    if mode is None:
        mode = stat.S_IFDIR | DIRECTORY_MODE if node.is_directory else stat.S_IFREG | FILE_MODE
        if node.attributes:
            said = decode_attributes(node.attributes).metadata
            mode = stat.S_IFREG | _number(said, "mode", FILE_MODE) & 0o777
            if trust_owners:
                uid = _number(said, "uid", 0) if uid is None else uid
                gid = _number(said, "gid", 0) if gid is None else gid
    published_ns = node.published_ns
    return Stat(
        node.id,
        mode,
        node.nlink,
        uid or 0,
        gid or 0,
        node.rdev or 0,
        node.size,
        published_ns if node.accessed_ns is None else node.accessed_ns,
        published_ns if node.modified_ns is None else node.modified_ns,
        published_ns if node.changed_ns is None else node.changed_ns,
    )


def _number(said: Mapping[str, str], name: str, otherwise: int) -> int:
    """A number of the user's metadata: octal when it begins with 0, as some clients write modes."""
    text = said.get(name, "")
    if not (text.isascii() and text.isdigit()) or len(text) > 12:
        return otherwise
    try:
        return int(text, 8 if text.startswith("0") else 10)
    except ValueError:
        return otherwise
