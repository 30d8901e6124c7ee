"""A process that writes a file past the kernel's cache: for each line of its input so many MiB more, and then it says
so. At the end of its input it closes the file.
"""

import mmap
import os
import sys

MIB = 1 << 20


def mebibyte(number: int) -> bytes:
    """What the file has there."""
    return number.to_bytes(8, "big") * (MIB // 8)


def main(path: str) -> None:
    file, data, count = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT), mmap.mmap(-1, MIB), 0
    for line in sys.stdin:
        for _ in range(int(line)):
            data[:] = mebibyte(count)
            assert os.write(file, data) == MIB
            count += 1
        print("written", flush=True)
    os.close(file)


if __name__ == "__main__":
    main(sys.argv[1])
