"""Rot of any kind in any number of shards, disks that come and go, and rebuilds in between: what could be read before
can be read after, and nothing is ever read wrong.
"""

import random
from pathlib import Path

import pytest
from simdisk import SimDisk
from stripe_rig import STRIPE_BYTES, Rig, open_rig, pattern

from couchestord.ec.rebuild import Rebuilder, RebuildOptions
from couchestord.ec.shards import CHECK_BYTES, PAGE_BYTES, full_stripe_pages, shard_path
from couchestord.ec.throttle import Throttle
from couchestord.errors import DataLost
from couchestord.io import requests as rq
from couchestord.io.catalog.read import SegmentRow
from couchestord.service import Progress

BODY = pattern(5 * STRIPE_BYTES + 999)
STARTS = range(0, len(BODY), STRIPE_BYTES)
STEP = full_stripe_pages(4, STRIPE_BYTES)


@pytest.mark.parametrize("seed", range(16))
async def test_no_rebuild_loses_what_could_be_read(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    async with open_rig(tmp_path, disks_count=rng.choice((6, 7, 9)), seed=seed) as rig:
        id_ = await put(rig, rng)
        for _ in range(3):
            row = rig.segment(id_)
            away = dict.fromkeys(rng.sample(range(rig.disks.count), rng.choice((0, 0, 1, 2, 3))), "pulled")
            for _ in range(rng.choice((0, 1, 2, 6, 12))):
                await spoil(rig, row, rng)
            with_all = await readable(rig, row)
            rig.disks.failures = dict(away)
            with_some = await readable(rig, row)
            await rebuild(rig, [index for index in range(6) if rng.random() < 0.7], row, rng)
            assert with_some <= await readable(rig, rig.segment(id_))
            rig.disks.failures = {}
            assert with_all <= await readable(rig, rig.segment(id_))


async def put(rig: Rig, rng: random.Random) -> int:
    """Some long extents, or one for each stripe, in a segment whose end is known or not."""
    pool = rig.make_pool(extent_bytes_max=rng.choice((STRIPE_BYTES, 16 << 20)))
    async with pool.writer() as writer:
        for start in STARTS:
            await writer.append(BODY[start : start + STRIPE_BYTES])
        await writer.sync()
        rig.put(b"body", writer.runs)
        (id_,) = writer.segments
    await pool.aclose()
    if rng.random() < 0.5:
        await rig.submit(rq.SealSegment(id_, -1))
    return id_


async def spoil(rig: Rig, row: SegmentRow, rng: random.Random) -> None:
    index = rng.randrange(6)
    sim, path = rig.sims[row.disks[index]], shard_path(row.id, index)
    size = (await sim.list("segments")).get(path.rpartition("/")[2], 0)
    page = 1 + STEP * rng.randrange(len(STARTS))
    block = (page + 1) * PAGE_BYTES + CHECK_BYTES * rng.randrange(4)
    kind = rng.choice(("block", "block", "block", "header", "page 0", "cut", "gone"))
    if kind == "cut" and size:
        await cut(sim, path, rng.randrange(size))
    elif kind == "gone" and size and rng.random() < 0.3:
        await sim.unlink(path)
    elif kind in {"block", "header", "page 0"}:
        at = {"block": block, "header": page * PAGE_BYTES, "page 0": 0}[kind] + 5
        if at < size:
            sim.rot(path, at, xor=rng.randrange(1, 256))


async def cut(sim: SimDisk, path: str, size: int) -> None:
    data = await sim.read(path, 0, size)
    await sim.unlink(path)
    await sim.write_at(path, 0, [data], sync=True)


async def rebuild(rig: Rig, reported: list[int], row: SegmentRow, rng: random.Random) -> None:
    """All that can be done now; `reported` are the shards whose damage was noticed."""
    options = RebuildOptions(grace_s=rng.choice((0.0, 1e9)), stripes_per_step=rng.choice((1, 2, 9)))
    throttle = Throttle(1 << 40)
    rebuilder = Rebuilder(rig.catalog.reading, rig.disks, rig.stripes, rig.submit, throttle, options)
    for index in reported:
        rebuilder.report(row.id, index, row.disks[index])
    for _ in range(500):
        if await rebuilder.work() is not Progress.BUSY:
            return
    raise AssertionError("it does not end")


async def readable(rig: Rig, row: SegmentRow) -> set[int]:
    """Where blocks begin that can be read; they are right."""
    rig.forget_cache()
    found: set[int] = set()
    for number, start in enumerate(STARTS):
        for at in range(start, min(len(BODY), start + STRIPE_BYTES), CHECK_BYTES):
            wanted = BODY[at : at + CHECK_BYTES]
            try:
                data = await rig.stripes.read(row, 1 + STEP * number, at - start, len(wanted))
            except DataLost:
                continue
            assert data == wanted
            found.add(at)
    return found
