"""The goals and what a run measured of them, as Markdown for docs/performance.md: `python -m bench.goals FILE`.

FILE is what `--figures FILE` of the benchmarks wrote; `python -m bench` prints this table at its end.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.cells import (
    DURABLE,
    GET_32,
    GET_LARGE,
    GET_RANGE,
    HEAD_32,
    MD5,
    NGINX,
    OURS,
    PUT_32,
    PUT_LARGE,
    SENDFILE,
)
from bench.figures import Measured, circumstances
from bench.file_mounts import JUICEFS, JUICEFS_SYNCED
from bench.keys import FEW, MANY, MOST

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure, or one over another, and the most or the least that it shall be."""

    text: str
    name: str
    limit: float
    over: str = ""
    is_least: bool = False
    scale: float = 1.0
    """What a figure is divided by when it is shown."""
    unit: str = ""

    def row(self, measured: Measured) -> str:
        """Its line of the table. `of the goal` is 1 or less when it is held."""
        names = [name for name in (self.name, self.over) if name]
        for name in names:
            if name not in measured.values:
                return f"| {self.text} | | | not measured: {measured.skipped.get(name, 'not part of this run')} |"
        values = [measured.values[name] for name in names]
        figure = values[0] / values[1] if self.over else values[0]
        share = self.limit / figure if self.is_least else figure / self.limit
        shown = f"{_number(figure / self.scale)}{self.unit}"
        if self.over:
            shown += f" ({_number(values[0])} : {_number(values[1])})"
        return f"| {self.text} | {shown} | {share:.2f} | {'held' if share <= 1 else 'missed'} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cpu(operation: str, subject: str) -> str:
    return f"cpu us/{operation}/{subject}"


def rate(operation: str, subject: str) -> str:
    return f"per second/{operation}/{subject}"


def less_than_seaweedfs(text: str, operation: str) -> Goal:
    return Goal(
        f"{text}, at least 8 x less than SeaweedFS", cpu(operation, DURABLE), 8, cpu(operation, OURS), is_least=True
    )


def second_worker(text: str, figure: str) -> Goal:
    return Goal(text, f"{figure}/workers/2", 1.7, f"{figure}/workers/1", is_least=True)


def flat(few: int, many: int) -> Goal:
    return Goal(
        f"LIST 1000 of {many:,} keys over {few:,}, flat: at most 1.25", f"list us/{many}", 1.25, f"list us/{few}"
    )


def ahead(peer: str, what: str) -> Goal:
    return Goal(
        f"files, {what}: ahead of {peer}, by the row where it is least", f"files {what}/{peer}", 1, is_least=True
    )


GOALS: Final = (
    Goal("signed GET 4 KiB, 32 clients, at most 2 x nginx, unsigned", cpu(GET_32, OURS), 2, cpu(GET_32, NGINX)),
    less_than_seaweedfs("the same", GET_32),
    Goal("HEAD, 32 clients, at most 2 x nginx", cpu(HEAD_32, OURS), 2, cpu(HEAD_32, NGINX)),
    less_than_seaweedfs("the same", HEAD_32),
    less_than_seaweedfs("durable PUT 4 KiB, 32 clients (SeaweedFS with fsync)", PUT_32),
    Goal("GET 64 MiB warm, at most 1.2 x sendfile, CPU", cpu(GET_LARGE, OURS), 1.2, cpu(GET_LARGE, SENDFILE)),
    Goal("the same, rate of sendfile over ours", rate(GET_LARGE, SENDFILE), 1.2, rate(GET_LARGE, OURS)),
    Goal("PUT 64 MiB with 4+2, at most 2 x MD5", cpu(PUT_LARGE, OURS), 2, cpu(PUT_LARGE, MD5)),
    less_than_seaweedfs("4 KiB range of 64 MiB", GET_RANGE),
    flat(FEW, MANY),
    flat(FEW, MOST),
    Goal("L1 get, under 1 us", "l1 get us", 1, unit=" us"),
    Goal("L1 put, under 5 us", "l1 put us", 5, unit=" us"),
    Goal("L2 get, resident, under 10 us", "l2 resident us", 10, unit=" us"),
    Goal("L2 get, cold, under 100 us beside the device", "l2 cold us", 100, unit=" us"),
    Goal("first read of an object after a cold start, under 10 ms", "first read us", 10_000, scale=1000, unit=" ms"),
    Goal("hit ratio of L1 on a repeated trace, over 80 %", "hit ratio", 0.8, is_least=True, scale=0.01, unit=" %"),
    second_worker("rate of 2 workers over 1, at least 1.7", "per second"),
    second_worker("the same by CPU time, each with a core to itself", "per core second"),
    Goal("resident, idle, under 128 MiB", "idle bytes", 128 * MIB, scale=MIB, unit=" MiB"),
    Goal("the same with a million objects", f"ready bytes/{MANY}", 128 * MIB, scale=MIB, unit=" MiB"),
    Goal("ready at a million objects, after a stop, under 1 s", f"start s/stopped/{MANY}", 1, unit=" s"),
    Goal("the same after kill -9", f"start s/killed/{MANY}", 1, unit=" s"),
    Goal("syncs per PUT at 32 clients, under 0.5", f"syncs per PUT/{OURS}", 0.5),
    Goal("catalog at a million objects, at most 400 bytes each", f"catalog bytes/{MANY}", 400),
    Goal("100,000 objects of 4 KiB, `du`, at most 1.7 of their bytes", "disk bytes per byte", 1.7),
    Goal("resident, 8 clients PUT 1 GiB, under 300 MiB", "peak bytes/PUT", 300 * MIB, scale=MIB, unit=" MiB"),
    Goal("resident, 8 clients GET 1 GiB, under 300 MiB", "peak bytes/GET", 300 * MIB, scale=MIB, unit=" MiB"),
    *(ahead(peer, what) for peer in (JUICEFS, JUICEFS_SYNCED) for what in ("rate", "CPU")),
    Goal("files, warm reads: rate at least 0.9 of JuiceFS", f"files rate/{JUICEFS}/warm", 0.9, is_least=True),
    Goal(
        f"rename of a directory of {MANY:,} keys over one of a thousand, flat: at most 1.25",
        "rename ms/many",
        1.25,
        "rename ms/few",
    ),
)


RATES: Final = (
    ("L1 get", "l1 get us", 2_000_000),
    ("L1 put", "l1 put us", 500_000),
    ("L2 get, resident", "l2 resident us", 500_000),
    ("L3, first read of an object, S3 and all", "first read cpu us", 10_000),
)
"""What the requirements ask for a second, of what takes so much CPU time."""


def rates(measured: Measured) -> str:
    """Markdown: what one process, and one on each core of this machine, could do a second."""
    cores_count = len(os.sched_getaffinity(0))
    rows = []
    for text, name, asked in RATES:
        each = 1e6 / measured.values[name] if name in measured.values else None
        shown = f"{each:,.0f} | {each * cores_count:,.0f}" if each else "not measured | "
        rows.append(f"| {text} | {shown} | {asked:,} |")
    head = f"| a second, by CPU time | a process | {cores_count} processes, {cores_count} cores | asked |"
    return "\n".join([head, "|---|--:|--:|--:|", *rows])


def table(measured: Measured) -> str:
    """Markdown."""
    rows = [goal.row(measured) for goal in GOALS]
    return "\n".join(["| goal | figure | of the goal | |", "|---|--:|--:|---|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.goals", description="Goals, and what was measured of them.")
    parser.add_argument("file", type=Path, help="what --figures FILE wrote")
    measured = Measured.load(parser.parse_args().file)
    print(f"{circumstances()}\n\n{table(measured)}\n\n{rates(measured)}")


if __name__ == "__main__":
    main()
