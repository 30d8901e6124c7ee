"""What mounts ask for, beside S3 on the same tree, against a model."""

import errno
import random
import stat
from pathlib import Path
from typing import Any

import pytest
from catalog_check import check_catalog
from decide_rig import DecideRig
from file_model import FileModel, Refused

from couchestord import errors
from couchestord.io import filerequests as fr
from couchestord.io.catalog.changes import Changes
from couchestord.io.catalog.check import find_faults
from couchestord.io.catalog.files import NodeRow
from couchestord.io.catalog.read import EntryRow
from couchestord.io.checksum import xxh3_64
from couchestord.io.fileoutcomes import Lay
from couchestord.io.keys import split_key
from couchestord.io.mutations import Extent
from couchestord.io.sqlite import open_reader
from couchestord.store.decide.context import find_version
from couchestord.store.finding import find_entry
from couchestord.store.listing import list_page
from couchestord.store.names import ESCAPE, is_escaped, shown
from couchestord.store.runs import plan

NUMBERS = {
    errors.NoSuchEntry: errno.ENOENT,
    errors.StaleInode: errno.ESTALE,
    errors.EntryExists: errno.EEXIST,
    errors.IsADirectory: errno.EISDIR,
    errors.NotADirectory: errno.ENOTDIR,
    errors.DirectoryNotEmpty: errno.ENOTEMPTY,
    errors.IntoItself: errno.EINVAL,
    errors.InvalidName: errno.EINVAL,
    errors.NameTooLong: errno.ENAMETOOLONG,
}
NAMES = [b"a", b"b", b"c-", b"c", b"c.d", b"\xff\xfe", b"n" * 255]
ODD = [b"", b".", b"..", b"x" * 256, ESCAPE + b"7"]


class Both:
    """One tree in the store's catalog, the other in the model."""

    def __init__(self, rig: DecideRig, seed: int) -> None:
        self.rig = rig
        self.rng = random.Random(seed)
        row = rig.catalog.writing.bucket("bucket")
        assert row is not None
        self.root = row.root
        self.model = FileModel(self.root)
        self.bodies: dict[int, bytes] = {}

    def next_id(self) -> int:
        return self.rig.catalog.applier.next_id

    def do(self, request: object, model: Any) -> None:
        """The store does what the model does, or refuses as it does."""
        try:
            model()
            expected = 0
        except Refused as refused:
            expected = refused.number
        found, before = 0, self.rig.catalog.applier.sequence
        try:
            self.rig.do(request)
        except errors.FileError as error:
            found = NUMBERS[type(error)]
        assert found == expected, request
        sequence = self.rig.catalog.applier.sequence
        assert not expected or sequence == before
        if sequence != before and isinstance(request, fr.PublishFile):
            self.bodies[sequence] = request.body

    # -- choosing ------------------------------------------------------------------------------------------------------

    def directory(self) -> int:
        return self.rng.choice([id_ for id_, node in self.model.nodes.items() if node.is_directory])

    def name(self, directory: int) -> bytes:
        there = list(self.model.shown(directory))
        if there and self.rng.random() < 0.5:
            return self.rng.choice(there)
        return self.rng.choice(ODD if self.rng.random() < 0.05 else NAMES)

    def key(self) -> tuple[list[bytes], bytes]:
        parts = [self.rng.choice([b"a/", b"b/", b"c/", b"/", b"../"]) for _ in range(self.rng.randrange(3))]
        name = self.rng.choice([b"a", b"b", b"c", b"k" * 300, *([b""] if parts else [])])
        return parts, name

    def file(self) -> int | None:
        files = [id_ for id_, node in self.model.nodes.items() if not node.is_directory]
        return self.rng.choice(files) if files else None

    # -- steps ---------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        twice = (self._make, self._rename, self._publish, self._put)
        once = (self._link, self._unlink, self._rmdir, self._delete, self._change, self._free, self._xattr)
        self.rng.choice([*twice, *twice, *once])()

    def _make(self) -> None:
        directory = self.directory()
        name, id_ = self.name(directory), self.next_id()
        mode = self.rng.choice(
            [stat.S_IFDIR | 0o755, stat.S_IFDIR | 0o2755, stat.S_IFREG | 0o600, stat.S_IFLNK | 0o777]
        )
        target = b"to/there" if stat.S_ISLNK(mode) else b""
        self.do(
            fr.MakeNode(directory, name, mode, 0, 0, 0, target),
            lambda: self.model.make(directory, name, mode, id_, target),
        )

    def _xattr(self) -> None:
        # which the model has none of, but a directory that has one is kept
        id_ = self.rng.choice(list(self.model.nodes))
        self.rig.do(fr.SetXattr(id_, b"user.a", b"value", False, False))
        self.model.nodes[id_].is_kept = True

    def _link(self) -> None:
        file = self.file()
        directory = self.directory()
        name, cookie = self.name(directory), self.next_id()
        if file is not None:
            self.do(fr.LinkNode(file, directory, name), lambda: self.model.link(file, directory, name, cookie))

    def _unlink(self) -> None:
        directory, keep = self.directory(), self.rng.random() < 0.3
        name = self.name(directory)
        self.do(fr.UnlinkNode(directory, name, keep), lambda: self.model.unlink(directory, name, keep=keep))

    def _rmdir(self) -> None:
        directory = self.directory()
        name = self.name(directory)
        self.do(fr.RemoveDirectory(directory, name), lambda: self.model.remove_directory(directory, name))

    def _rename(self) -> None:
        old, new = self.directory(), self.directory()
        name, to_name, no_replace = self.name(old), self.name(new), self.rng.random() < 0.2
        keep = self.rng.random() < 0.3
        self.do(
            fr.RenameNode(old, name, new, to_name, no_replace, keep),
            lambda: self.model.rename(old, name, new, to_name, no_replace=no_replace, keep=keep),
        )

    def _publish(self) -> None:
        file, rng = self.file(), self.rng
        if file is None:
            return
        size = len(self.model.nodes[file].data)
        cut = rng.choice([size, size, size, rng.randrange(size + 1), 0])
        parts, at, body = [], rng.randrange(0, 60), b""
        for _ in range(rng.randrange(4)):
            data = rng.randbytes(rng.randrange(1, 30))
            parts.append((at, data))
            body += data
            at += len(data) + rng.choice([0, rng.randrange(20)])
        end = max([cut, *(offset + len(data) for offset, data in parts)])
        size = end + rng.choice([0, 0, rng.randrange(20)])
        if not size and rng.random() < 0.5:
            return
        starts = [sum(len(data) for _, data in parts[:index]) for index in range(len(parts))]
        lays = [Lay(offset, start, len(data)) for (offset, data), start in zip(parts, starts, strict=True)]
        given = [fr.NewBytes(len(body), (Extent(len(body)),), tuple(lays))] if parts else []
        if parts and rng.random() < 0.5:
            given = [
                fr.NewBytes(lay.length, (Extent(lay.length, 0, 0, lay.start),), (Lay(lay.offset, 0, lay.length),))
                for lay in lays
            ]
        self.do(
            fr.PublishFile(file, size, cut, tuple(given), 5, 6, body, xxh3_64(body)),
            lambda: self.model.publish(file, size, cut, parts),
        )

    def _change(self) -> None:
        id_ = self.rng.choice(list(self.model.nodes))
        node = self.model.nodes[id_]
        node.mode, node.gid = stat.S_IFMT(node.mode) | self.rng.choice([0o700, 0o2777]), self.rng.randrange(3)
        self.rig.do(fr.ChangeInode(id_, node.mode, None, node.gid, 1, 2))
        if node.is_directory:
            node.is_kept = True

    def _free(self) -> None:
        chosen = {id_ for id_ in self.model.nodes if self.rng.random() < 0.5}
        self.rig.do(fr.FreeOrphans(tuple(chosen)))
        self.model.free(chosen)

    def _put(self) -> None:
        parts, name = self.key()
        body = self.rng.randbytes(self.rng.randrange(40))
        before = self.next_id()
        self.rig.put(b"".join([*parts, name]), body)
        self.bodies[self.rig.catalog.applier.sequence] = body
        made = [id_ for id_ in range(before, self.next_id())]
        missing = self._missing(parts)
        self.model.put(parts, name, made[:missing], before + missing, body)

    def _missing(self, parts: list[bytes]) -> int:
        at = self.root
        for index, part in enumerate(parts):
            if part not in self.model.nodes[at].entries:
                return len(parts) - index
            at = self.model.nodes[at].entries[part][1]
        return 0

    def _delete(self) -> None:
        parts, name = self.key()
        keys = sorted(self.model.keys())
        if keys and self.rng.random() < 0.5:
            folders, name = split_key(self.rng.choice(keys))
            parts = list(folders)
        self.rig.delete(b"".join([*parts, name]))
        self.model.delete(parts, name)

    # -- comparing -----------------------------------------------------------------------------------------------------

    def compare(self) -> None:
        catalog = self.rig.catalog
        files = catalog.files
        assert set(files.orphans(0, 1000)) == self.model.orphans
        for id_, node in self.model.nodes.items():
            row = files.node(id_)
            assert row is not None, id_
            assert row.is_directory == node.is_directory
            if row.mode is not None:
                assert (row.mode, row.gid) == (node.mode, node.gid)
            if not node.is_directory:
                assert (row.nlink, row.size) == (node.links, len(node.data))
                if not node.target:
                    assert self.read(id_, row.content, row.size) == node.data, id_
                continue
            listed = files.entries(id_, None, 1000)
            assert {
                shown(each.name, each.cookie, has_twin=has_twin): (each.name, each.node.id) for each, has_twin in listed
            } == self.model.shown(id_)
            for name, (called, number) in self.model.shown(id_).items():
                found = find_entry(files, id_, name)
                assert found is not None
                assert (found.name, found.node.id) == (called, number)
                assert found.node._replace(attributes=None) == (files.node(number) or found.node)._replace(
                    attributes=None
                )

    def compare_keys(self) -> None:
        """As S3 shows the tree: all of it, and below some prefix, in pages."""
        keys, catalog = self.model.keys(), self.rig.catalog
        bucket = catalog.reading.bucket("bucket")
        assert bucket is not None
        paths = {b"".join(split_key(key)[0]) for key in keys} - {b""}
        for path in paths - set(keys):
            with pytest.raises(errors.NoSuchKey):
                find_version(catalog.reading, bucket, path, None)
        for key, id_ in keys.items():
            assert find_version(catalog.reading, bucket, key, None)[2].inode == id_
        for prefix in (b"", self.rng.choice([*sorted(paths), b"a"])):
            for delimiter in (b"", b"/"):
                expected = {_rolled_up(key, prefix, delimiter) for key in keys if key.startswith(prefix)}
                assert self._listed(prefix, delimiter) == sorted(expected), (prefix, delimiter)

    def _listed(self, prefix: bytes, delimiter: bytes) -> list[bytes]:
        found, after = list[bytes](), b""
        while True:
            with self.rig.catalog.snapshot() as reader:
                page = list_page(
                    reader,
                    self.root,
                    prefix=prefix,
                    delimiter=delimiter,
                    start_after=after,
                    max_keys=self.rng.choice([1, 7, 99]),
                )
            found += sorted([*(entry.key for entry in page.entries), *page.prefixes])
            if page.next_start is None:
                return found
            after = page.next_start

    def read(self, id_: int, content: int | None, size: int) -> bytes:
        found = b""
        for run in plan(self.rig.catalog.reading, EntryRow(id_, content, size, b"", 0, 0, None), 0, size):
            if run.extent is None:
                found += bytes(run.length)
            else:
                start = run.extent.stripe_start + run.offset
                found += self.bodies[run.extent.stripe][start : start + run.length]
        return found


def _rolled_up(key: bytes, prefix: bytes, delimiter: bytes) -> bytes:
    at = key.find(delimiter, len(prefix)) if delimiter else -1
    return key if at < 0 else key[: at + 1]


@pytest.mark.parametrize("seed", range(12))
def test_as_the_model_says(rig: DecideRig, seed: int, tmp_path: Path) -> None:
    both = Both(rig, seed)
    for number in range(250):
        both.step()
        if number % 10 == 0:
            both.compare()
            both.compare_keys()
        if number % 50 == 0:
            check_catalog(rig.path)
    both.compare()
    connection = open_reader(rig.path)
    assert not find_faults(connection)
    connection.close()


class Kernel:
    """What a kernel has looked up, and keeps until it is told that it is otherwise."""

    def __init__(self, both: Both) -> None:
        self._both = both
        self._names: dict[tuple[int, bytes], int | None] = {}
        self._nodes: dict[int, NodeRow | None] = {}
        self._bytes: dict[int, bytes] = {}

    def look(self) -> None:
        """At all that is there, and some that is not. What it knows is as it is."""
        files = self._both.rig.catalog.writing_files
        for id_, node in self._both.model.nodes.items():
            if node.is_directory:
                for name in {*NAMES, *(each for each in self._both.model.shown(id_) if not is_escaped(each))}:
                    found = find_entry(files, id_, name)
                    number = found.node.id if found is not None else None
                    assert self._names.setdefault((id_, name), number) == number, (id_, name)
            else:
                row = files.node(id_)
                assert row is not None
                held = node.target or self._both.read(id_, row.content, row.size)
                assert self._bytes.setdefault(id_, held) == held, id_
        for id_ in {*self._both.model.nodes, *self._nodes}:
            row = files.node(id_)
            row = row._replace(content=None) if row is not None else None
            # of what is gone nobody can ask, but who has it open
            assert row is None or self._nodes.setdefault(id_, row) == row, id_

    def forget(self, changes: Changes) -> None:
        for name in changes.names:
            self._names.pop(name, None)
        for id_ in {*changes.nodes, *changes.bodies, *(directory for directory, _ in changes.names)}:
            self._nodes.pop(id_, None)
        for id_ in changes.bodies:
            self._bytes.pop(id_, None)


@pytest.mark.parametrize("seed", range(4))
def test_what_a_kernel_must_forget(rig: DecideRig, seed: int) -> None:
    both = Both(rig, seed)
    kernel, watch = Kernel(both), rig.catalog.applier.watch
    watch.is_on = True
    told_count = 0
    for _ in range(250):
        kernel.look()
        both.step()
        changes = watch.take()
        if changes is not None:
            kernel.forget(changes)
            told_count += 1
            assert len(changes.names) + len(changes.nodes) + len(changes.bodies) < 10
    kernel.look()
    assert told_count > 100
    assert watch.take() is None


@pytest.mark.parametrize("way", ["cut", "laid over", "deleted"])
def test_all_pieces_of_a_file_go_with_a_question_for_each_content(rig: DecideRig, way: str) -> None:
    """Not for each piece, of which there may be half a million."""
    node = rig.do(fr.MakeNode(Both(rig, 0).model.root, b"file", stat.S_IFREG | 0o644, 0, 0))

    def publish(size: int, cut: int, *lays: Lay) -> fr.PublishFile:
        length = sum(lay.length for lay in lays)
        contents = (fr.NewBytes(length, (Extent(length),), lays),) if lays else ()
        return fr.PublishFile(node.id, size, cut, contents, 1, 1, bytes(length), xxh3_64(bytes(length)))

    for first in range(2):
        rig.do(publish(1000, 1000, *(Lay(2 * n + first, n, 1) for n in range(400))))
    assert rig.catalog.files.worn(node.id).pieces == 800  # type: ignore[union-attr]
    questions: list[str] = []
    rig.catalog._writer.set_trace_callback(questions.append)  # type: ignore[union-attr]
    match way:
        case "cut":
            rig.do(publish(0, 0))
        case "laid over":
            rig.do(publish(30, 0, Lay(0, 0, 10), Lay(20, 10, 10)))
        case _:
            rig.delete(b"file")
    assert len(questions) < 100
    rig.catalog._writer.set_trace_callback(None)  # type: ignore[union-attr]
    check_catalog(rig.path)
