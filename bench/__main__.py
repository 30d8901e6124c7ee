"""All figures of docs/performance.md: `python -m bench [--quick] [--large] [NAME ...]`, which is `make bench ARGS=...`.

Each benchmark is a program of its own, run one after the other: what one leaves in memory does not meet the next. At
the end comes the table of goals, of what this run measured.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench import goals
from bench.figures import Measured, circumstances


@dataclass(frozen=True, slots=True)
class Program:
    """A module of this package and what it measures. `quick` are its arguments for a run of seconds."""

    name: str
    measures: str
    quick: tuple[str, ...] = ("--quick",)
    has_figures: bool = False
    """Whether it takes --figures FILE."""


PROGRAMS = (
    Program("s3", "CPU per S3 operation beside SeaweedFS and nginx, syncs per PUT", has_figures=True),
    Program("files", "CPU and rate of file operations beside JuiceFS, rclone and a bare file system", has_figures=True),
    Program("workers", "a second worker", has_figures=True),
    Program("keys", "a million objects: catalog, start, LIST", has_figures=True),
    Program("cache", "the cache in memory: time per operation, hits beside LRU", has_figures=True),
    Program("cache_l2", "the cache on a fast device: time per operation, resident and cold", has_figures=True),
    Program("space", "bytes on disk per object, memory", ("--quick", "--only", "memory"), has_figures=True),
    Program("stripes", "a 64 MiB object through the stripe store"),
    Program("sending", "ways of sending 64 MiB, verified and not"),
    Program("codec", "the erasure coding engines"),
    Program("disk", "a call to a disk beside the bare system call", ()),
    Program("key_tree", "the tree of keys beside a flat table", ("--keys", "10000")),
)


def main() -> int:
    listing = "\n".join(f"  {program.name:10} {program.measures}" for program in PROGRAMS)
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="The figures of docs/performance.md.",
        epilog=f"benchmarks:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="only these (default: all)")
    parser.add_argument("--quick", action="store_true", help="a short, noisy run of each")
    parser.add_argument("--large", action="store_true", help="with ten million keys: half an hour more")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - {program.name for program in PROGRAMS})
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    failed = []
    begun = circumstances()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures"
        file.touch()
        for program in PROGRAMS:
            if options.names and program.name not in options.names:
                continue
            print(f"\n== bench.{program.name}: {program.measures}\n", flush=True)
            begun_s = time.monotonic()
            line = [sys.executable, "-m", f"bench.{program.name}", *(program.quick if options.quick else ())]
            line += ["--figures", str(file)] if program.has_figures else []
            line += ["--large"] if program.name == "keys" and options.large else []
            if subprocess.run(line, check=False).returncode:
                failed.append(program.name)
            print(f"\n{program.name} took {time.monotonic() - begun_s:.0f} s")
        measured = Measured.load(file)
        print(f"\n== goals\n\nBegun {begun}.\nOver {circumstances()}.\n\n{goals.table(measured)}\n")
        print(goals.rates(measured))
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
