"""What must hold between the catalog's tables, worked out from a dump of them and by no query of the product's.

Used by any test that has a catalog at hand: `check_catalog(path)`.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from couchestord.io.catalog import piecerows
from couchestord.io.catalog.catalog import dump
from couchestord.io.catalog.segments import unpack_disks
from couchestord.io.mutations import IN_BLOB, LOST, decode_pieces
from couchestord.io.sqlite import Connection

MARKER = 2


def check_catalog(catalog: Connection | Path) -> None:
    """Raises AssertionError with the first thing that is wrong."""
    tables: dict[str, list[Any]] = dump(catalog)
    _check_tree(tables)
    _check_objects(tables)
    _check_contents(tables)
    _check_segments(tables)
    _check_blobs(tables)
    _check_uploads(tables)


def _check_tree(tables: dict[str, list[Any]]) -> None:
    directories = {id_: (parent, name) for id_, parent, name, *_ in tables["directory"]}
    roots = {row[1] for row in tables["bucket"]}
    assert {id_ for id_, (parent, _) in directories.items() if not parent} == roots, "roots and buckets differ"
    children = {row[2]: (row[0], row[1]) for row in tables["entry"] if row[2]}
    assert children == {id_: it for id_, it in directories.items() if it[0]}, "directories and their entries differ"
    used = {row[0] for table in ("entry", "version") for row in tables[table]}
    assert used <= set(directories), "a name in a directory that does not exist"
    empty = {row[0] for row in tables["directory"] if not row[3]} - used
    assert not empty, f"empty directories {empty}"
    for directory, name, child, *_ in tables["entry"]:
        assert (b"/" in name) == bool(child), (directory, name, child)
        assert not child or name.index(b"/") == len(name) - 1, name


def _check_objects(tables: dict[str, list[Any]]) -> None:
    inodes = {row[0]: row for row in tables["inode"]}
    named: Counter[int] = Counter()
    newest: dict[tuple[int, bytes], tuple[int, int]] = {}
    for directory, name, id_, content, size, _, _, flags, _ in tables["version"]:
        newest[directory, name] = max(newest.get((directory, name), (0, 0)), (id_, flags))
        if flags & MARKER:
            assert content is None, "a marker with a content"
            assert id_ not in inodes
            continue
        named[id_] += 1
        assert inodes[id_][2:4] == (size, content), f"version {id_} differs from its inode"
    live = {}
    cookies: list[int] = []
    for directory, name, child, inode, cookie, content, size, *_ in tables["entry"]:
        if child:
            continue
        named[inode] += 1
        live[directory, name] = inode
        cookies.append(cookie)
        assert inodes[inode][2] == size
        assert inodes[inode][3] == content, f"entry of inode {inode} names content {content}"
    assert len(set(cookies)) == len(cookies), "two entries of one number"
    orphans = {row[0] for row in tables["orphan"]}
    folders = {row[0] for row in tables["directory"]} & set(inodes)
    files = {id_: row[1] for id_, row in inodes.items() if id_ not in folders}
    assert named + Counter({id_: 0 for id_ in orphans}) == Counter(files) - Counter(), "inodes and their names differ"
    assert orphans == {id_ for id_, nlink in files.items() if not nlink}, "files without a name that are no orphans"
    assert {row[0] for row in tables["xattr"]} <= set(inodes), "attributes of nothing"
    links = {((row[1], row[2]), row[0]) for row in tables["link"]}
    homes = {((row[4], row[5]), id_) for id_, row in inodes.items() if files.get(id_)}
    older = {((row[0], row[1]), row[2]) for row in tables["version"] if not row[7] & MARKER}
    assert links | homes == set(live.items()) | older, "inodes say other places than entries and versions"
    assert not links & homes, "a place of an inode is said twice"
    assert {id_ for _, id_ in homes & set(live.items())} == set(live.values()), "a file with a name says a version"
    for place, (id_, flags) in newest.items():
        if place in live:
            assert id_ < live[place], "a noncurrent version is newer than the live object"
        else:
            assert flags & MARKER, f"the newest version {id_} of {place} is no marker, and nothing is live"
    nulls = Counter((row[0], row[1]) for row in tables["version"] if not row[7] & 1)
    nulls.update((row[0], row[1]) for row in tables["entry"] if not row[2] and not row[9] & 1)
    assert all(count == 1 for count in nulls.values()), "two null versions of a name"


def _check_contents(tables: dict[str, list[Any]]) -> None:
    refs: Counter[int] = Counter(row[3] for row in tables["inode"] if row[3] is not None)
    inodes = {row[0]: row for row in tables["inode"]}
    for inode, start, content, _, length in tables["piece"]:
        assert inode in inodes, f"piece of inode {inode}"
        assert inodes[inode][3] is None, "pieces beside a whole content"
        assert length > 0
        assert start + length <= inodes[inode][2]
        if content is not None:
            refs[content] += 1
    _check_worn(tables)
    for row in tables["part"]:
        refs.update(piece.content for piece in decode_pieces(row[6]))
    contents = {row[0]: row for row in tables["content"]}
    assert refs == {id_: row[1] for id_, row in contents.items()}, "references are miscounted"
    extents = {row[0]: row for row in tables["extent"]}
    seen = set()
    for id_, _, count, length, _ in contents.values():
        at = 0
        for extent in range(id_, id_ + count):
            assert extents[extent][1] == at, f"extent {extent} of content {id_} begins elsewhere"
            at += extents[extent][2]
            seen.add(extent)
        assert at == length
    assert seen == set(extents), f"extents of no content: {set(extents) - seen}"
    for _, _, content, start, length in tables["piece"]:
        assert start + length <= contents[content][3], "a piece reaches past its content"
    (state,) = tables["state"]
    ids = [
        *inodes,
        *contents,
        *extents,
        *(row[0] for row in tables["directory"]),
        *(row[2] for row in tables["version"]),
    ]
    assert all(id_ < state[4] for id_ in ids), "an id that will be given again"
    assert all(row[4] <= state[2] for row in tables["extent"] if not row[3]), "an extent in a record to come"


def _check_worn(tables: dict[str, list[Any]]) -> None:
    lengths = {row[0]: row[3] for row in tables["content"]}
    sizes = {row[0]: row[2] for row in tables["inode"]}
    for inode, pieces, bound, live, held in tables["worn"]:
        mine = [row for row in tables["piece"] if row[0] == inode]
        assert mine, f"file {inode} has no pieces to be worn"
        assert (pieces, live) == (len(mine), sum(row[4] for row in mine)), f"file {inode} miscounts its pieces"
        assert held == sum(lengths[content] for content in {row[2] for row in mine}), f"file {inode} holds other bytes"
        assert bound == max(piecerows.PIECES_FREE, sizes[inode] // 32768), f"file {inode} has another bound"


def _check_blobs(tables: dict[str, list[Any]]) -> None:
    live: Counter[int] = Counter()
    only: Counter[int] = Counter()
    for row in tables["extent"]:
        (length, segment, *place), copy = row[2:6], row[-2:]
        if copy[0] is not None:
            live[copy[0]] += length
        if segment == IN_BLOB:
            assert tuple(place) == copy, "what is in a blob only has its copy elsewhere"
            only[copy[0]] += length
    for id_, _, state, _, live_bytes, only_bytes, _ in tables["blob"]:
        assert (live_bytes, only_bytes) == (live.pop(id_, 0), only.pop(id_, 0)), "a blob is miscounted"
        assert state == 1 or not live_bytes, "a blob that was not confirmed holds something"
    assert not live | only, "a copy in a blob that does not exist"


def _check_segments(tables: dict[str, list[Any]]) -> None:
    live: Counter[int] = Counter()
    for row in tables["extent"]:
        if row[3] > LOST:
            live[row[3]] += row[2]
    segments = {row[0]: row for row in tables["segment"]}
    assert set(live) <= set(segments), "an extent in a segment that does not exist"
    policies = {row[0] for row in tables["policy"]}
    for table in ("bucket", "content", "segment"):
        assert {row[-1] for row in tables[table]} <= policies, f"a {table} under a policy that does not exist"
    for id_, row in segments.items():
        assert row[8] == live[id_], f"segment {id_} counts {row[8]} live bytes, its extents have {live[id_]}"
        disks = unpack_disks(row[6])
        assert len(disks) == row[3] + row[4]
        assert all(row[7] >> index & 1 for index, disk in enumerate(disks) if disk < 0)


def _check_uploads(tables: dict[str, list[Any]]) -> None:
    uploads = {row[0] for row in tables["upload"]}
    buckets = {row[0] for row in tables["bucket"]}
    assert {row[0] for row in tables["part"]} <= uploads, "a part of no upload"
    assert {row[1] for row in tables["upload"]} <= buckets
    assert not uploads & {row[0] for row in tables["finished_upload"]}
    assert {row[1] for row in tables["finished_upload"]} <= buckets
    accounts = {row[0] for row in tables["account"]}
    assert {row[1] for row in tables["access_key"]} <= accounts
