"""A process that has a file mapped, shared and private. It reads expressions of Python, and says what they give."""

import mmap
import os
import sys
from pathlib import Path


def main(path: Path) -> None:
    with path.open("r+b") as file:
        number = file.fileno()
        places = {"number": number, "os": os, "put": put}
        with (
            mmap.mmap(number, 0) as places["shared"],
            mmap.mmap(number, 0, access=mmap.ACCESS_COPY) as places["private"],
        ):
            for line in sys.stdin:
                print(repr(eval(line, places)), flush=True)


def put(mapped: mmap.mmap, offset: int, data: bytes) -> None:
    mapped[offset : offset + len(data)] = data


if __name__ == "__main__":
    main(Path(sys.argv[1]))
