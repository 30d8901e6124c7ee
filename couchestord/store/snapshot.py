"""Snapshots of the catalog on the stripes, so that a lost catalog costs no more than the log since the last one.

A snapshot is the catalog's main file after a complete checkpoint, in pieces of one stripe, and a table that says where
each piece lies and what it sums to. The superblock of every disk names the table. Reading it needs no catalog: the
headers of the segments say how they are coded and where their shards are. It counts only after it was read back and
verified, all of it.

A piece that is as it was in the snapshot before is not written again: the table names its old place. The segments of a
snapshot hold nothing else, so one of which little is wanted any more is given up, and what is left is written again.
"""

import json
import os
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from math import inf
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio

from couchestord import logs
from couchestord.ec.segments import SegmentPool
from couchestord.ec.shards import FOLDER, PAGE_BYTES, SegmentHeader, parse_shard_name, unpack_segment_header
from couchestord.ec.stripes import StripeStore
from couchestord.errors import Corrupt, DataLost, DiskError
from couchestord.io import requests as rq
from couchestord.io.catalog.pages import PAGE_BYTES as CATALOG_PAGE_BYTES
from couchestord.io.catalog.pages import MainFile, check_pages, store_sums, stored_sums
from couchestord.io.catalog.read import SegmentRow
from couchestord.io.catalog.segments import STATE_SEALED
from couchestord.io.checksum import xxh3_64
from couchestord.io.disks import Disks
from couchestord.io.superblock import SnapshotRoot
from couchestord.model import Policy

log = logs.get(__name__)
JOB = "snapshot"
PIECE_BYTES = 1 << 20
"""A piece is one stripe, so it is smaller where stripes are; longer where the catalog is very large for them."""
NAMED_BYTES_MAX = 32
"""What a piece takes in the table, at most."""
SEGMENTS_KEPT_MAX = 16
"""A segment is kept for the next snapshot when half of its room and this part of the catalog are still wanted."""


class PieceOf(msgspec.Struct, frozen=True, array_like=True):
    """A piece of the catalog's file, or of the table itself."""

    segment: int
    stripe: int
    length: int
    checksum: int


class Table(msgspec.Struct, frozen=True, array_like=True):
    sequence: int
    size: int
    pieces: tuple[PieceOf, ...]
    seed: int = 0
    """Of the sums of the pieces. Random, since who knows it could write objects that hide a change from the sums."""


class Earlier(NamedTuple):
    """A snapshot whose pieces may be named again, and rows of the segments that it lies in."""

    table: Table
    rows: Mapping[int, SegmentRow]


_TABLE = msgspec.msgpack.Decoder(Table)


async def write_snapshot(
    main: MainFile, sequence: int, pool: SegmentPool, policy: Policy, earlier: Earlier | None, seed: int
) -> tuple[SnapshotRoot, set[int]]:
    """Write the main file of a catalog, which nobody may change meanwhile, to stripes; synced on return.

    Pieces that are as they were in the `earlier` snapshot are named where they lie; without one, `seed` is that of the
    sums. Answers the root to be put into the superblocks and the segments that hold the snapshot.

    Raises Corrupt when a page is not what the last checkpoint left: rot must not outlive the log that would mend it.
    """
    if earlier is not None:
        seed = earlier.table.seed
    pieces: list[PieceOf] = []
    sums = await trio.to_thread.run_sync(stored_sums, main)
    piece_bytes = _piece_bytes(len(sums) * CATALOG_PAGE_BYTES, policy.stripe_bytes)
    # in segments of its own: when later snapshots need no more of them, their room is free at once
    async with pool.writer(policy.id, alone=True, stripe_bytes_min=piece_bytes) as writer:
        unchanged = await _unchanged(main, piece_bytes, earlier) if earlier else {}
        size = 0
        while data := await trio.to_thread.run_sync(main.read, size, piece_bytes):
            check_pages(sums, size // CATALOG_PAGE_BYTES, data)
            piece = unchanged.get(len(pieces))
            if piece is None:
                segment, stripe = await writer.append(data)
                piece = PieceOf(segment, stripe, len(data), xxh3_64(data, seed))
            pieces.append(piece)
            size += len(data)
        if size != len(sums) * CATALOG_PAGE_BYTES:
            raise Corrupt(f"the catalog has {size} bytes, and had {len(sums)} pages at the last checkpoint")
        table = msgspec.msgpack.encode(Table(sequence, size, tuple(pieces), seed))
        assert len(table) <= piece_bytes
        segment, stripe = await writer.append(table)
        await writer.sync()
    root = SnapshotRoot(segment, stripe, len(table), sequence, xxh3_64(table))
    return root, {piece.segment for piece in pieces} | {segment}


def _piece_bytes(size_bytes: int, stripe_bytes: int) -> int:
    """Of a catalog of that size: a stripe's, or more where one would not hold the table. Without a snapshot the journal
    is never trimmed, and takes nothing any more once it is full.
    """
    piece_bytes = min(PIECE_BYTES, stripe_bytes) // CATALOG_PAGE_BYTES * CATALOG_PAGE_BYTES
    while size_bytes // piece_bytes * NAMED_BYTES_MAX > piece_bytes:
        piece_bytes *= 2
    return piece_bytes


async def _unchanged(main: MainFile, piece_bytes: int, earlier: Earlier) -> dict[int, PieceOf]:
    """The pieces, by number, that are as they were, but for those in segments of which too little is wanted."""
    found: dict[int, PieceOf] = {}
    wanted_bytes: Counter[int] = Counter()
    for number, piece in enumerate(earlier.table.pieces):
        data = await trio.to_thread.run_sync(main.read, number * piece_bytes, piece_bytes)
        if len(data) == piece.length and xxh3_64(data, earlier.table.seed) == piece.checksum:
            found[number] = piece
            wanted_bytes[piece.segment] += piece.length
    least_bytes = earlier.table.size // SEGMENTS_KEPT_MAX
    kept = {
        id_
        for id_, wanted in wanted_bytes.items()
        if wanted >= max(least_bytes, _room_bytes(earlier.rows.get(id_)) / 2)
    }
    return {number: piece for number, piece in found.items() if piece.segment in kept}


def _room_bytes(row: SegmentRow | None) -> float:
    """Bytes that the stripes of a segment have room for; endless while nobody knows where it ends."""
    if row is None or row.stripes_end < 0:
        return inf
    return (row.stripes_end - 1) * PAGE_BYTES * row.k


async def read_table(root: SnapshotRoot, stripes: StripeStore, segments: dict[int, SegmentRow]) -> Table:
    """The table that a root names. Raises DataLost, Corrupt."""
    table = await _read(PieceOf(root.segment, root.stripe, root.length, root.checksum), stripes, segments)
    return _TABLE.decode(table)


async def read_pieces(
    table: Table, stripes: StripeStore, segments: dict[int, SegmentRow]
) -> AsyncGenerator[bytes | bytearray | memoryview, None]:
    """The catalog's file, piece by piece, verified. Raises DataLost, Corrupt."""
    for piece in table.pieces:
        yield await _read(piece, stripes, segments, table.seed)


async def _read(
    piece: PieceOf, stripes: StripeStore, segments: dict[int, SegmentRow], seed: int = 0
) -> bytes | bytearray | memoryview:
    row = segments.get(piece.segment)
    if row is None:
        raise DataLost(f"segment {piece.segment} of the catalog's snapshot is on no disk that is here")
    data = await stripes.read(row, piece.stripe, 0, piece.length)
    if xxh3_64(data, seed) != piece.checksum:
        raise Corrupt(f"a piece of the catalog's snapshot in segment {piece.segment} fails its checksum")
    return data


async def restore_snapshot(path: Path, disks: Disks, stripes: StripeStore) -> bool:
    """Write the newest snapshot to `path`, where nothing of a catalog is; synced. False when none was ever taken.
    Raises DataLost, Corrupt.
    """
    root = disks.slot.snapshot
    if root is None:
        return False
    segments = await find_segments(disks)
    table = await read_table(root, stripes, segments)
    try:
        async with await trio.open_file(path, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            async for piece in read_pieces(table, stripes, segments):
                await file.write(piece)
            await file.flush()
            await trio.to_thread.run_sync(os.fsync, file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)  # it may have been the room for it that was lacking
        raise
    await trio.to_thread.run_sync(store_sums, path)
    log.warning("catalog restored from its snapshot", sequence=table.sequence, size_bytes=table.size)
    return True


async def find_segments(disks: Disks) -> dict[int, SegmentRow]:
    """Every segment on the good disks, as the headers of its shard files tell, without a catalog. Of two files of a
    shard the longer one counts: in the other it was not written to its end, and it was made anew elsewhere.
    """
    headers: dict[int, SegmentHeader] = {}
    places: dict[int, dict[int, int]] = {}
    lengths: dict[tuple[int, int], int] = {}
    for disk_index in disks.good():
        disk = disks.get(disk_index)
        if disk is None:
            continue
        try:
            names = await disk.list(FOLDER)
        except DiskError as error:
            disks.fail(disk_index, error)
            continue
        for name, length in names.items():
            parsed = parse_shard_name(name)
            if parsed is None or length <= lengths.get(parsed, 0):
                continue
            try:
                header = unpack_segment_header(await disk.read(f"{FOLDER}/{name}", 0, PAGE_BYTES))
            except (Corrupt, DiskError):
                continue
            if header.store_id == disks.store_id and (header.segment, header.index) == parsed:
                headers[header.segment] = header
                lengths[parsed] = length
                places.setdefault(header.segment, {})[header.index] = disk_index
    return {id_: _row(header, places[id_]) for id_, header in headers.items()}


def _row(header: SegmentHeader, places: dict[int, int]) -> SegmentRow:
    shards = range(header.k + header.m)
    disks = tuple(places.get(index, -1) for index in shards)
    missing = sum(1 << index for index in shards if index not in places)
    return SegmentRow(
        header.segment, header.epoch, STATE_SEALED, header.k, header.m, header.stripe_bytes, disks, missing, 0, -1
    )


def protected_segments(job_state: bytes | None) -> frozenset[int]:
    """The segments that snapshots lie in, as the job's state tells: no extent names them, and they must stay."""
    if not job_state:
        return frozenset()
    return frozenset(json.loads(job_state)["segments"])


def save_request(segments: set[int], sequence: int) -> rq.SaveJob:
    """Remembers in which segments snapshots lie."""
    return rq.SaveJob(JOB, json.dumps({"segments": sorted(segments), "sequence": sequence}).encode())
