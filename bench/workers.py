"""What a second worker brings: `python -m bench.workers [--quick]`, signed 4 KiB GETs of one worker and of two.

Two processes send, 32 connections each. With four cores or more the server has two and the clients the others. On
fewer the clients take time from the second worker: the most that these cores allow is printed beside, from the CPU
time of server and client for each request with one worker, and the goal is judged by CPU time, too: what so many
workers would do, each with a core to itself, if what they share is not the limit.
"""

import argparse
import itertools
import multiprocessing
import os
import random
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import figures, peers
from bench.cells import SMALL_BYTES, SMALL_KEYS
from bench.figures import Figures
from bench.load import Load, Request, run
from bench.peers import DURABLE_BUCKET, Server
from bench.process import Cores, cpu_s, pin

COUNTS: Final = (1, 2)
SENDERS: Final = 2
CLIENTS: Final = 32
ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class Sample:
    per_second: float
    cpu_us: float
    client_us: float


def send(port: int, requests: Sequence[Request], duration_s: float, cores: frozenset[int]) -> Load:
    """One client process. Its connections go to whichever worker the kernel picks."""
    pin(os.getpid(), cores)
    return run(port, itertools.cycle(requests), CLIENTS, duration_s)


def measure(server: Server, senders: ProcessPoolExecutor, duration_s: float, cores: Cores) -> Sample:
    spread = sorted(cores.all)
    roomy = len(spread) >= len(COUNTS) + SENDERS
    pin(server.pid, frozenset(spread[: len(COUNTS)]) if roomy else cores.all)
    theirs = frozenset(spread[len(COUNTS) :]) if roomy else cores.all
    keys = [f"/{DURABLE_BUCKET}/small/{number:04}" for number in range(SMALL_KEYS)]
    requests = [server.signer.request("GET", key) for key in keys]
    before = cpu_s(server.pid)
    futures = [senders.submit(send, server.port, requests, duration_s, theirs) for _ in range(SENDERS)]
    loads = [future.result() for future in futures]
    operations = sum(load.operations for load in loads)
    return Sample(
        sum(load.per_second for load in loads),
        (cpu_s(server.pid) - before) / operations * 1e6,
        sum(load.cpu_s for load in loads) / operations * 1e6,
    )


def most(cores_count: int, server_us: float, client_us: float) -> float:
    """The rate of two workers over that of one that so many cores allow, when server and client share them."""
    shared = cores_count / (server_us + client_us)
    return min(2 / server_us, shared) / min(1 / server_us, shared)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.workers", description="What a second worker brings.")
    parser.add_argument("--quick", action="store_true", help="one short round, noisy")
    parser.add_argument("--folder", type=Path, help="where the data lies while it is measured")
    figures.add_option(parser)
    options = parser.parse_args(arguments)
    if not peers.has_option("--workers"):
        for count in COUNTS:
            for figure in ("per second", "per core second"):
                options.figures.skip(f"{figure}/workers/{count}", "the daemon has no --workers")
        return
    rounds, duration_s = (1, 0.5) if options.quick else (ROUNDS, 2.0)
    body = random.Random(0).randbytes(SMALL_BYTES)
    cores = Cores.here()
    print(f"{figures.circumstances()}; {rounds} rounds", flush=True)
    samples: dict[int, list[Sample]] = {count: [] for count in COUNTS}
    with tempfile.TemporaryDirectory(dir=options.folder) as name, ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        senders = stack.enter_context(ProcessPoolExecutor(SENDERS, mp_context=context))
        servers = {}
        for count in COUNTS:
            server = stack.enter_context(peers.couchestord(Path(name) / str(count), f"--workers={count}"))
            servers[count] = server
            for number in range(SMALL_KEYS):
                server.put(f"/{DURABLE_BUCKET}/small/{number:04}", body)
        for _ in range(rounds):
            for count, server in servers.items():
                samples[count].append(measure(server, senders, duration_s, cores))
    report(samples, len(cores.all), options.figures)


def report(samples: dict[int, list[Sample]], cores_count: int, kept: Figures) -> None:
    for count, found in samples.items():
        per_second = statistics.median(one.per_second for one in found)
        server_us = statistics.median(one.cpu_us for one in found)
        client_us = statistics.median(one.client_us for one in found)
        print(f"workers {count}: {per_second:,.0f} GET/s; CPU us of server {server_us:.1f}, of client {client_us:.1f}")
        kept.add(f"per second/workers/{count}", per_second)
        kept.add(f"per core second/workers/{count}", count * 1e6 / server_us)
        if count == 1:
            print(f"  the most that a second can bring on {cores_count} cores, which clients share: ", end="")
            print(f"{most(cores_count, server_us, client_us):.2f} x")


if __name__ == "__main__":
    main()
