"""Coding speed: `python -m bench.codec [--quick]`. Both engines, and memcpy in the same run as the physical limit.

MB/s counts data (k shards), not parity, over elapsed time. CPU time is the process's. Both are medians of samples.
`of memcpy` compares CPU times: 1 means that coding a stripe costs what one copy of its data costs, into memory that is
written again and again, measured in the same run.

- encode: `Codec.encode_into` kept buffers. `encode fresh`: `Codec.encode`, which allocates the parity shards.
- decode: two data shards are lost and come from the lowest k that are left.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from couchestord.ec import Buffer, Codec, Engine, IsalEngine, ZfecEngine, choose_engine

MIB = 1 << 20
GEOMETRIES = ((4, 2), (10, 4))
STRIPE_BYTES = (64 << 10, 1 << 20, 4 << 20)


@dataclass(frozen=True, slots=True)
class Figure:
    """Medians for one call that codes `data_bytes`."""

    data_bytes: int
    cpu_ns: float
    elapsed_ns: float

    @property
    def megabytes_per_second(self) -> float:
        return self.data_bytes / self.elapsed_ns * 1e3

    @property
    def cpu_us_per_mib(self) -> float:
        return self.cpu_ns / 1e3 / (self.data_bytes / MIB)


def measure(action: Callable[[], object], data_bytes: int, sample_ns_min: int, samples: int) -> Figure:
    """Runs `action` in samples of at least `sample_ns_min`, after one that does not count."""
    calls = 1
    while True:
        begin = time.perf_counter_ns()
        for _ in range(calls):
            action()
        if time.perf_counter_ns() - begin >= sample_ns_min:
            break
        calls *= 2
    cpu, elapsed = [], []
    for _ in range(samples):
        begin, begin_cpu = time.perf_counter_ns(), time.process_time_ns()
        for _ in range(calls):
            action()
        cpu.append((time.process_time_ns() - begin_cpu) / calls)
        elapsed.append((time.perf_counter_ns() - begin) / calls)
    return Figure(data_bytes, statistics.median(cpu), statistics.median(elapsed))


def memcpy_action(shards: list[bytes]) -> Callable[[], object]:
    pairs = [(memoryview(bytearray(len(shard))), shard) for shard in shards]

    def copy() -> None:
        for target, shard in pairs:
            target[:] = shard

    return copy


def actions(codec: Codec, data: list[bytes]) -> Iterator[tuple[str, Callable[[], object]]]:
    k, m = codec.k, codec.m
    parity = [bytearray(len(data[0])) for _ in range(m)]
    shards: list[Buffer] = [*data, *codec.encode(data)]
    present = {index: shard for index, shard in enumerate(shards) if index not in (0, 1)}
    if codec.reconstruct(present, (0, 1)) != {0: data[0], 1: data[1]}:
        raise SystemExit(f"{codec.engine.name} decodes {k}+{m} wrongly")
    yield "encode", lambda: codec.encode_into(data, parity)
    yield "encode fresh", lambda: codec.encode(data)
    yield "decode", lambda: codec.reconstruct(present, (0, 1))


def engines() -> list[Engine]:
    fast = choose_engine("auto")
    found: list[Engine] = [ZfecEngine()]
    if isinstance(fast, IsalEngine):
        found.append(fast)
    print(f"engine of choice: {fast.name} ({fast.note})")
    return found


def report(label: str, figure: Figure, limit: Figure) -> None:
    ratio = limit.cpu_ns / figure.cpu_ns
    print(f"{label:34} {figure.megabytes_per_second:9.0f} {ratio:10.3f} {figure.cpu_us_per_mib:12.1f}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.codec", description="Speed of the erasure coding engines.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, noisier")
    quick = parser.parse_args(arguments).quick
    sample_ns_min, samples = (3_000_000, 3) if quick else (20_000_000, 7)
    rng = random.Random(0)
    found = engines()
    print(f"{'':34} {'MB/s':>9} {'of memcpy':>10} {'CPU us/MiB':>12}")
    for k, m in GEOMETRIES:
        codecs = [Codec(k, m, engine) for engine in found]
        for stripe_bytes in STRIPE_BYTES:
            data = [rng.randbytes(stripe_bytes // k) for _ in range(k)]
            data_bytes = sum(map(len, data))
            size = f"{k}+{m} {stripe_bytes >> 10:5} KiB"
            limit = measure(memcpy_action(data), data_bytes, sample_ns_min, samples)
            report(f"{size} memcpy", limit, limit)
            for codec in codecs:
                for name, action in actions(codec, data):
                    figure = measure(action, data_bytes, sample_ns_min, samples)
                    report(f"{size} {codec.engine.name} {name}", figure, limit)


if __name__ == "__main__":
    main()
