"""A process that has many files of a folder open at once: every third it has written to, every fifth has no name any
more. It says when all are open; at the end of its input it closes them.
"""

import os
import sys
from pathlib import Path


def main(folder: Path, count: int) -> None:
    numbers = []
    for each in range(count):
        path = folder / f"{each}"
        number = os.open(path, os.O_RDWR)
        numbers.append(number)
        if each % 3 == 0:
            os.pwrite(number, b"written %d" % each, 10)
        if each % 5 == 0:
            path.unlink()
    print("open", flush=True)
    sys.stdin.read()
    for each, number in enumerate(numbers):
        expected = b"%010d" % each + (b"written %d" % each if each % 3 == 0 else b"")
        assert os.pread(number, 100, 0) == expected
        os.close(number)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
