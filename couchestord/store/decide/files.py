"""Decisions about what mounts ask for."""

import stat
from dataclasses import replace
from functools import partial
from typing import Any, Final

from couchestord.errors import (
    AcrossBuckets,
    DirectoryNotEmpty,
    EntityTooLarge,
    EntryExists,
    IntoItself,
    InvalidName,
    IsADirectory,
    NameTooLong,
    NoSuchEntry,
    NoSuchXattr,
    NotADirectory,
    NotPermitted,
    ReadOnlyBucket,
    StaleInode,
    TooManyLinks,
    XattrExists,
    XattrTooLarge,
)
from couchestord.io import fileoutcomes as fo
from couchestord.io import filerequests as fr
from couchestord.io.catalog.files import BucketOfFiles, FileReader, NamedRow, NodeRow
from couchestord.io.checksum import xxh3_64
from couchestord.model import OBJECT_BYTES_MAX, Attributes
from couchestord.store.decide.context import Context, Decision
from couchestord.store.finding import Buckets, find_entry
from couchestord.store.names import NAME_BYTES_MAX, is_plain
from couchestord.store.pieces import still_there
from couchestord.store.values import decode_attributes, encode_attributes, pack_etag
from couchestord.store.xattrs import is_of_s3

LINKS_MAX: Final = 65_000
"""As many as ext4 allows."""
XATTRS_BYTES_MAX: Final = 64 << 10
"""Names and values of one file."""
_TYPES: Final = {
    stat.S_IFLNK: "inode/symlink",
    stat.S_IFIFO: "inode/fifo",
    stat.S_IFSOCK: "inode/socket",
    stat.S_IFCHR: "inode/chardevice",
    stat.S_IFBLK: "inode/blockdevice",
}
"""What S3 calls what is no file."""


class FileDecisions:
    """Files and directories."""

    def __init__(self, context: Context, files: FileReader) -> None:
        self._it = context
        self._files = files
        self._buckets = Buckets(files, context.applier.generations)

    # -- entries -----------------------------------------------------------------------------------------------------

    def make(self, request: fr.MakeNode) -> Decision:
        self._check_free(request.directory, request.name)
        bucket = self._check_writable(request.directory)
        parent = self._files.node(request.directory)
        mode, gid, is_directory = request.mode, request.gid, stat.S_ISDIR(request.mode)
        if parent is not None and (parent.mode or 0) & stat.S_ISGID:
            gid = parent.gid or 0
            mode |= stat.S_ISGID if is_directory else 0
        id_, now_ns = self._it.applier.next_id, self._it.clock.now_ns()
        kind = _TYPES.get(stat.S_IFMT(mode))
        outcome = fo.NodeMade(
            request.directory,
            request.name + b"/" if is_directory else request.name,
            id_,
            mode,
            request.uid,
            gid,
            now_ns,
            request.rdev,
            request.target,
            b"" if is_directory else self._etag(id_),
            encode_attributes(Attributes({"content-type": kind})) if kind else b"",
            bucket.policy,
            request.token,
        )
        times = now_ns, now_ns, now_ns
        size, owners = len(request.target), (mode, request.uid, gid, request.rdev)
        node = NodeRow(
            id_, is_directory, 1 + is_directory, size, None, *owners, request.target or None, *times, now_ns, None
        )
        return Decision(outcome, node, request.target, xxh3_64(request.target))

    def link(self, request: fr.LinkNode) -> Decision:
        node = self._file(request.inode)
        if node.nlink >= LINKS_MAX:
            raise TooManyLinks(f"a file has at most {LINKS_MAX} names")
        if not node.nlink:
            raise NoSuchEntry("a file without a name gets none again")
        place = self._files.place(node.id)
        if place is None:
            raise StaleInode(f"file {node.id} has no name")
        self._check_free(request.directory, request.name)
        self._check_same_bucket(place[0], request.directory)
        self._check_writable(request.directory)
        now_ns = self._it.clock.now_ns()
        cookie = self._it.applier.next_id
        outcome = fo.Linked(node.id, request.directory, request.name, cookie, now_ns, request.token)
        return Decision(outcome, node._replace(nlink=node.nlink + 1, changed_ns=now_ns))

    def unlink(self, request: fr.UnlinkNode) -> Decision:
        found = self._find(request.directory, request.name)
        if found.node.is_directory:
            raise IsADirectory("that is a directory")
        self._check_writable(request.directory)
        now_ns = self._it.clock.now_ns()
        return Decision(fo.Unlinked(request.directory, found.name, now_ns, request.keep, request.token))

    def remove_directory(self, request: fr.RemoveDirectory) -> Decision:
        found = self._find(request.directory, request.name)
        if not found.node.is_directory:
            raise NotADirectory("that is no directory")
        self._check_empty(found.node.id)
        self._check_writable(request.directory)
        now_ns = self._it.clock.now_ns()
        return Decision(fo.Unlinked(request.directory, found.name, now_ns, token=request.token))

    def rename(self, request: fr.RenameNode) -> Decision:
        found = self._find(request.directory, request.name)
        self._check_same_bucket(request.directory, request.to_directory)
        self._check_writable(request.directory)
        if found.node.is_directory:
            self._check_not_below(found.node.id, request.to_directory)
        target = find_entry(self._files, request.to_directory, request.to_name)
        to_name = request.to_name + b"/" if found.node.is_directory else request.to_name
        if target is None:
            _check_name(request.to_name)
        else:
            if request.no_replace:
                raise EntryExists("the new name is taken")
            if target.node.id == found.node.id:
                return Decision(None)
            self._check_fits(found, target)
            to_name = target.name
        now_ns, keep, token = self._it.clock.now_ns(), request.keep, request.token
        return Decision(fo.Renamed(request.directory, found.name, request.to_directory, to_name, now_ns, keep, token))

    def _check_fits(self, found: NamedRow, target: NamedRow) -> None:
        if target.node.is_directory and not found.node.is_directory:
            raise IsADirectory("the new name is that of a directory")
        if found.node.is_directory and not target.node.is_directory:
            raise NotADirectory("the new name is not that of a directory")
        if target.node.is_directory:
            self._check_empty(target.node.id)

    # -- what is in an inode -----------------------------------------------------------------------------------------

    def change(self, request: fr.ChangeInode) -> Decision:
        node = self._writable(self._node(request.inode))
        mode = request.mode
        if mode is not None and node.mode is not None:
            mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        changed_ns = self._it.clock.now_ns() if request.changed_ns is None else request.changed_ns
        asked = {
            "mode": mode,
            "uid": request.uid,
            "gid": request.gid,
            "accessed_ns": request.accessed_ns,
            "modified_ns": request.modified_ns,
        }
        outcome = fo.InodeChanged(node.id, changed_ns, **asked)
        changed: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return Decision(outcome, node._replace(changed_ns=changed_ns, **changed))

    def make_spill(self, _: fr.MakeSpill) -> Decision:
        id_ = self._it.applier.next_id
        return Decision(fo.SpillMade(id_, self._it.clock.now_ns()), id_)

    def publish(self, request: fr.PublishFile) -> Decision:
        node = self._writable(self._file(request.inode))
        if request.spill:
            self._file(request.spill)
        if request.size > OBJECT_BYTES_MAX:
            raise EntityTooLarge(f"a file has at most {OBJECT_BYTES_MAX} bytes")
        id_ = self._it.applier.next_id
        contents: list[fo.NewContent] = []
        for new in request.contents:
            contents.append(fo.NewContent(new.content or id_, new.length, new.extents, new.lays, new.policy))
            if new.content:
                self._it.check_blobs(new.extents)
            else:
                id_ += max(1, len(new.extents))
        now_ns = self._it.clock.now_ns()
        # something else of it may have been changed since it was written
        times = request.modified_ns, max(request.changed_ns, node.changed_ns or 0)
        outcome = fo.FilePublished(
            node.id,
            request.size,
            request.cut,
            tuple(contents),
            self._etag(node.id),
            now_ns,
            *times,
            _without_checksums(node),
            request.spill,
        )
        answer = node._replace(size=request.size, modified_ns=times[0], changed_ns=times[1], published_ns=now_ns)
        return Decision(outcome, answer, request.body, request.body_sum)

    def join(self, request: fr.JoinPieces) -> Decision:
        lays = still_there(request.old, partial(self._it.reader.pieces, request.inode))
        if not lays:
            return Decision(None, 0)
        length = sum(extent.length for extent in request.extents)
        content = fo.NewContent(self._it.applier.next_id, length, request.extents, lays, request.policy)
        answer = sum(lay.length for lay in lays)
        return Decision(fo.PiecesJoined(request.inode, content), answer, request.body, request.body_sum)

    def set_xattr(self, request: fr.SetXattr) -> Decision:
        if is_of_s3(request.name):
            raise NotPermitted("what S3 keeps with an object is changed through S3 only")
        node = self._writable(self._node(request.inode))
        present = self._files.xattr(node.id, request.name)
        if present is None and (request.must_exist or request.value is None):
            raise NoSuchXattr("there is no such attribute")
        if present is not None and request.must_not_exist:
            raise XattrExists("the attribute is there")
        if request.value is not None:
            others = sum(len(name) + size for name, size in self._files.xattrs(node.id) if name != request.name)
            if others + len(request.name) + len(request.value) > XATTRS_BYTES_MAX:
                raise XattrTooLarge(f"attributes of a file have at most {XATTRS_BYTES_MAX} bytes together")
        return Decision(fo.XattrSet(node.id, request.name, request.value, self._it.clock.now_ns(), request.token))

    def free_orphans(self, request: fr.FreeOrphans) -> Decision:
        orphans = tuple(id_ for id_ in request.inodes if (node := self._files.node(id_)) is not None and not node.nlink)
        return Decision(fo.OrphansFreed(orphans) if orphans else None)

    # -- what all of them ask ----------------------------------------------------------------------------------------

    def _etag(self, inode: int) -> bytes:
        """Never that of other bytes, and never an MD5."""
        sequence = self._it.applier.sequence + 1
        return pack_etag(inode.to_bytes(8, "big") + sequence.to_bytes(8, "big"), 1)

    def _node(self, id_: int) -> NodeRow:
        node = self._files.node(id_)
        if node is None:
            raise StaleInode(f"file or directory {id_} is gone")
        return node

    def _file(self, id_: int) -> NodeRow:
        node = self._node(id_)
        if node.is_directory:
            raise IsADirectory("that is a directory")
        return node

    def _find(self, directory: int, name: bytes) -> NamedRow:
        if len(name) > NAME_BYTES_MAX:
            raise NameTooLong(f"a name has at most {NAME_BYTES_MAX} bytes")
        found = find_entry(self._files, directory, name)
        if found is None:
            if self._files.directory(directory) is None:
                raise StaleInode(f"directory {directory} is gone")
            raise NoSuchEntry("there is no such file or directory")
        return found

    def _check_free(self, directory: int, name: bytes) -> None:
        _check_name(name)
        if find_entry(self._files, directory, name) is not None:
            raise EntryExists("the name is taken")

    def _check_empty(self, directory: int) -> None:
        if not self._files.is_empty(directory):
            raise DirectoryNotEmpty("the directory is not empty")

    def _check_writable(self, directory: int) -> BucketOfFiles:
        bucket = self._buckets.of(directory)
        if bucket is None or bucket.versioning:
            raise ReadOnlyBucket("a bucket that keeps versions is changed through S3 only")
        return bucket

    def _writable(self, node: NodeRow) -> NodeRow:
        """The file or directory, when its bucket may be changed."""
        place = (node.id, b"") if node.is_directory else self._files.place(node.id)
        if place is not None:  # one without a name is of no bucket any more
            self._check_writable(place[0])
        return node

    def _check_same_bucket(self, one: int, other: int) -> None:
        if one != other and self._buckets.root_of(one) != self._buckets.root_of(other):
            raise AcrossBuckets("an entry stays in its bucket")

    def _check_not_below(self, directory: int, other: int) -> None:
        if directory in self._files.path_up(other):
            raise IntoItself("a directory cannot be moved into itself")


def _without_checksums(node: NodeRow) -> bytes | None:
    """Attributes of an object whose bytes become others; None: as they are."""
    known = decode_attributes(node.attributes)
    return encode_attributes(replace(known, checksums={})) if known.checksums else None


def _check_name(name: bytes) -> None:
    if len(name) > NAME_BYTES_MAX:
        raise NameTooLong(f"a name has at most {NAME_BYTES_MAX} bytes")
    if not is_plain(name):
        raise InvalidName("the name is kept for entries that cannot be shown as they are called")
