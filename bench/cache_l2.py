"""The second cache: `python -m bench.cache_l2 [--quick] [--folder DIR] [--figures FILE]`.

CPU time of the process, its threads too, and wall time; the median of samples. Cold: what the page cache held of the
segments was dropped before. Beside it a bare pread of as many bytes from the same files: the device.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import trio

from bench import figures as fg
from couchestord.cache import make_compressor
from couchestord.cache.l2 import L2
from couchestord.cache.l2folder import L2Options, Standing, open_folder
from couchestord.cache.l2format import Mark

SIZE_BYTES: Final = 256 << 20
FIRST: Final = 16
MARKS: Final = (Mark(1, b"one"), Mark(2, b"two"))


def make_l2(folder: Path, life: int) -> L2:
    """The cache of a store that was started for the `life`-th time, 0 or 1."""
    options = L2Options(folder / "cache", SIZE_BYTES, deadline_s=60.0, reads_max=1 << 20)
    standing = Standing(bytes(16), MARKS[life - 1], 1 << 40, lambda: MARKS[life])
    return L2(options, standing, make_compressor("lz4"), os.urandom, partial(open_folder, options, ()))


def drop(folder: Path) -> None:
    for path in (folder / "cache" / "segments").iterdir():
        number = os.open(path, os.O_RDONLY)
        os.fsync(number)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(number)


async def measured(count: int, samples: int, action: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """(CPU, wall) microseconds for each of `count`."""
    found = []
    for _ in range(samples):
        cpu, wall = time.process_time_ns(), time.perf_counter_ns()
        await action()
        found.append((time.process_time_ns() - cpu, time.perf_counter_ns() - wall))
    return tuple(statistics.median(each[kind] for each in found) / count / 1e3 for kind in (0, 1))  # type: ignore[return-value]


def report(name: str, times: tuple[float, float]) -> None:
    print(f"| {name} | {times[0]:.1f} | {times[1]:.1f} |", flush=True)


async def put_all(l2: L2, bodies: Sequence[bytes], first: int) -> None:
    for at in range(0, len(bodies), 64):
        for number, body in enumerate(bodies[at : at + 64], first + at):
            l2.put(number, 0, body)
        await l2.flush()


async def resident(l2: L2, extents: Sequence[int]) -> None:
    get = l2.get_nowait
    for extent in extents:
        assert get(extent, 0) is not None


async def awaited(l2: L2, extents: Sequence[int]) -> None:
    for extent in extents:
        assert await l2.get(extent, 0) is not None


async def at_once(l2: L2, extents: Sequence[int], tasks_count: int) -> None:
    async with trio.open_nursery() as nursery:
        for start in range(tasks_count):
            nursery.start_soon(awaited, l2, extents[start::tasks_count])


def cold_device(folder: Path, rng: random.Random, length: int, count: int) -> float:
    """Microseconds of wall time of a bare read."""
    drop(folder)
    paths = list((folder / "cache" / "segments").iterdir())
    numbers = [os.open(path, os.O_RDONLY) for path in paths]
    try:
        for number in numbers:
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_RANDOM)
        times = []
        for _ in range(count):
            number, at = rng.choice(numbers), rng.randrange(os.fstat(numbers[0]).st_size - length)
            begin = time.perf_counter_ns()
            os.pread(number, length, at)
            times.append(time.perf_counter_ns() - begin)
        return statistics.median(times) / 1e3
    finally:
        for number in numbers:
            os.close(number)


async def measure_length(l2: L2, folder: Path, length: int, count: int, samples: int, first: int) -> dict[str, float]:
    """Figures of chunks of that length, by name."""
    rng = random.Random(length)
    text = [(b"%d " % rng.getrandbits(20) * (length // 4))[:length] for _ in range(count)]
    plain = [rng.randbytes(length) for _ in range(count)]
    kib = length >> 10
    report(f"put {kib} KiB, random, written", await measured(count, 1, partial(put_all, l2, plain, first)))
    report(f"put {kib} KiB, made smaller, written", await measured(count, 1, partial(put_all, l2, text, first + count)))
    extents, small = rng.choices(range(first, first + count), k=count), range(first + count, first + 2 * count)
    hot = await measured(count, samples, partial(resident, l2, extents))
    report(f"get {kib} KiB, resident", hot)
    report(f"get {kib} KiB, resident, made smaller", await measured(count, samples, partial(resident, l2, small)))
    report(f"get {kib} KiB, resident, awaited", await measured(count, samples, partial(awaited, l2, extents)))
    few = rng.sample(range(first, first + count), min(count, 1000))
    drop(folder)
    cold = await measured(len(few), 1, partial(awaited, l2, few))
    report(f"get {kib} KiB, cold, one at a time", cold)
    drop(folder)
    report(f"get {kib} KiB, cold, 32 at a time", await measured(len(few), 1, partial(at_once, l2, few, 32)))
    device = cold_device(folder, rng, length, len(few))
    report(f"pread of {kib} KiB, cold: the device", (0.0, device))
    return {"resident": hot[0], "cold": max(0.0, cold[1] - device)}


async def measure(folder: Path, samples: int, count: int, figures: fg.Figures) -> None:
    print("| microseconds | CPU | wall |\n|---|--:|--:|")
    async with trio.open_nursery() as nursery:
        l2 = make_l2(folder, 0)
        await nursery.start(l2.run)
        found = await measure_length(l2, folder, 4096, count, samples, FIRST)
        await measure_length(l2, folder, 64 << 10, count // 16, samples, FIRST + 2 * count)
        figures.add("l2 resident us", found["resident"])
        figures.add("l2 cold us", found["cold"])
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        l2, begin = make_l2(folder, 1), time.perf_counter()
        await nursery.start(l2.run)
        print(f"\nopened with {l2.stats().entries_count:,} chunks in {1000 * (time.perf_counter() - begin):.0f} ms")
        nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cache_l2", description="The second cache.")
    parser.add_argument("--quick", action="store_true", help="a short, noisy run")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the system's temporary folder")
    fg.add_option(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        samples, count = (3, 4000) if options.quick else (9, 20_000)
        trio.run(measure, Path(folder), samples, count, options.figures)


if __name__ == "__main__":
    main()
