"""What a mutation through a mount did. Pure. `mutations` says what outcomes are."""

import msgspec

from couchestord.io.outcome import Extent, Outcome


class NodeMade(Outcome, frozen=True, tag=70):
    """An entry names a new inode: an empty file, a directory (`name` ends in a slash, and `id` is the directory's,
    too), a symbolic link, whose target is the record's body, too, or a special file, as `mode` says. `etag` and
    `attributes` are those of the object that it is.
    """

    directory: int
    name: bytes
    id: int
    mode: int
    uid: int
    gid: int
    made_ns: int
    rdev: int = 0
    target: bytes = b""
    etag: bytes = b""
    attributes: bytes = b""
    policy: int = 0
    """What a target is kept under."""
    token: int = 0
    """That of the request, by which it is found in the log when it is asked for again; in others, too."""


class Linked(Outcome, frozen=True, tag=71):
    """An inode has one more name, whose cookie is `cookie`."""

    inode: int
    directory: int
    name: bytes
    cookie: int
    changed_ns: int
    token: int = 0


class Unlinked(Outcome, frozen=True, tag=72):
    """A name of an inode, or an empty directory (its name ends in a slash), goes. `keep`: without a name the inode
    stays until it is freed, somebody may have it open.
    """

    directory: int
    name: bytes
    changed_ns: int
    keep: bool = False
    token: int = 0


class Renamed(Outcome, frozen=True, tag=73):
    """An entry has another directory and name; what had that name, if anything, is unlinked first."""

    directory: int
    name: bytes
    to_directory: int
    to_name: bytes
    changed_ns: int
    keep: bool = False
    """As in `Unlinked`."""
    token: int = 0


class InodeChanged(Outcome, frozen=True, tag=74):
    """Attributes of a file, or of the directory of that number; None: as before."""

    inode: int
    changed_ns: int
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    accessed_ns: int | None = None
    modified_ns: int | None = None


class Lay(msgspec.Struct, frozen=True, array_like=True):
    """`length` bytes of a content, from `start` on, are those of the file from `offset` on."""

    offset: int
    start: int
    length: int


class NewContent(msgspec.Struct, frozen=True, array_like=True):
    """Extent i has the id `id` + i."""

    id: int
    length: int
    extents: tuple[Extent, ...]
    lays: tuple[Lay, ...]
    policy: int = 0


class FilePublished(Outcome, frozen=True, tag=75):
    """A file has other bytes: it was cut to `cut` first, then what the file `spill` is made of (0: none) and contents
    were laid over what there was, and it is `size` long.
    """

    inode: int
    size: int
    cut: int
    contents: tuple[NewContent, ...]
    etag: bytes
    published_ns: int
    modified_ns: int
    changed_ns: int
    attributes: bytes | None = None
    """Those of the object, when they are others now."""
    spill: int = 0


class PiecesJoined(Outcome, frozen=True, tag=78):
    """A new content takes the place of pieces of a file. Its bytes are theirs: the file is as it was."""

    inode: int
    content: NewContent


class SpillMade(Outcome, frozen=True, tag=79):
    """An empty file without a name, for bytes of another one that are not to be seen yet."""

    id: int
    made_ns: int


class XattrSet(Outcome, frozen=True, tag=76):
    """An extended attribute of an inode has a value, or with None is gone."""

    inode: int
    name: bytes
    value: bytes | None
    changed_ns: int
    token: int = 0


class OrphansFreed(Outcome, frozen=True, tag=77):
    """Nobody has these inodes without a name open any more."""

    inodes: tuple[int, ...]


AnyFileOutcome = (
    NodeMade
    | Linked
    | Unlinked
    | Renamed
    | InodeChanged
    | FilePublished
    | PiecesJoined
    | SpillMade
    | XattrSet
    | OrphansFreed
)
