"""Room on disk and memory: `python -m bench.space [--quick] [--only PART ...]`.

- small: 100,000 objects of 4 KiB through S3, then `du` of the whole data folder once they are destaged; then the first
  reads after a start with nothing in memory (as root, who alone may drop the system's caches).
- memory: eight clients put, then get, objects of 1 GiB at the same time; the most that is resident.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from bench import figures, peers
from bench.figures import Figures
from bench.load import Request, run
from bench.peers import DURABLE_BUCKET
from bench.process import MIB, cpu_s, disk_bytes, forget_peak, peak_resident_bytes, resident_bytes

SMALL_BYTES: Final = 4096
SMALL_COUNT: Final = 100_000
LARGE_BYTES: Final = 1 << 30
DESTAGE_TIMEOUT_S: Final = 300.0
SETTLED_S: Final = 15.0
"""So long the folder must stay as it is to count as destaged and trimmed."""
CLIENTS: Final = 8
FIRST_READS: Final = 1000


def _line(name: str, figure: str, goal: str = "") -> None:
    print(f"{name:64} {figure:>24}  {goal}", flush=True)


# -- 100,000 small objects -------------------------------------------------------------------------------------------


def _wait_until_destaged(folder: Path, count: int) -> dict[str, Any]:
    """The status once everything is moved and the folder has stopped changing."""
    deadline = time.monotonic() + DESTAGE_TIMEOUT_S
    settled_since, last = time.monotonic(), -1
    while time.monotonic() < deadline:
        status: dict[str, Any] = peers.command("status", "--data", folder)
        now_bytes = disk_bytes(folder)
        if now_bytes != last or status["jobs"]["destage"]["moved_extents"] < count:
            settled_since, last = time.monotonic(), now_bytes
        elif time.monotonic() - settled_since > SETTLED_S:
            return status
        time.sleep(2)
    raise SystemExit(f"not destaged within {DESTAGE_TIMEOUT_S:g} s")


def small_path(number: int) -> str:
    return f"/{DURABLE_BUCKET}/{number % 100:02}/{number:08}"


def small_objects(folder: Path, count: int, kept: Figures) -> None:
    rng = random.Random(0)
    body = rng.randbytes(SMALL_BYTES)
    with peers.couchestord(folder) as server:
        empty_bytes = disk_bytes(folder)
        before = cpu_s(server.pid)
        requests = (server.signer.request("PUT", small_path(number), body=body) for number in range(count))
        load = run(server.port, requests, 32, None)
        put_cpu_s = cpu_s(server.pid) - before
        full_bytes = disk_bytes(folder)
        status = _wait_until_destaged(folder, count)
        all_cpu_s = cpu_s(server.pid) - before
        used_bytes = disk_bytes(folder)
        stored = count * SMALL_BYTES
        _line(f"{count:,} objects of 4 KiB: rate of PUT, 32 clients", f"{load.per_second:,.0f}/s")
        _line("  CPU of a PUT", f"{put_cpu_s / count * 1e6:,.0f} us")
        _line("  CPU of a PUT, destage, snapshot and trimming included", f"{all_cpu_s / count * 1e6:,.0f} us")
        _line("  du of an empty store", f"{empty_bytes / MIB:,.1f} MiB")
        _line("  du before destage is over", f"{full_bytes / MIB:,.1f} MiB", f"{full_bytes / stored:.2f} x their bytes")
        _line("  du after destage", f"{used_bytes / MIB:,.1f} MiB")
        for name, part in _parts(folder).items():
            _line(f"    {name}", f"{part / MIB:,.1f} MiB")
        _line("  journal, one replica", f"{status['journal']['bytes'] / MIB:,.1f} MiB")
        _line("  du after destage / bytes of the objects", f"{used_bytes / stored:.2f}", "goal 1.7")
        kept.add("disk bytes per byte", used_bytes / stored, is_full=count == SMALL_COUNT)
    first_reads(folder, count, kept)


def first_reads(folder: Path, count: int, kept: Figures) -> None:
    """Reads of objects chosen by chance, by one client, after a start with cold caches, and the same ones once more."""
    if os.geteuid():
        kept.skip("first read us", "only root may drop the system's caches")
        return
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    chosen = random.Random(0).sample(range(count), min(FIRST_READS, count))
    with peers.couchestord(folder) as server:
        requests = [server.signer.request("GET", small_path(number)) for number in chosen]
        for name, figure in (("first reads after a cold start", "first read"), ("  and once more", "next read")):
            before = cpu_s(server.pid)
            load = run(server.port, iter(requests), 1, None)
            used_us, each_us = (cpu_s(server.pid) - before) / len(chosen) * 1e6, 1e6 / load.per_second
            _line(name, f"{each_us:,.0f} us each, CPU {used_us:,.0f} us")
            kept.add(f"{figure} us", each_us, is_full=count == SMALL_COUNT)
            kept.add(f"{figure} cpu us", used_us, is_full=count == SMALL_COUNT)


def _parts(folder: Path) -> dict[str, int]:
    """Bytes on disk by what holds them."""
    parts: dict[str, int] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            inside = path.relative_to(folder).parts
            name = inside[1] if inside[0].startswith("disk-") else inside[0]
            name = f"disk-*/{name}" if inside[0].startswith("disk-") else name
            parts[name] = parts.get(name, 0) + path.stat().st_blocks * 512
    return dict(sorted(parts.items(), key=lambda item: -item[1])[:6])


# -- memory ----------------------------------------------------------------------------------------------------------


def memory(folder: Path, size_bytes: int, kept: Figures) -> None:
    body = random.Random(0).randbytes(MIB) * (size_bytes // MIB)
    with peers.couchestord(folder) as server:
        idle_bytes = resident_bytes(server.pid)
        _line("memory: resident when idle", f"{idle_bytes / MIB:,.0f} MiB", "goal 128 MiB")
        kept.add("idle bytes", idle_bytes)

        def requests(method: str) -> Iterator[Request]:
            content = body if method == "PUT" else b""
            for number in range(CLIENTS):
                yield server.signer.request(method, f"/{DURABLE_BUCKET}/large-{number}", body=content)

        for method in ("PUT", "GET"):
            forget_peak(server.pid)
            load = run(server.port, requests(method), CLIENTS, None)
            peak = peak_resident_bytes(server.pid)
            _line(
                f"  peak, {CLIENTS} clients {method} {size_bytes // MIB} MiB", f"{peak / MIB:,.0f} MiB", "goal 300 MiB"
            )
            kept.add(f"peak bytes/{method}", peak, is_full=size_bytes == LARGE_BYTES)
            rate = CLIENTS * size_bytes / 1e6 / load.elapsed_s
            _line("    all together", f"{rate:,.0f} MB/s")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.space", description="Room and memory.")
    parser.add_argument("--quick", action="store_true", help="a hundredth of the objects, 64 MiB instead of 1 GiB")
    parser.add_argument("--folder", type=Path, help="where the data lies while it is measured")
    parser.add_argument("--only", choices=("small", "memory"), nargs="+", help="these parts")
    figures.add_option(parser)
    options = parser.parse_args(arguments)
    quick, kept = options.quick, options.figures
    parts: dict[str, Callable[[Path], None]] = {
        "small": lambda folder: small_objects(folder, SMALL_COUNT // 100 if quick else SMALL_COUNT, kept),
        "memory": lambda folder: memory(folder, LARGE_BYTES // 16 if quick else LARGE_BYTES, kept),
    }
    print(figures.circumstances(), flush=True)
    for name, part in parts.items():
        if options.only is None or name in options.only:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                part(Path(folder) / "data")


if __name__ == "__main__":
    main()
