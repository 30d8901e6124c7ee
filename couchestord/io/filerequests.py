"""What mounts ask the store's single writer to do. Values; what comes of them is decided by the store.

Directories and inodes are named by their numbers, entries by the names that a file system shows (`store.names`).
"""

from dataclasses import dataclass

from couchestord.io.fileoutcomes import Lay
from couchestord.io.outcome import Extent, Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """What must not be done twice. `token`, other than 0, is in the log when it was done. With `asked_after` it was
    asked for before, when that record was the last that the asker knew of: if it was done since, that is the answer.
    """

    token: int = 0
    asked_after: int | None = None


@dataclass(frozen=True, slots=True)
class MakeNode(Once):
    """`mode` with the type: an empty file, a directory, a symbolic link to `target`, or a special file. Answers its
    `NodeRow`. Raises EntryExists, NoSuchDirectory, InvalidName, NameTooLong.
    """

    directory: int
    name: bytes
    mode: int
    uid: int
    gid: int
    rdev: int = 0
    target: bytes = b""


@dataclass(frozen=True, slots=True)
class LinkNode(Once):
    """One more name for a file. Answers its `NodeRow`. Raises as `MakeNode`, StaleInode, IsADirectory, TooManyLinks."""

    inode: int
    directory: int
    name: bytes


@dataclass(frozen=True, slots=True)
class UnlinkNode(Once):
    """Raises NoSuchEntry, IsADirectory. `keep`: without a name the file stays until it is freed."""

    directory: int
    name: bytes
    keep: bool = False


@dataclass(frozen=True, slots=True)
class RemoveDirectory(Once):
    """Raises NoSuchEntry, NotADirectory, DirectoryNotEmpty."""

    directory: int
    name: bytes


@dataclass(frozen=True, slots=True)
class RenameNode(Once):
    """As rename(2): what has the new name is replaced, unless `no_replace` or it does not fit. Raises NoSuchEntry,
    EntryExists, NotADirectory, IsADirectory, DirectoryNotEmpty, IntoItself, AcrossBuckets.
    """

    directory: int
    name: bytes
    to_directory: int
    to_name: bytes
    no_replace: bool = False
    keep: bool = False
    """As in `UnlinkNode`, of what is replaced."""


@dataclass(frozen=True, slots=True)
class ChangeInode:
    """Attributes of a file or directory; None: as before, of `changed_ns`: now. Answers its `NodeRow`. Raises
    StaleInode.
    """

    inode: int
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    accessed_ns: int | None = None
    modified_ns: int | None = None
    changed_ns: int | None = None


@dataclass(frozen=True, slots=True)
class NewBytes:
    """Bytes that lie in `extents`, those with segment 0 in the body of the request, and where of the file they are.
    `lays` are in order, and do not overlap.
    """

    length: int
    extents: tuple[Extent, ...]
    lays: tuple[Lay, ...]
    policy: int = 0
    content: int = 0
    """Id of the first extent, when it was chosen before, as of those that lie in blobs; 0: it was not."""


@dataclass(frozen=True, slots=True)
class MakeSpill:
    """A file without a name, for bytes of another one that are not to be seen yet. It is freed as any is that nobody
    has open. Answers its number.
    """


@dataclass(frozen=True, slots=True)
class PublishFile:
    """A file is cut to `cut` bytes, those of the file `spill`, which stays as it is, and new ones are laid over it, and
    it is `size` long. Answers its `NodeRow`. Raises StaleInode, IsADirectory, EntityTooLarge, Unavailable.
    """

    inode: int
    size: int
    cut: int
    contents: tuple[NewBytes, ...]
    modified_ns: int
    changed_ns: int
    body: bytes = b""
    body_sum: int = 0
    spill: int = 0
    """0: none."""


@dataclass(frozen=True, slots=True)
class JoinPieces:
    """A content that lies in `extents` has the bytes of these pieces of a file, one behind the other, and takes their
    place wherever the file still is made of them. Answers how many bytes of the file that is.
    """

    inode: int
    old: tuple[Piece, ...]
    extents: tuple[Extent, ...]
    policy: int = 0
    body: bytes = b""
    body_sum: int = 0


@dataclass(frozen=True, slots=True)
class SetXattr(Once):
    """None: remove it. Raises StaleInode, NoSuchXattr, XattrExists, XattrTooLarge, NotPermitted for those of S3."""

    inode: int
    name: bytes
    value: bytes | None
    must_exist: bool = False
    must_not_exist: bool = False


@dataclass(frozen=True, slots=True)
class FreeOrphans:
    """Nobody has these open any more; those that are no orphans are passed over."""

    inodes: tuple[int, ...]
