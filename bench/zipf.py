"""Reads that choose among many objects as Zipf's law has it, and how many of them a cache serves."""

import itertools
import random
import re
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Final

from bench.load import Request, run
from bench.peers import Server

EXPONENT: Final = 0.99
TRACE_LENGTH: Final = 100_000


def trace(count: int, length: int, seed: int) -> list[int]:
    """`length` numbers below `count`: the r-th in popularity comes with a frequency of 1 / r^0.99. Popular numbers are
    spread over the range, the same for every seed.
    """
    numbers = list(range(count))
    random.Random(0).shuffle(numbers)
    weights = itertools.accumulate(1 / rank**EXPONENT for rank in range(1, count + 1))
    return random.Random(seed).choices(numbers, cum_weights=list(weights), k=length)


def reads(server: Server, bucket: str, numbers: Sequence[int]) -> list[Request]:
    """GETs in that order, signed now."""
    signed = {number: server.signer.request("GET", path(bucket, number)) for number in set(numbers)}
    return [signed[number] for number in numbers]


def path(bucket: str, number: int) -> str:
    return f"/{bucket}/zipf/{number:06}"


def fill(server: Server, bucket: str, count: int, body: bytes) -> None:
    requests: Iterator[Request] = (
        server.signer.request("PUT", path(bucket, number), body=body) for number in range(count)
    )
    run(server.port, requests, 32, None)


def hit_ratio(server: Server, bucket: str, numbers: Sequence[int]) -> float | None:
    """Of the first cache, while a trace runs for the second time; None when the daemon does not count hits."""
    requests = reads(server, bucket, numbers)
    run(server.port, iter(requests), 32, None)
    before = _hits_and_misses(server)
    run(server.port, iter(requests), 32, None)
    after = _hits_and_misses(server)
    if before is None or after is None or after == before:
        return None
    hits, misses = (then - now for then, now in zip(after, before, strict=True))
    return hits / (hits + misses)


def _hits_and_misses(server: Server) -> tuple[float, float] | None:
    with urllib.request.urlopen(server.metrics, timeout=10) as response:
        text = response.read().decode()
    found = [
        re.search(rf'^couchestord_cache_{name}_total{{tier="l1"}} (\S+)', text, re.M) for name in ("hits", "misses")
    ]
    hits, misses = found
    return (float(hits[1]), float(misses[1])) if hits and misses else None
