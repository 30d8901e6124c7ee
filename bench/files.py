"""CPU time and rate of file operations, peers beside in the same run: `python -m bench.files [--quick] [--no-peer]`.

Each file system (bench/file_mounts.py) is mounted from a fresh folder on the same disk. All rounds are interleaved: one
operation on each, then the next operation, then the next round; figures are medians over rounds. CPU is that of all
processes that serve a mount: daemon and mount, JuiceFS and Redis. Clients are processes of their own, and what they
take in the kernel is not counted. Servers and clients share all cores. Before each measurement the system's caches are
written to the disk, so that nobody waits for what another left; before a cold one they are emptied, all of them: pages,
names and attributes of the mounts and of the files below. What a server keeps itself stays.

At the end a directory is renamed that holds a million keys, which are made through the library.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from bench import figures, file_mounts, keys
from bench.figures import Figures
from bench.file_cells import (
    MANY_PROCESSES,
    OPERATIONS,
    PROCESSES,
    QUICK,
    READ_WARM,
    Operation,
    Share,
    Sizes,
    Work,
    make_sources,
)
from bench.file_mounts import BARE, DURABILITY, JUICEFS, JUICEFS_SYNCED, OURS, RCLONE, Mount
from bench.process import MIB
from couchestord.errors import ConfigError
from couchestord.processes.mount import check_mount_point

ALL: Final = (OURS, JUICEFS, JUICEFS_SYNCED, RCLONE, BARE)
START_S: Final = 0.05
"""What is measured begins so long after it was handed out: by then each process is ready."""
IDLE_S: Final = 0.001
"""Less CPU in a measurement counts as so much: servers take it that do nothing."""
FEW_KEYS: Final = 1000
RENAMES: Final = 10
DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True, slots=True)
class Sample:
    cpu_us: float
    per_second: float
    cpu_s: float = 0.0
    """Of all operations together."""


Samples = dict[tuple[str, str], list[Sample]]
"""By name of the row and of the file system."""


def row_name(operation: Operation, processes: int) -> str:
    return f"{operation.name}, {processes} process{'es' if processes > 1 else ''}"


# -- measuring ---------------------------------------------------------------------------------------------------------


def carry_out(work: Work, share: Share, begin_at: float) -> float:
    """In a process of its own. When it was done, by the monotonic clock."""
    steps = work(share)
    next(steps)
    time.sleep(max(0.0, begin_at - time.monotonic()))
    for _ in steps:
        pass
    return time.monotonic()


def run(work: Work, shares: Sequence[Share], clients: ProcessPoolExecutor) -> float:
    """Seconds until the last of them is done. Each has a process to itself: none is free before all have begun."""
    begin_at = time.monotonic() + START_S
    futures = [clients.submit(carry_out, work, share, begin_at) for share in shares]
    return max(future.result() for future in futures) - begin_at


def measure(mount: Mount, operation: Operation, shares: Sequence[Share], clients: ProcessPoolExecutor) -> Sample:
    mount.begin()
    os.sync()
    if operation.is_cold:
        DROP_CACHES.write_text("3")
    if operation.is_warm:
        run(operation.work, shares, clients)
    before = mount.cpu_s()
    elapsed_s = run(operation.work, shares, clients)
    used_s, count = max(mount.cpu_s() - before, IDLE_S), operation.count(shares[0].sizes)
    return Sample(used_s / count * 1e6, count / elapsed_s, used_s)


def make_shares(mount: Mount, turn: int, processes: int, sources: Path, sizes: Sizes) -> list[Share]:
    """A folder for each process."""
    shares = []
    for number in range(processes):
        folder = mount.folder / mount.name / f"{turn}-{processes}" / str(number)
        folder.mkdir(parents=True)
        shares.append(Share(folder, sources, sizes, processes, turn * MANY_PROCESSES + number))
    return shares


def rounds(
    mounts: Sequence[Mount], operations: Sequence[Operation], sources: Path, count: int, sizes: Sizes
) -> Samples:
    samples: Samples = {}
    with ProcessPoolExecutor(MANY_PROCESSES, mp_context=multiprocessing.get_context("spawn")) as clients:
        # until all of them are there
        list(clients.map(time.sleep, [0.5] * MANY_PROCESSES))
        for turn in range(count):
            for processes in PROCESSES:
                shares = {mount.name: make_shares(mount, turn, processes, sources, sizes) for mount in mounts}
                for operation in operations:
                    for mount in mounts:
                        if processes in operation.processes and (operation.changes or mount.name != JUICEFS_SYNCED):
                            sample = measure(mount, operation, shares[mount.name], clients)
                            samples.setdefault((row_name(operation, processes), mount.name), []).append(sample)
                for mount in mounts:
                    shutil.rmtree(mount.folder / mount.name)
    return samples


def check(mount: Mount) -> None:
    """It gives back what it was given, once the kernel has forgotten it."""
    body = bytearray(random.Random(5).randbytes(3 * MIB))
    path = mount.folder / f"checked {mount.name}"
    path.write_bytes(body)
    body[MIB : MIB + 5000] = bytes(5000)
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(bytes(5000))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if path.read_bytes() != body:
        raise SystemExit(f"{mount.name} gives back other bytes than it was given")
    path.unlink()


# -- a million keys ----------------------------------------------------------------------------------------------------


def rename_directories(folder: Path, count: int, kept: Figures) -> None:
    """One of few keys and one of many, through a mount, back and forth."""
    made_s, _ = trio.run(keys.fill, folder / "data", count, b"many/")
    print(f"\n{count:,} keys made in {made_s:.0f} s", flush=True)
    with file_mounts.couchestord(folder / "data", folder / "mnt", keys.BUCKET) as mount:
        few = mount.folder / "few"
        few.mkdir()
        for number in range(FEW_KEYS):
            (few / str(number)).touch()
        for name, keys_count in (("few", FEW_KEYS), ("many", count)):
            found = [rename_there_and_back(mount, mount.folder / name) for _ in range(RENAMES)]
            ms, cpu_ms = 1000 / median(found).per_second, median(found).cpu_us / 1000
            print(f"rename of a directory of {keys_count:,} keys: {ms:.2f} ms, CPU {cpu_ms:.2f} ms")
            kept.add(f"rename ms/{name}", ms, is_full=count == keys.MANY)


def rename_there_and_back(mount: Mount, path: Path) -> Sample:
    other = path.with_name("renamed")
    before, begun = mount.cpu_s(), time.perf_counter()
    path.rename(other)
    other.rename(path)
    return Sample((mount.cpu_s() - before) / 2 * 1e6, 2 / (time.perf_counter() - begun))


# -- reporting ---------------------------------------------------------------------------------------------------------


def median(samples: Sequence[Sample]) -> Sample:
    """Of each field by itself."""
    return Sample(
        statistics.median(one.cpu_us for one in samples), statistics.median(one.per_second for one in samples)
    )


def spread(samples: Sequence[Sample]) -> float:
    """(largest - smallest) / median of the CPU times: how noisy the machine was."""
    values = [one.cpu_us for one in samples]
    return (max(values) - min(values)) / statistics.median(values)


@dataclass(frozen=True, slots=True)
class Row:
    """An operation and its medians, by name of the file system."""

    name: str
    counted: str
    of: dict[str, Sample]
    spread: float

    def less_cpu(self, peer: str) -> float | None:
        """How many times less than the peer; None: it was not measured here."""
        return self.of[peer].cpu_us / self.of[OURS].cpu_us if peer in self.of else None

    def faster(self, peer: str) -> float | None:
        return self.of[OURS].per_second / self.of[peer].per_second if peer in self.of else None


def rows_of(samples: Samples) -> list[Row]:
    counted = {row_name(one, processes): one.counted for one in OPERATIONS for processes in one.processes}
    found: dict[str, dict[str, list[Sample]]] = {}
    for (row, name), each in samples.items():
        found.setdefault(row, {})[name] = each
    return [
        Row(row, counted[row], {name: median(each) for name, each in of.items()}, max(map(spread, of.values())))
        for row, of in found.items()
    ]


def report(rows: Sequence[Row]) -> None:
    """Two Markdown tables, of CPU and of rates, and what a call that has returned promises."""
    names = [name for name in ALL if any(name in row.of for row in rows)]
    head = " | ".join(names)
    print(f"| CPU us | of a | {head} | JuiceFS : ours | ours : passthrough | spread |")
    print("|---|---|" + "--:|" * (len(names) + 3))
    for row in rows:
        cells = [_number(row.of[name].cpu_us) if name in row.of else "" for name in names]
        cells += [_ratio(row.less_cpu(JUICEFS)), _ratio(1 / (row.less_cpu(BARE) or 1)), f"{row.spread:.0%}"]
        print(f"| {row.name} | {row.counted} | " + " | ".join(cells) + " |")
    print(f"\n| a second | of a | {head} | ours : JuiceFS | ours : passthrough |")
    print("|---|---|" + "--:|" * (len(names) + 2))
    for row in rows:
        cells = [_number(row.of[name].per_second) if name in row.of else "" for name in names]
        cells += [_ratio(row.faster(JUICEFS)), _ratio(row.faster(BARE))]
        print(f"| {row.name} | {row.counted} | " + " | ".join(cells) + " |")
    print("\nWhat lasts when a call has returned:\n")
    for name in names:
        print(f"- {name}: {DURABILITY[name]}.")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else _number(value)


def conclude(rows: Sequence[Row], kept: Figures, *, is_full: bool) -> None:
    """The least by which we are ahead, and where we are behind. Warm reads are the kernel's, and judged apart."""
    print()
    for peer in (JUICEFS, JUICEFS_SYNCED):
        for what, ahead in (("rate", Row.faster), ("CPU", Row.less_cpu)):
            found = {row.name: ratio for row in rows if (ratio := ahead(row, peer)) is not None}
            warm = [found.pop(name) for name in list(found) if name.startswith(READ_WARM)]
            name = f"files {what}/{peer}"
            if not found:
                kept.skip(name, f"{peer} was not there")
                continue
            behind = [f"{row} {ratio:.2f}" for row, ratio in found.items() if ratio < 1]
            print(f"behind {peer} in {what}, {len(behind)} of {len(found)}: {'; '.join(behind) or 'nowhere'}\n")
            kept.add(name, min(found.values()), is_full=is_full)
            if warm:
                kept.add(f"{name}/warm", min(warm), is_full=is_full)


def tell_rest(mounts: Sequence[Mount], samples: Samples, before_s: Sequence[float]) -> None:
    """CPU that fell between measurements: what was put off, and the benchmark's own folders."""
    for mount, begun_s in zip(mounts, before_s, strict=True):
        if mount.name != JUICEFS_SYNCED:
            names = {one.name for one in mounts if one.folder == mount.folder}
            measured_s = sum(one.cpu_s for (_, name), found in samples.items() if name in names for one in found)
            rest_s = mount.cpu_s() - begun_s - measured_s
            print(f"{mount.name}: CPU {measured_s:.1f} s, and {rest_s:.1f} s between measurements")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.files", description="CPU time and rate of file operations.")
    parser.add_argument("--quick", action="store_true", help="one short round, noisy; ten thousand keys")
    parser.add_argument("--no-peer", action="store_true", help="without JuiceFS and rclone")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--folder", type=Path, help="where the data lies while it is measured")
    figures.add_option(parser)
    options = parser.parse_args(arguments)
    count, sizes = (1, QUICK) if options.quick else (options.rounds, Sizes())
    try:
        check_mount_point(Path(tempfile.gettempdir()))
    except ConfigError as error:
        print(f"nothing can be mounted: {error}")
        return
    operations = [one for one in OPERATIONS if not one.program or shutil.which(one.program)]
    for one in OPERATIONS:
        if one not in operations:
            print(f"without {one.name}: apt-get install {one.program}")
    if not os.access(DROP_CACHES, os.W_OK):
        operations = [one for one in operations if not one.is_cold]
        print("without cold reads: only root may drop the system's caches")
    with tempfile.TemporaryDirectory(dir=options.folder) as name, ExitStack() as stack:
        sources = Path(name) / "sources"
        make_sources(sources, sizes)
        mounts = file_mounts.start(stack, Path(name), not options.no_peer)
        for mount in mounts:
            check(mount)
        print(f"{figures.circumstances()}; {count} rounds\n", flush=True)
        before_s = [mount.cpu_s() for mount in mounts]
        samples = rounds(mounts, operations, sources, count, sizes)
        rows = rows_of(samples)
        report(rows)
        conclude(rows, options.figures, is_full=not options.quick)
        tell_rest(mounts, samples, before_s)
        print(f"load average {os.getloadavg()[0]:.1f} at the end")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        rename_directories(Path(name), keys.FEW if options.quick else keys.MANY, options.figures)


if __name__ == "__main__":
    main()
