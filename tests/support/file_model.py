"""What a bucket is through a mount, in plain dictionaries: the tree's entries, and what they name."""

import errno
import stat
from dataclasses import dataclass, field

from couchestord.store.names import ESCAPE, is_plain


class Refused(Exception):
    """As a call that fails."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.number = number


@dataclass
class Node:
    mode: int
    links: int = 1
    data: bytearray = field(default_factory=bytearray)
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    uid: int = 0
    gid: int = 0
    entries: "dict[bytes, tuple[int, int]]" = field(default_factory=dict)
    """Of a directory: (cookie, number) by the tree's name."""
    parent: int = 0
    is_kept: bool = False

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


class FileModel:
    """Numbers are told by whoever asks, as the store chose them."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.nodes = {root: Node(stat.S_IFDIR | 0o755, is_kept=True)}
        self.orphans: set[int] = set()

    # -- looking -------------------------------------------------------------------------------------------------------

    def shown(self, directory: int) -> dict[bytes, tuple[bytes, int]]:
        """(the tree's name, number) of what a directory shows."""
        entries = self.nodes[directory].entries
        found = {}
        for name, (cookie, id_) in entries.items():
            bare = name.removesuffix(b"/")
            has_twin = not name.endswith(b"/") and name + b"/" in entries
            called = ESCAPE + b"%x" % cookie if has_twin or not is_plain(bare) else bare
            assert called not in found
            found[called] = name, id_
        return found

    def find(self, directory: int, name: bytes) -> tuple[bytes, int]:
        if len(name) > 255:
            raise Refused(errno.ENAMETOOLONG)
        found = self.shown(directory).get(name)
        if found is None:
            raise Refused(errno.ENOENT)
        return found

    def check_free(self, directory: int, name: bytes) -> None:
        if len(name) > 255:
            raise Refused(errno.ENAMETOOLONG)
        if not is_plain(name):
            raise Refused(errno.EINVAL)
        if name in self.shown(directory):
            raise Refused(errno.EEXIST)

    # -- through the mount ---------------------------------------------------------------------------------------------

    def make(self, directory: int, name: bytes, mode: int, id_: int, target: bytes = b"") -> None:
        self.check_free(directory, name)
        parent = self.nodes[directory]
        node = Node(mode, target=target, parent=directory, is_kept=True)
        node.data[:] = target
        if parent.mode & stat.S_ISGID:
            node.gid = parent.gid
            if node.is_directory:
                node.mode |= stat.S_ISGID
        self.nodes[id_] = node
        parent.entries[name + b"/" if node.is_directory else name] = id_, id_
        parent.is_kept = True

    def link(self, id_: int, directory: int, name: bytes, cookie: int) -> None:
        node = self.nodes[id_]
        if node.is_directory:
            raise Refused(errno.EISDIR)
        if not node.links:
            raise Refused(errno.ENOENT)
        self.check_free(directory, name)
        node.links += 1
        self.nodes[directory].entries[name] = cookie, id_
        self.nodes[directory].is_kept = True

    def unlink(self, directory: int, name: bytes, *, keep: bool) -> None:
        called, id_ = self.find(directory, name)
        if self.nodes[id_].is_directory:
            raise Refused(errno.EISDIR)
        del self.nodes[directory].entries[called]
        self.nodes[directory].is_kept = True
        self._release(id_, keep=keep)

    def _release(self, id_: int, *, keep: bool) -> None:
        node = self.nodes[id_]
        node.links -= 1
        if not node.links and keep:
            self.orphans.add(id_)
        elif not node.links:
            del self.nodes[id_]

    def remove_directory(self, directory: int, name: bytes) -> None:
        called, id_ = self.find(directory, name)
        if not self.nodes[id_].is_directory:
            raise Refused(errno.ENOTDIR)
        if self.nodes[id_].entries:
            raise Refused(errno.ENOTEMPTY)
        del self.nodes[directory].entries[called], self.nodes[id_]
        self.nodes[directory].is_kept = True

    def rename(self, directory: int, name: bytes, to: int, to_name: bytes, *, no_replace: bool, keep: bool) -> None:
        called, id_ = self.find(directory, name)
        node = self.nodes[id_]
        at = to
        while node.is_directory and at:
            if at == id_:
                raise Refused(errno.EINVAL)
            at = self.nodes[at].parent
        target = self.shown(to).get(to_name)
        new = to_name + b"/" if node.is_directory else to_name
        if target is None:
            self.check_free(to, to_name)
        else:
            if no_replace:
                raise Refused(errno.EEXIST)
            if target[1] == id_:
                return
            other = self.nodes[target[1]]
            if other.is_directory and not node.is_directory:
                raise Refused(errno.EISDIR)
            if node.is_directory and not other.is_directory:
                raise Refused(errno.ENOTDIR)
            if other.entries:
                raise Refused(errno.ENOTEMPTY)
            new = target[0]
            del self.nodes[to].entries[new]
            if other.is_directory:
                del self.nodes[target[1]]
            else:
                self._release(target[1], keep=keep)
        self.nodes[to].entries[new] = self.nodes[directory].entries.pop(called)
        if node.is_directory:
            node.parent = to
        self.nodes[to].is_kept = self.nodes[directory].is_kept = True

    def publish(self, id_: int, size: int, cut: int, parts: list[tuple[int, bytes]]) -> None:
        data = self.nodes[id_].data
        del data[cut:]
        for offset, new in parts:
            data.extend(bytes(max(0, offset - len(data))))
            data[offset : offset + len(new)] = new
        data.extend(bytes(max(0, size - len(data))))
        del data[size:]

    def free(self, ids: set[int]) -> None:
        for id_ in ids & self.orphans:
            del self.nodes[id_]
        self.orphans -= ids

    # -- through S3 ----------------------------------------------------------------------------------------------------

    def keys(self) -> dict[bytes, int]:
        """What S3 lists, with the number that each names: objects, and directories that hold nothing."""
        found, left = dict[bytes, int](), [(b"", self.root)]
        while left:
            path, id_ = left.pop()
            node = self.nodes[id_]
            if not node.is_directory or (path and not node.entries):
                found[path] = id_
            left += [(path + name, child) for name, (_, child) in node.entries.items()]
        return found

    def put(self, path: list[bytes], name: bytes, made: list[int], id_: int, data: bytes) -> None:
        """`made`: numbers for directories that are missing."""
        at, numbers = self.root, iter(made)
        for part in path:
            if part not in self.nodes[at].entries:
                new = next(numbers)
                self.nodes[at].entries[part] = new, new
                self.nodes[new] = Node(stat.S_IFDIR | 0o755, parent=at)
            at = self.nodes[at].entries[part][1]
        old = self.nodes[at].entries.get(name)
        if old is not None:
            self._release(old[1], keep=False)
        self.nodes[at].entries[name] = id_, id_
        self.nodes[id_] = Node(stat.S_IFREG | 0o644, data=bytearray(data))

    def delete(self, path: list[bytes], name: bytes) -> None:
        at = self.root
        for part in path:
            if part not in self.nodes[at].entries:
                return
            at = self.nodes[at].entries[part][1]
        if name in self.nodes[at].entries:
            self._release(self.nodes[at].entries.pop(name)[1], keep=False)
        elif name or self.nodes[at].entries:
            return
        # what a key `a/` names goes with it, though it is kept, and what that lay in
        while at != self.root and not (self.nodes[at].is_kept and name) and not self.nodes[at].entries:
            parent = self.nodes[at].parent
            entries = self.nodes[parent].entries
            del entries[next(each for each, (_, id_) in entries.items() if id_ == at)], self.nodes[at]
            at = parent
