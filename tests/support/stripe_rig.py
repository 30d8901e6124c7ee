"""A store's lower half for tests: simulated disks, a real catalog, and a writer that commits one request at a time."""

import random
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio
from simdisk import SimDisk

from couchestord.ec.codec import ZfecEngine
from couchestord.ec.segments import SegmentOptions, SegmentPool
from couchestord.ec.shards import PAGE_BYTES, SegmentHeader, pack_segment_header, shard_path
from couchestord.ec.stripes import StripeOptions, StripeStore
from couchestord.errors import DataLost
from couchestord.io import mutations as mu
from couchestord.io import requests as rq
from couchestord.io.catalog.catalog import Catalog
from couchestord.io.catalog.read import SegmentRow
from couchestord.io.checksum import xxh3_64
from couchestord.io.disks import Disks, load_disks
from couchestord.io.newdisk import create_store

STORE_ID = b"store of a test!"
STRIPE_BYTES = 256 << 10
"""64 KiB a shard with k=4: four blocks."""


def pattern(length: int, seed: int = 0) -> bytes:
    """Bytes that differ everywhere, the same for the same arguments."""
    return random.Random(f"{length} {seed}").randbytes(length)


def reseal(page: bytes, at: int, value: bytes) -> bytes:
    """A stripe header with some bytes set and a checksum that fits."""
    blocks = struct.unpack_from("<H", page, 6)[0]
    end = 64 + 8 * blocks
    head = page[:at] + value + page[at + len(value) : end]
    return (head + struct.pack("<Q", xxh3_64(head))).ljust(4096, b"\0")


def make_row(id_: int, disks: Sequence[int], *, k: int = 4, m: int = 2, epoch: int = 7, **fields: Any) -> SegmentRow:
    row = SegmentRow(id_, epoch, 1, k, m, STRIPE_BYTES, tuple(disks), 0, 0, -1)
    return row._replace(**fields)


async def make_disks(sims: Sequence[SimDisk], k: int, m: int) -> Disks:
    """A new store on simulated disks."""
    ids = [bytes([index] * 16) for index in range(len(sims))]
    await create_store(sims, store_id=STORE_ID, disk_ids=ids, k=k, m=m, created_ns=1)
    return await load_disks(sims)


class Rig:
    """Disks, catalog and stripe store. `damages` holds what was reported; `requests` what was submitted."""

    def __init__(self, sims: list[SimDisk], disks: Disks, catalog: Catalog, nursery: trio.Nursery) -> None:
        self.sims = sims
        self.disks = disks
        self.catalog = catalog
        self.nursery = nursery
        self.damages: list[tuple[int, int, int]] = []
        self.requests: list[object] = []
        self.journal: dict[int, bytes] = {}
        self.policies = {0: replace(disks.default_policy, stripe_bytes=STRIPE_BYTES)}
        self.refuse: Exception | None = None
        self.stripes = self.make_stripes()

    def make_stripes(self, headers_cached_max: int = 4096) -> StripeStore:
        # no threads: a clock with autojump takes the wait for one for idleness
        options = StripeOptions(headers_cached_max=headers_cached_max, thread_bytes_min=1 << 30)
        return StripeStore(
            self.disks,
            ZfecEngine(),
            self.nursery,
            options=options,
            on_damage=lambda *damage: self.damages.append(damage),
        )

    def make_pool(self, **options: Any) -> SegmentPool:
        """A pool whose streams are written under `self.policies`."""
        return SegmentPool(self.stripes, self.disks, self.submit, SegmentOptions(**options), self.policies.__getitem__)

    def forget_cache(self) -> None:
        """As after a restart: no header is cached."""
        self.stripes = self.make_stripes()

    async def crash(self) -> None:
        """Power is cut; the rig goes on with what the disks kept."""
        self.sims = [sim.crash() for sim in self.sims]
        self.disks = await load_disks(self.sims)
        self.forget_cache()

    async def write_stripes(self, row: SegmentRow, datas: Iterable[bytes], first: int = 1) -> list[int]:
        """Stripes written and synced without a pool; returns their addresses."""
        places = []
        stripe = first
        for data in datas:
            encoded = await self.stripes.encode(row, stripe, data)
            for index, disk in enumerate(row.disks):
                if disk < 0:
                    continue
                header = SegmentHeader(
                    STORE_ID, row.id, row.epoch, index, "rs-zfec-0x11d", row.k, row.m, 0, row.stripe_bytes, 16384,
                    row.disks,
                )  # fmt: skip
                path = shard_path(row.id, index)
                await self.sims[disk].write_at(path, 0, [pack_segment_header(header)])
                await self.sims[disk].write_at(path, stripe * PAGE_BYTES, encoded.buffers(index), sync=True)
                await self.sims[disk].sync_dir("segments")
            places.append(stripe)
            stripe += encoded.pages_count
        return places

    # -- the writer ------------------------------------------------------------------------------------------------

    async def submit(self, request: Any) -> Any:
        """Decide and commit one request."""
        await trio.lowlevel.checkpoint()
        if self.refuse is not None:
            raise self.refuse
        self.requests.append(request)
        catalog = self.catalog
        outcome, answer = self._decide(request)
        if outcome is not None:
            catalog.begin()
            catalog.applier.apply(outcome, catalog.applier.sequence + 1, 0)
            catalog.commit()
        if isinstance(request, rq.MakeSegment):
            return catalog.reading.segment(answer)
        return answer

    def _decide(self, request: Any) -> tuple[mu.AnyOutcome | None, Any]:
        reading = self.catalog.reading
        match request:
            case rq.MakeSegment(k, m, stripe_bytes, disks, policy):
                id_ = self.catalog.applier.next_id
                return mu.SegmentMade(id_, self.disks.epoch, k, m, stripe_bytes, disks, policy), id_
            case rq.SealSegment(id_, end, missing):
                return mu.SegmentSealed(id_, end, missing), None
            case rq.LoseShards(id_, missing):
                return (mu.ShardsLost(id_, missing) if reading.segment(id_) else None), None
            case rq.DropSegment(id_):
                row = reading.segment(id_)
                gone = row is not None and row.state == 1 and row.live_bytes == 0
                return (mu.SegmentDropped(id_) if gone else None), gone
            case rq.PlaceShard(id_, index, disk):
                there = reading.segment(id_) is not None
                return (mu.ShardPlaced(id_, index, disk) if there else None), there
            case rq.SaveJob(name, state):
                return mu.JobPut(name, state), None
            case rq.MoveExtents(moves):
                kept = []
                for move in moves:
                    found = reading.extent(move.extent)
                    if found and (found.segment, found.stripe, found.stripe_start) == move.old:
                        kept.append(mu.Move(move.extent, *move.new))
                return mu.ExtentsMoved(tuple(kept)), len(kept)
            case _:
                raise AssertionError(f"not a request of a background job: {request}")

    def apply(self, outcome: mu.AnyOutcome) -> int:
        """Commit an outcome as it is; returns its sequence."""
        self.catalog.begin()
        sequence = self.catalog.applier.sequence + 1
        self.catalog.applier.apply(outcome, sequence, 0)
        self.catalog.commit()
        return sequence

    def put(self, name: bytes, extents: Sequence[mu.Extent], policy: int = 0) -> int:
        """An object of these extents; returns the id of its first one."""
        id_ = self.catalog.applier.next_id
        size = sum(extent.length for extent in extents)
        self.apply(mu.ObjectPut(1, name, id_, size, b"etag", 1, b"", extents=tuple(extents), policy=policy))
        self.catalog.applier.next_id = max(self.catalog.applier.next_id, id_ + max(1, len(extents)))
        return id_

    def put_small(self, name: bytes, body: bytes, policy: int = 0) -> int:
        """An object whose bytes lie in the journal; returns the id of its extent."""
        id_ = self.put(name, [mu.Extent(len(body))], policy)
        self.journal[self.catalog.applier.sequence] = body
        return id_

    async def read_journal(self, sequence: int, start: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        if sequence not in self.journal:
            raise DataLost(f"record {sequence} is not in the journal")
        return self.journal[sequence][start : start + length]

    def delete(self, name: bytes) -> None:
        self.apply(mu.ObjectDeleted(1, name))

    def segment(self, id_: int) -> SegmentRow:
        row = self.catalog.reading.segment(id_)
        assert row is not None
        return row

    async def extent_bytes(self, id_: int) -> bytes:
        """What the extent's place holds."""
        extent = self.catalog.reading.extent(id_)
        assert extent is not None
        assert extent.segment
        run = self.stripes.read_run(self.segment(extent.segment), extent.stripe, extent.stripe_start, extent.length)
        return b"".join([bytes(piece) async for piece in run])


@asynccontextmanager
async def open_rig(
    folder: Path, *, k: int = 4, m: int = 2, disks_count: int | None = None, seed: int = 0
) -> AsyncIterator[Rig]:
    """A new store on simulated disks with an empty catalog in `folder`."""
    rng = random.Random(seed)
    sims = [SimDisk(f"sim-{index}", rng) for index in range(disks_count or k + m)]
    disks = await make_disks(sims, k, m)
    Catalog.create(folder / "catalog.sqlite", STORE_ID, disks.default_policy)
    catalog = Catalog(folder / "catalog.sqlite")
    try:
        async with trio.open_nursery() as nursery:
            rig = Rig(sims, disks, catalog, nursery)
            rig.apply(mu.BucketMade("bucket", 1, "", 1))
            yield rig
            nursery.cancel_scope.cancel()
    finally:
        catalog.close()
