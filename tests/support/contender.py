"""A process that creates, reads and unlinks files of a few names in a folder that others change at the same time.

At the end of its input it says how many calls it made, how long the longest took, and which errors there were.
"""

import errno
import json
import random
import select
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path


def main(folder: Path, seed: str, names_count: int) -> None:
    rng, done, errors, slowest = random.Random(seed), Counter[str](), Counter[str](), (0.0, "")

    def create(path: Path) -> None:
        with path.open("xb", buffering=0) as file:
            file.write(seed.encode() * rng.randrange(100))

    def create_or_cut(path: Path) -> None:
        with path.open("wb", buffering=0) as file:
            file.write(seed.encode() * rng.randrange(100))

    def write(path: Path) -> None:
        with path.open("r+b", buffering=0) as file:
            file.write(seed.encode() * rng.randrange(100))

    def read(path: Path) -> None:
        path.read_bytes()

    def rename(path: Path) -> None:
        path.rename(folder / str(rng.randrange(names_count)))

    calls: list[Callable[[Path], object]] = [create, create_or_cut, write, read, rename, Path.unlink, Path.unlink]
    while not select.select([sys.stdin], [], [], 0)[0]:
        call, path = rng.choice(calls), folder / str(rng.randrange(names_count))
        began_s = time.monotonic()
        try:
            call(path)
        except OSError as error:
            errors[f"{call.__name__}: {errno.errorcode[error.errno or 0]}"] += 1
        slowest = max(slowest, (time.monotonic() - began_s, call.__name__))
        done[call.__name__] += 1
    print(json.dumps({"done": done, "errors": errors, "slowest": slowest}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
