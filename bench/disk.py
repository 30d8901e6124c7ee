"""What a call to DirectoryDisk costs beside the bare system call, in one run: `python -m bench.disk [--folder DIR]`.

CPU microseconds and operations a second.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from couchestord.io.directory import DirectoryDisk

PAGE_BYTES = 4096
PAGES_COUNT = 4096
READS_COUNT = 40_000
APPENDS_COUNT = 400
TASKS_COUNT = 32


def _report(name: str, count: int, wall_s: float, cpu_s: float) -> None:
    print(f"{name:34} {cpu_s / count * 1e6:8.1f} us CPU {count / wall_s:10.0f} op/s")


def _measure(name: str, count: int, body: Callable[[int], object]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    for index in range(count):
        body(index)
    _report(name, count, time.perf_counter() - wall, time.process_time() - cpu)


async def _measure_async(name: str, count: int, tasks_count: int, body: Callable[[int], Awaitable[object]]) -> None:
    async def work(first: int) -> None:
        for index in range(first, count, tasks_count):
            await body(index)

    wall, cpu = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        for first in range(tasks_count):
            nursery.start_soon(work, first)
    _report(name, count, time.perf_counter() - wall, time.process_time() - cpu)


async def _main(folder: Path) -> None:
    disk = DirectoryDisk(folder, deadline_s=60)
    page = bytes(PAGE_BYTES)
    await disk.preallocate("pages", 0, PAGES_COUNT * PAGE_BYTES)
    await disk.read("pages", 0, 1)
    number = os.open(folder / "pages", os.O_RDWR)

    def at(index: int) -> int:
        return index % PAGES_COUNT * PAGE_BYTES

    def append_bare(index: int) -> None:
        os.pwrite(number, page, at(index))
        os.fdatasync(number)

    _measure("os.pread", READS_COUNT, lambda index: os.pread(number, PAGE_BYTES, at(index)))
    _measure("read_nowait", READS_COUNT, lambda index: disk.read_nowait("pages", at(index), PAGE_BYTES))
    for tasks_count in (1, TASKS_COUNT):
        await _measure_async(
            f"read, {tasks_count} tasks", READS_COUNT, tasks_count, lambda i: disk.read("pages", at(i), PAGE_BYTES)
        )
    _measure("os.pwrite + os.fdatasync", APPENDS_COUNT, append_bare)
    for tasks_count in (1, TASKS_COUNT):
        await _measure_async(
            f"write_at with sync, {tasks_count} tasks",
            APPENDS_COUNT,
            tasks_count,
            lambda i: disk.write_at("pages", at(i), (page,), sync=True),
        )
    os.close(number)
    disk.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.disk", description="A call to a disk.")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the system's temporary folder")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as name:
        trio.run(_main, Path(name))
