"""Stores of many objects, built through the library: `python -m bench.keys [--quick] [--large]`.

The rate of building, bytes of the catalog for each object, the time from the start of the process until /readyz says
200, in good order and after kill -9, what is resident then, and what LIST costs: is it flat? --large adds ten million,
which takes half an hour to build and a few GiB.
"""

import argparse
import itertools
import random
import shutil
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import trio

from bench import figures, peers
from bench.figures import Figures
from bench.load import Request, run
from bench.peers import Popen, Server
from bench.process import MIB, Cores, cpu_s, pin, resident_bytes, stop
from couchestord.store import ObjectStore

FEW, MANY, MOST = 10_000, 1_000_000, 10_000_000
BUCKET: Final = "many"
BODY_BYTES: Final = 64
WRITERS: Final = 256
STARTS: Final = 3
LISTED_KEYS: Final = 1000
LIST_ROUNDS: Final = 5


def _line(name: str, figure: str, goal: str = "") -> None:
    print(f"{name:64} {figure:>24}  {goal}", flush=True)


def key(number: int) -> bytes:
    """A thousand to a directory, in the order of numbers."""
    return b"directory-%05d/object-%08d" % (number // 1000, number)


async def fill(folder: Path, count: int, below: bytes = b"") -> tuple[float, float]:
    """Makes a store with so many objects, whose keys begin with `below`. Returns elapsed and CPU seconds."""
    numbers = iter(range(count))
    rng = random.Random(0)

    async def work(store: ObjectStore) -> None:
        for number in numbers:
            await store.put(BUCKET, below + key(number), rng.randbytes(BODY_BYTES))

    await ObjectStore.create(folder)
    wall, cpu = time.perf_counter(), time.process_time()
    async with ObjectStore.open(folder) as store:
        await store.create_bucket(BUCKET)
        async with trio.open_nursery() as nursery:
            for _ in range(WRITERS):
                nursery.start_soon(work, store)
        return time.perf_counter() - wall, time.process_time() - cpu


def build(folder: Path, count: int, kept: Figures) -> None:
    wall_s, build_cpu_s = trio.run(fill, folder, count)
    catalog_bytes = sum(path.stat().st_size for path in folder.glob("catalog*"))
    _line(f"{count:,} objects through the library", f"{count / wall_s:,.0f}/s")
    _line("  CPU of a put", f"{build_cpu_s / count * 1e6:,.0f} us")
    _line("  catalog", f"{catalog_bytes / count:,.0f} bytes/object", "goal 400")
    for part in sorted(folder.glob("catalog*")):
        _line(f"    {part.name}", f"{part.stat().st_size / count:,.0f} bytes/object")
    kept.add(f"catalog bytes/{count}", catalog_bytes / count)


# -- start -----------------------------------------------------------------------------------------------------------


def _start_s(folder: Path) -> tuple[float, Popen, int]:
    """Seconds from the start of the process until /readyz answers 200."""
    begun = time.perf_counter()
    process, addresses = peers.up(folder)
    with urllib.request.urlopen(addresses["health"].removesuffix("healthz") + "readyz", timeout=10) as response:
        assert response.status == 200
    return time.perf_counter() - begun, process, resident_bytes(process.pid)


def _kill(process: Popen) -> None:
    process.kill()
    process.wait()


def starts(folder: Path, count: int, kept: Figures) -> None:
    for name, end in (("stopped", stop), ("killed", _kill)):
        found = []
        for _ in range(STARTS):
            seconds, process, resident = _start_s(folder)
            found.append(seconds)
            end(process)
        # the first start follows another kind of end
        start_s = statistics.median(found[1:])
        _line(f"  start to /readyz 200, {count:,} objects, {name}", f"{start_s:.2f} s", "goal 1 s")
        _line("    each", ", ".join(f"{one:.2f}" for one in found))
        kept.add(f"start s/{name}/{count}", start_s)
    _line("  resident when ready", f"{resident / MIB:,.0f} MiB", "goal 128 MiB")
    kept.add(f"ready bytes/{count}", resident)


# -- LIST ------------------------------------------------------------------------------------------------------------


def pages(server: Server, count: int, seed: int) -> Iterator[Request]:
    """Pages of LISTED_KEYS keys that begin anywhere."""
    numbers = random.Random(seed).choices(range(count - LISTED_KEYS), k=LISTED_KEYS)
    query = f"list-type=2&max-keys={LISTED_KEYS}&start-after="
    after = (key(number).decode().replace("/", "%2F") for number in numbers)
    return itertools.cycle([server.signer.request("GET", f"/{BUCKET}", query + one) for one in after])


def list_keys(folders: dict[int, Path], duration_s: float, kept: Figures) -> None:
    """LIST on stores of so many objects, in turn."""
    cores = Cores.here()
    found: dict[int, list[float]] = {count: [] for count in folders}
    with ExitStack() as stack:
        servers = {count: stack.enter_context(peers.couchestord(folder)) for count, folder in folders.items()}
        for count, server in servers.items():
            pin(server.pid, cores.server)
            page = server.get(f"/{BUCKET}", f"list-type=2&max-keys={LISTED_KEYS}")
            if page.count(b"<Key>") != LISTED_KEYS:
                raise SystemExit(f"{LISTED_KEYS} keys of {count:,} are not listed")
        for turn in range(LIST_ROUNDS):
            for count, server in servers.items():
                before = cpu_s(server.pid)
                load = run(server.port, pages(server, count, turn), 1, duration_s)
                found[count].append((cpu_s(server.pid) - before) / load.operations * 1e6)
    for count, samples in found.items():
        _line(f"LIST of {LISTED_KEYS:,} keys anywhere among {count:,}, CPU", f"{statistics.median(samples):,.0f} us")
        kept.add(f"list us/{count}", statistics.median(samples))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.keys", description="Stores of many objects.")
    parser.add_argument("--quick", action="store_true", help=f"only {FEW:,} objects")
    parser.add_argument("--large", action="store_true", help=f"{MOST:,} objects, too")
    parser.add_argument("--folder", type=Path, help="where the data lies while it is measured")
    figures.add_option(parser)
    options = parser.parse_args(arguments)
    counts = [FEW] if options.quick else [FEW, MANY, *([MOST] if options.large else [])]
    print(figures.circumstances(), flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folders = {count: Path(name) / str(count) for count in counts}
        for count, folder in folders.items():
            build(folder, count, options.figures)
            if count != FEW or options.quick:
                starts(folder, count, options.figures)
        list_keys(folders, 0.5 if options.quick else 2.0, options.figures)
        shutil.rmtree(name)
    for count in {MANY, MOST} - set(counts):
        options.figures.skip(f"list us/{count}", "--large" if count == MOST else "not with --quick")


if __name__ == "__main__":
    main()
