"""Pieces of files that become one while others write: against a model, and the log gives the same tables.

SEEN
"""

import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from catalog_check import check_catalog
from decide_rig import DecideRig, put_request
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from couchestord.io import filerequests as fr
from couchestord.io import requests as rq
from couchestord.io.catalog.catalog import dump
from couchestord.io.catalog.check import find_faults
from couchestord.io.catalog.read import EntryRow, PieceRow
from couchestord.io.checksum import xxh3_64
from couchestord.io.fileoutcomes import Lay
from couchestord.io.mutations import Extent
from couchestord.io.outcome import Piece
from couchestord.io.sqlite import open_reader
from couchestord.store.decide.context import find_version
from couchestord.store.pieces import next_crowded
from couchestord.store.runs import content_runs, plan

KEYS = (b"a", b"d/b", b"c", b"a", b"a")
EXTENT_BYTES = 16
SIZE_MAX = 100

# mostly such that what is written covers all of what was there, or none
offsets = st.one_of(st.integers(0, 9).map(lambda tens: 10 * tens), st.integers(0, SIZE_MAX))
lengths = st.one_of(st.integers(1, 4).map(lambda tens: 10 * tens), st.integers(1, 40))
keys = st.sampled_from(KEYS)
parts = st.lists(st.tuples(offsets, lengths), min_size=1, max_size=4)
ARGUMENTS: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
    "write": (keys, parts, st.booleans()),
    "read": (st.sampled_from(["crowded", "loose", "any"]), st.integers(1, 1 << 16)),
    "join": (st.sampled_from([0, 0, 1, 2]),),
    "put": (keys, lengths),
    "cut": (keys, offsets),
    "copy": (keys, keys),
    "link": (keys, keys),
    "unlink": (keys, st.booleans()),
    "free": (),
    "delete": (keys,),
    "versions": (),
    "forget": (keys, st.integers(0, 5)),
}
OFTEN = ["write", "read", "join", "write", "read", "join", "copy"]


@st.composite
def steps(draw: st.DrawFn) -> tuple[Any, ...]:
    kind = draw(st.sampled_from([*ARGUMENTS, *2 * OFTEN]))
    return kind, *(draw(each) for each in ARGUMENTS[kind])


class World:
    """A catalog, and what the files in it must hold."""

    def __init__(self, folder: Path) -> None:
        self.rig = DecideRig(folder)
        self.rig.bucket()
        row = self.rig.catalog.writing.bucket("bucket")
        assert row is not None
        self.root = row.root
        self.names: dict[bytes, int] = {}
        self.files: dict[int, bytearray] = {}
        self.orphans: set[int] = set()
        self.older: dict[bytes, list[int]] = {}
        """Noncurrent versions and markers of each key, oldest first."""
        self.markers: set[int] = set()
        self.nulls: set[int] = set()
        """What had a name when versions were kept from then on."""
        self.bodies: dict[int, bytes] = {}
        self.read: list[fr.JoinPieces] = []
        """What a job has read, and not joined yet."""
        self.is_versioned = False
        self.seen: Counter[str] = Counter()
        self._drawn = 0

    def draw(self, length: int) -> bytes:
        """Bytes that no other draw gives."""
        self._drawn += 1
        return random.Random(self._drawn).randbytes(length)

    def do(self, request: Any) -> Any:
        before = self.rig.catalog.applier.sequence
        answer = self.rig.do(request)
        if self.rig.catalog.applier.sequence != before:
            self.bodies[before + 1] = getattr(request, "body", b"")
        return answer

    def live(self, key: bytes) -> EntryRow | None:
        return self.rig.catalog.reading.live(self.root, key)

    def number(self, key: bytes) -> int:
        row = self.live(key)
        assert row is not None
        return row.inode

    # -- steps ---------------------------------------------------------------------------------------------------------

    def do_put(self, key: bytes, length: int) -> None:
        body = self.draw(length)
        extents = [Extent(len(body[at : at + EXTENT_BYTES]), 0, 0, at) for at in range(0, length, EXTENT_BYTES)]
        self._left(key)
        self.do(put_request("bucket", key, body, extents=tuple(extents)))
        self._named(key, body)

    def _named(self, key: bytes, data: bytes) -> None:
        self.names[key] = self.number(key)
        self.files[self.names[key]] = bytearray(data)

    def _left(self, key: bytes) -> None:
        """A key names its file no more."""
        inode = self.names.pop(key, None)
        if inode is None:
            return
        if self.is_versioned:
            self.older.setdefault(key, []).append(inode)
        self._freed(inode)

    def _freed(self, inode: int) -> None:
        """If nothing holds it any more."""
        if inode not in self.names.values() and not any(inode in ids for ids in self.older.values()):
            del self.files[inode]

    def do_write(self, key: bytes, parts: list[tuple[int, int]], apart: bool) -> None:
        if key not in self.names or self.is_versioned:
            return
        inode = self.names[key]
        data, body, lays = self.files[inode], b"", []
        size = cut = len(data)
        end = 0
        for offset, length in sorted(parts):
            if offset < end:
                continue
            lays.append(Lay(offset, len(body), length))
            body += self.draw(length)
            end = offset + length
        size = max(size, end)
        contents = [fr.NewBytes(len(body), (Extent(len(body)),), tuple(lays))]
        if apart:
            contents = [
                fr.NewBytes(lay.length, (Extent(lay.length, 0, 0, lay.start),), (Lay(lay.offset, 0, lay.length),))
                for lay in lays
            ]
        self.do(fr.PublishFile(inode, size, cut, tuple(contents), 5, 5, body, xxh3_64(body)))
        data.extend(bytes(size - len(data)))
        for lay in lays:
            data[lay.offset : lay.offset + lay.length] = body[lay.start : lay.start + lay.length]

    def do_cut(self, key: bytes, size: int) -> None:
        if key not in self.names or self.is_versioned:
            return
        data = self.files[self.names[key]]
        self.do(fr.PublishFile(self.names[key], size, min(size, len(data)), (), 5, 5))
        data.extend(bytes(max(0, size - len(data))))
        del data[size:]

    def do_copy(self, key: bytes, source: bytes) -> None:
        if key == source or source not in self.names:
            return
        data = bytes(self.files[self.names[source]])
        self._left(key)
        self.rig.copy(key, source)
        self._named(key, data)

    def do_link(self, key: bytes, source: bytes) -> None:
        if self.is_versioned or key in self.names or source not in self.names or b"/" in key:
            return
        self.do(fr.LinkNode(self.names[source], self.root, key))
        self.names[key] = self.names[source]

    def do_unlink(self, key: bytes, keep: bool) -> None:
        if self.is_versioned or key not in self.names or b"/" in key:
            return
        self.do(fr.UnlinkNode(self.root, key, keep))
        inode = self.names.pop(key)
        if keep and inode not in self.names.values():
            self.orphans.add(inode)
        else:
            self._freed(inode)

    def do_free(self) -> None:
        self.do(fr.FreeOrphans(tuple(self.orphans)))
        for inode in self.orphans:
            del self.files[inode]
        self.orphans.clear()

    def do_delete(self, key: bytes) -> None:
        self._left(key)
        marker = self.rig.delete(key).version_id
        if marker is not None:
            self.markers.add(int(marker, 16))
            self.older.setdefault(key, []).append(int(marker, 16))

    def do_versions(self) -> None:
        if not self.is_versioned:
            self.do(rq.SetVersioning("bucket", "Enabled"))
            self.is_versioned = True
            self.nulls = set(self.names.values())

    def do_forget(self, key: bytes, chosen: int) -> None:
        """One version of a key goes, the live one too, or a marker."""
        live, older = self.names.get(key), self.older.get(key, [])
        held = [*older, *([live] if live else [])]
        if not held or not self.is_versioned:
            return
        id_ = held[chosen % len(held)]
        self.rig.delete(key, self._version_id(id_))
        if id_ == live:
            del self.names[key]
        else:
            older.remove(id_)
        if key not in self.names and older and older[-1] not in self.markers:
            self.names[key] = older.pop()
        if id_ not in self.markers:
            self._freed(id_)

    def forget_all(self) -> None:
        """Nothing is left."""
        self.do_versions()
        self.do_free()
        turn = 0
        while self.names or any(self.older.values()):
            turn += 1
            for key in sorted(set(KEYS)):
                self.do_forget(key, turn)
                self.compare()
        assert not self.files

    def _version_id(self, id_: int) -> str:
        return "null" if id_ in self.nulls else f"{id_:016x}"

    def do_read(self, how: str, chosen: int) -> None:
        """What a job reads now may be joined later, when others have written."""
        files = self.rig.catalog.files
        pieced = [inode for inode in sorted(self.files) if self.rig.catalog.reading.pieces(inode, 0, 1 << 40, 1)]
        if not pieced:
            return
        inode = pieced[chosen % len(pieced)]
        rows = self.rig.catalog.reading.pieces(inode, 0, 1 << 40)
        if how == "crowded":
            at = chosen % SIZE_MAX
            self._read(inode, next_crowded([row for row in rows if row.start + row.length > at], at)[0])
        elif how == "loose":
            for content in files.loose_contents({row.content for row in rows}, 50)[:2]:
                for of in {of for of, _ in files.pieces_of(content, 100)}:
                    self._read(of, [piece for each, piece in files.pieces_of(content, 100) if each == of])
        else:
            some = [row for index, row in enumerate(rows) if chosen >> index & 1]
            self._read(inode, [row._replace(length=1 + row.length // 2) if row.length > 3 else row for row in some])

    def _read(self, inode: int, rows: list[PieceRow]) -> None:
        if not rows:
            return
        reader = self.rig.catalog.reading
        runs = [content_runs(reader, row.content, row.content_start, row.content_start + row.length) for row in rows]
        body = b"".join(map(self._bytes, runs))
        old = tuple(Piece(row.start, row.content, row.content_start, row.length) for row in rows)
        self.read.append(fr.JoinPieces(inode, old, (Extent(len(body)),), 0, body, xxh3_64(body)))

    def do_join(self, index: int) -> None:
        if index >= len(self.read):
            return
        request = self.read.pop(index)
        before = self.rig.catalog.files.node(request.inode)
        joined = self.do(request)
        asked = sum(piece.length for piece in request.old)
        self.seen["whole" if joined == asked else "in part" if joined else "in vain"] += 1
        # what anybody may look at is as it was
        after = self.rig.catalog.files.node(request.inode)
        if before is not None and after is not None:
            assert after._replace(content=None) == before._replace(content=None)
            self.seen["one content"] += after.content is not None and before.content is None

    # -- comparing -----------------------------------------------------------------------------------------------------

    def _bytes(self, runs: Any) -> bytes:
        found = b""
        for run in runs:
            if run.extent is None:
                found += bytes(run.length)
            else:
                start = run.extent.stripe_start + run.offset
                found += self.bodies[run.extent.stripe][start : start + run.length]
        return found

    def compare(self) -> None:
        catalog = self.rig.catalog
        for inode, data in self.files.items():
            node = catalog.files.node(inode)
            assert node is not None
            assert node.size == len(data)
            row = EntryRow(inode, node.content, node.size, b"", 0, 0, None)
            assert self._bytes(plan(catalog.reading, row, 0, node.size)) == data
        for key, inode in self.names.items():
            entry = self.live(key)
            assert entry is not None
            assert (entry.inode, entry.size) == (inode, len(self.files[inode]))
            assert self._bytes(plan(catalog.reading, entry, 0, entry.size)) == self.files[inode]
            node, shown = catalog.files.node(inode), catalog.files.object(inode)
            assert node is not None
            assert shown is not None
            assert (node.published_ns, shown.etag) == (entry.modified_ns, entry.etag)
        bucket = catalog.reading.bucket("bucket")
        assert bucket is not None
        for key, ids in self.older.items():
            for id_ in set(ids) - self.markers:
                row = find_version(catalog.reading, bucket, key, self._version_id(id_))[2]
                assert (row.inode, row.size) == (id_, len(self.files[id_]))
                assert self._bytes(plan(catalog.reading, row, 0, row.size)) == self.files[id_]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps(), min_size=30, max_size=80))
@example([("copy", b"c", b"a"), ("write", b"a", [(10, 10)], False)])  # a long content that a copy has
def test_files_are_as_they_were_written(course: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        world = World(Path(name))
        world.do_put(b"a", SIZE_MAX)
        for what, *args in course:
            getattr(world, f"do_{what}")(*args)
            world.compare()
        check_catalog(world.rig.path)
        connection = open_reader(world.rig.path)
        assert not find_faults(connection)
        world.forget_all()
        check_catalog(world.rig.path)
        assert not find_faults(connection)
        connection.close()
        left = dump(world.rig.path)
        assert not any(left[table] for table in ("entry", "version", "inode", "link", "content", "piece", "extent"))
        assert dump(world.rig.replay(Path(name) / "again.sqlite")) == dump(world.rig.path)
        world.rig.close()
