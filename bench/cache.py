"""The caches in memory: `python -m bench.cache [--quick] [--figures FILE]`.

Time per operation is CPU time, the median of samples, of what holds 4 KiB values: beside a plain dict without a cap, an
LRU of the standard library, and the same behind a lock. Hit ratios are of the same traces for all policies, all entries
of one size, as a part of look-ups.

- zipf: as Zipf's law has it, exponent 0.99. repeated: the second run of one such trace.
- scan: every other look-up is for a key that never comes again. loop: all keys in turn, again and again.
- shift: what is popular changes altogether, ten times.
"""

import argparse
import random
import statistics
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, Protocol

import trio

from bench import figures as fg
from bench.zipf import trace
from couchestord.cache import CacheConfig, CacheManager
from couchestord.cache.sieve import ENTRY_BYTES, make_cache

Key = tuple[int, int]
VALUE: Final = bytes(4096)
SHARDS: Final = 1024
ENTRIES: Final = 1 << 15
"""128 MiB of such values."""


class Policy(Protocol):
    def get(self, key: Key) -> bytes | None: ...
    def put(self, key: Key, value: bytes) -> object: ...


class Lru:
    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._kept: OrderedDict[Key, bytes] = OrderedDict()

    def get(self, key: Key) -> bytes | None:
        value = self._kept.get(key)
        if value is not None:
            self._kept.move_to_end(key)
        return value

    def put(self, key: Key, value: bytes) -> None:
        self._kept[key] = value
        if len(self._kept) > self._entries_max:
            self._kept.popitem(last=False)


class LockedLru(Lru):
    def __init__(self, entries_max: int) -> None:
        super().__init__(entries_max)
        self._lock = threading.Lock()

    def get(self, key: Key) -> bytes | None:
        with self._lock:
            return super().get(key)

    def put(self, key: Key, value: bytes) -> None:
        with self._lock:
            super().put(key, value)


class Everything:
    """A dict without a cap: the least that any cache costs."""

    def __init__(self) -> None:
        self._kept: dict[Key, bytes] = {}
        self.get = self._kept.get

    def put(self, key: Key, value: bytes) -> None:
        self._kept[key] = value


def sieve(entries_max: int, shards_count: int) -> Policy:
    return make_cache(entries_max * (len(VALUE) + ENTRY_BYTES), shards_count)


def policies(entries_max: int) -> dict[str, Policy]:
    return {
        "LRU": Lru(entries_max),
        "LRU, lock": LockedLru(entries_max),
        "SIEVE": sieve(entries_max, 1),
        f"SIEVE, {SHARDS} shards": sieve(entries_max, SHARDS),
    }


def ns_each(action: Callable[[], object], count: int, samples: int) -> float:
    """CPU ns of one of the `count` operations that `action` is."""
    found = []
    for _ in range(samples):
        begin = time.process_time_ns()
        action()
        found.append((time.process_time_ns() - begin) / count)
    return statistics.median(found)


def measure_times(samples: int, figures: fg.Figures) -> None:
    print(f"| ns per operation, {ENTRIES:,} entries of 4 KiB | hit, one of 100 | hit, any | miss | put, one goes |")
    print("|---|--:|--:|--:|--:|")
    for name, policy in {"dict, no cap": Everything(), **policies(ENTRIES)}.items():
        for number in range(ENTRIES):
            policy.put((number, 0), VALUE)
        rng = random.Random(1)
        kept = [number for number in range(ENTRIES) if policy.get((number, 0)) is not None]
        few, most = rng.choices(kept[:100], k=20_000), rng.choices(kept, k=20_000)
        fresh = iter(range(ENTRIES, 1 << 60))

        def ask(numbers: Sequence[int], policy: Policy = policy) -> None:
            get = policy.get
            for number in numbers:
                get((number, 0))

        def fill(fresh: Iterable[int] = fresh, policy: Policy = policy) -> None:
            put = policy.put
            for number, _ in zip(fresh, range(20_000), strict=False):
                put((number, 0), VALUE)

        found = [
            ns_each(partial(ask, few), 20_000, samples),
            ns_each(partial(ask, most), 20_000, samples),
            ns_each(partial(ask, range(-20_000, 0)), 20_000, samples),
            ns_each(fill, 20_000, samples),
        ]
        print(f"| {name} | {' | '.join(f'{each:,.0f}' for each in found)} |")
        if name == "SIEVE":
            figures.add("l1 get us", found[1] / 1e3)
            figures.add("l1 put us", found[3] / 1e3)


class _Memory:
    """A source that has everything at hand."""

    async def load(self, first: int, length: int) -> bytes:
        return VALUE[:length]

    def hold(self) -> None: ...

    def release(self) -> None: ...


async def measure_manager(samples: int) -> None:
    """The face of the caches: what a reader calls."""
    manager = CacheManager(CacheConfig(l1_bytes=ENTRIES * (len(VALUE) + ENTRY_BYTES)))
    for number in range(ENTRIES):
        manager.offer(number, 0, VALUE)
    source, few = _Memory(), random.Random(2).choices(range(ENTRIES), k=5000)
    fresh = iter(range(ENTRIES, 1 << 60))

    def peek() -> None:
        for number in few:
            manager.peek(number, 0)

    def offer() -> None:
        for _ in few:
            manager.offer(next(fresh), 0, VALUE)

    async def read(numbers: Iterable[int]) -> float:
        begin = time.process_time_ns()
        for number in numbers:
            await manager.read(number, 4096, 0, 4096, source)
        return (time.process_time_ns() - begin) / len(few)

    hits = [await read(few) for _ in range(samples)]
    misses = [await read([next(fresh) for _ in few]) for _ in range(samples)]
    print("\n| CacheManager | ns |\n|---|--:|")
    for name, value in (
        ("peek, hit", ns_each(peek, len(few), samples)),
        ("offer, one goes", ns_each(offer, len(few), samples)),
        ("read, hit", statistics.median(hits)),
        ("read, miss, loaded from memory", statistics.median(misses)),
    ):
        print(f"| {name} | {value:,.0f} |")


def hit_ratio(policy: Policy, numbers: Iterable[int]) -> float:
    hits = count = 0
    for number in numbers:
        count += 1
        if policy.get((number, 0)) is None:
            policy.put((number, 0), VALUE)
        else:
            hits += 1
    return hits / count


def traces(keys: int, length: int) -> dict[str, list[int]]:
    """By name."""
    zipf = trace(keys, length, 1)
    part = length // 10
    return {
        "zipf": zipf,
        "zipf + scan": [key for at, number in enumerate(zipf[: length // 2]) for key in (number, keys + at)],
        "shift": [number + keys * turn for turn in range(10) for number in trace(keys, part, turn)],
        "loop": [at % (keys // 5) for at in range(length)],
    }


def measure_ratios(length: int) -> None:
    keys = 50_000
    names = ["LRU", "SIEVE", f"SIEVE, {SHARDS} shards"]
    print(f"\n| hits in 100, {keys:,} keys | room for | {' | '.join(names)} |\n|---|--:|{'--:|' * len(names)}")
    for percent in (1, 10, 25):
        entries_max = keys * percent // 100
        for name, numbers in traces(keys, length).items():
            row = [hit_ratio(policies(entries_max)[each], numbers) for each in names]
            print(f"| {name} | {percent} % | {' | '.join(f'{100 * each:.1f}' for each in row)} |")
        again = policies(entries_max)
        numbers = trace(keys, length, 1)
        row = [hit_ratio(again[each], numbers) and hit_ratio(again[each], numbers) for each in names]
        print(f"| repeated | {percent} % | {' | '.join(f'{100 * each:.1f}' for each in row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cache", description="The caches in memory.")
    parser.add_argument("--quick", action="store_true", help="a short, noisy run")
    fg.add_option(parser)
    options = parser.parse_args()
    samples = 5 if options.quick else 25
    measure_times(samples, options.figures)
    trio.run(measure_manager, samples)
    measure_ratios(50_000 if options.quick else 500_000)


if __name__ == "__main__":
    main()
