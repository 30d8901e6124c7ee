"""What a file system shows of a file or directory. Pure."""

import stat
from collections.abc import Mapping
from typing import Final, NamedTuple

from couchestord.io.catalog.files import NodeRow
from couchestord.store.values import decode_attributes

FILE_MODE: Final = 0o644
DIRECTORY_MODE: Final = 0o755
"""Of what S3 made, where nobody said another."""
_NS_MAX: Final = (1 << 63) - 1
ID_MAX: Final = (1 << 32) - 2
"""Of users and groups. The next one stands for none."""


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
    if mode is None or (trust_owners and (uid is None or gid is None)):
        said = decode_attributes(node.attributes).metadata
        if mode is None:
            mode = stat.S_IFDIR | DIRECTORY_MODE if node.is_directory else stat.S_IFREG | _mode_of(said)
        if trust_owners:
            uid = _id_of(said, "uid") if uid is None else uid
            gid = _id_of(said, "gid") if gid is None else gid
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


def _mode_of(said: Mapping[str, str]) -> int:
    """Bits of the user's metadata: octal when they begin with 0, as some clients write them."""
    text = _digits(said, "mode")
    try:
        return int(text, 8 if text.startswith("0") else 10) & 0o777
    except ValueError:
        return FILE_MODE


def _id_of(said: Mapping[str, str], name: str) -> int:
    """Of a user or group; root's where nobody said one that there can be."""
    id_ = int(_digits(said, name) or 0)
    return id_ if id_ <= ID_MAX else 0


def _digits(said: Mapping[str, str], name: str) -> str:
    """Empty for what is no number, or a very long one."""
    text = said.get(name, "")
    return text if text.isascii() and text.isdigit() and len(text) <= 12 else ""


def nearest_ns(time_ns: int) -> int:
    """A time that can be kept: those of the years 1678 to 2261 can."""
    return max(-_NS_MAX, min(time_ns, _NS_MAX))
