"""A 64 MiB object through the stripe store: `python -m bench.stripes [--quick] [--folder DIR]`.

In one run, on folders of one file system: MD5 of the bytes (the limit of a PUT), a bare write of as many files with as
many bytes through the same disks, and the stripe store's write (encode, sum, write k+m shards, sync) and reads
(verified; whole, and with two disks away). MB/s counts data over elapsed time; CPU is the process's, all threads.
Medians.
"""

import argparse
import gc
import hashlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from couchestord.ec import choose_engine
from couchestord.ec.segments import SegmentOptions, SegmentPool
from couchestord.ec.shards import shard_path
from couchestord.ec.stripes import StripeStore
from couchestord.io.catalog.read import SegmentRow
from couchestord.io.directory import DirectoryDisk
from couchestord.io.disks import Disks, load_disks
from couchestord.io.mutations import Extent
from couchestord.io.newdisk import create_store
from couchestord.io.requests import MakeSegment

MIB = 1 << 20
SIZE_BYTES = 64 * MIB
K, M = 4, 2


class Segments:
    """Stands for the store's writer: answers rows, remembers them, and commits nothing."""

    def __init__(self) -> None:
        self.rows: dict[int, SegmentRow] = {}

    async def submit(self, request: Any) -> SegmentRow | None:
        if not isinstance(request, MakeSegment):
            return None
        id_ = 16 + len(self.rows)
        row = SegmentRow(id_, 1, 0, request.k, request.m, request.stripe_bytes, request.disks, 0, 0, -1)
        self.rows[id_] = row
        return row


async def measure(name: str, runs: int, action: Callable[[], Awaitable[None]], limit_cpu: float = 0.0) -> float:
    elapsed, cpu = [], []
    for _ in range(runs):
        gc.collect()
        begin, begin_cpu = time.perf_counter(), time.process_time()
        await action()
        cpu.append(time.process_time() - begin_cpu)
        elapsed.append(time.perf_counter() - begin)
    spent, took = statistics.median(cpu), statistics.median(elapsed)
    ratio = f"{spent / limit_cpu:10.2f}" if limit_cpu else f"{'':10}"
    print(f"{name:48} {SIZE_BYTES / took / 1e6:9.0f} {spent * 1e6 / (SIZE_BYTES / MIB):12.0f} {ratio}")
    return spent


async def open_disks(folder: Path) -> Disks:
    disks = [await DirectoryDisk.open(folder / f"disk-{index}", create=True) for index in range(K + M)]
    ids = [os.urandom(16) for _ in disks]
    await create_store(disks, store_id=os.urandom(16), disk_ids=ids, k=K, m=M, created_ns=1)
    return await load_disks(disks)


async def bench(folder: Path, runs: int) -> None:
    engine = choose_engine()
    print(f"engine: {engine.name} ({engine.note}); {K}+{M}, stripes of 1 MiB, {runs} runs of {SIZE_BYTES // MIB} MiB")
    print(f"{'':48} {'MB/s':>9} {'CPU us/MiB':>12} {'of MD5':>10}")
    data = random.Random(0).randbytes(SIZE_BYTES)
    view = memoryview(data)
    disks = await open_disks(folder)
    segments = Segments()
    runs_of_last: list[Extent] = []

    async def md5() -> None:
        hashlib.md5(data, usedforsecurity=False).digest()

    async def bare(sync: bool) -> None:
        shard = SIZE_BYTES // K // 64
        names = [f"segments/bare-{index}" for index in range(K + M)]
        for turn in range(64):
            async with trio.open_nursery() as nursery:
                for index, name in enumerate(names):
                    disk = disks.get(index)
                    assert disk is not None
                    at = (turn * K + index % K) * shard
                    nursery.start_soon(disk.write_at, name, turn * shard, [view[at : at + shard]])
        async with trio.open_nursery() as nursery:
            for index, name in enumerate(names):
                disk = disks.get(index)
                assert disk is not None
                if sync:
                    nursery.start_soon(disk.sync, name)
        for index, name in enumerate(names):
            disk = disks.get(index)
            assert disk is not None
            await disk.unlink(name)

    async def write(sync: bool, at_once: int, keep: bool = False) -> None:
        nonlocal runs_of_last
        pool = SegmentPool(stripes, disks, segments.submit, SegmentOptions(), lambda _: disks.default_policy)
        async with pool.writer() as writer:
            for at in range(0, SIZE_BYTES, at_once * MIB):
                starts = range(at, at + at_once * MIB, MIB)
                await writer.append_many([view[start : start + MIB] for start in starts])
            if sync:
                await writer.sync()
            runs_of_last = writer.runs
            for row in [] if keep else writer.segments.values():
                for index, number in enumerate(row.disks):
                    disk = disks.get(number)
                    assert disk is not None
                    await disk.unlink(shard_path(row.id, index))

    async def read() -> None:
        came = 0
        for run in runs_of_last:
            async for piece in stripes.read_run(segments.rows[run.segment], run.stripe, run.start, run.length):
                came += len(piece)
        assert came == SIZE_BYTES

    async with trio.open_nursery() as nursery:
        stripes = StripeStore(disks, engine, nursery)
        limit = await measure("MD5", runs, md5)
        await measure("bare write of k+m files", runs, lambda: bare(False), limit)
        await measure("bare write of k+m files, synced", runs, lambda: bare(True), limit)
        for at_once in (1, 4):
            name = f"stripe store: write, {at_once} stripes at once"
            await measure(name, runs, lambda at_once=at_once: write(False, at_once), limit)  # type: ignore[misc]
            await measure(f"{name}, synced", runs, lambda at_once=at_once: write(True, at_once), limit)  # type: ignore[misc]
        await write(True, 4, keep=True)
        await measure("stripe store: read, warm", runs, read, limit)
        disks.fail(0, "bench")
        disks.fail(3, "bench")
        await measure("stripe store: read, two disks away", runs, read, limit)
        nursery.cancel_scope.cancel()
    disks.close()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.stripes", description="Speed of the stripe store.")
    parser.add_argument("--quick", action="store_true", help="fewer runs, noisier")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="couchestord-bench-") as folder:
        trio.run(bench, Path(folder), 3 if options.quick else 9)


if __name__ == "__main__":
    main()
