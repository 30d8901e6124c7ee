"""A process that writes over a file here and there: `overwriter.py FILE SIZE SEED`.

For each line `WAY BYTES` of its input it writes so much in all, syncs it, and says the digest of what the file holds.
"""

import os
import random
import sys
from typing import Final

from workload import digest_of

WAYS: Final = {"pages": (4096, 256), "unaligned": (60_000, 16), "mixed": (0, 5), "long": (256 << 10, 4)}
"""Bytes of a write, 0 for all kinds of lengths, and how many of them go with each fsync."""
_LENGTHS: Final = (100, 4096, 4096, 20_000, 100_000, 700_000)
_FIRST_BYTES: Final = 1 << 20


class Overwriter:
    """Writes over an open file, and knows what it holds."""

    def __init__(self, number: int, size: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._number = number
        self.held = bytearray(size)
        for offset in range(0, size, _FIRST_BYTES):
            self._write(offset, min(_FIRST_BYTES, size - offset))
        os.fsync(number)

    def _write(self, offset: int, length: int) -> None:
        data = self._rng.randbytes(length)
        assert os.pwrite(self._number, data, offset) == length
        self.held[offset : offset + length] = data

    def overwrite(self, way: str, size_bytes: int) -> None:
        """So much in all; synced."""
        fixed, writes_count = WAYS[way]
        done = turn = 0
        while done < size_bytes:
            length = fixed or self._rng.choice(_LENGTHS)
            unit = length if way == "pages" else 1
            self._write(self._rng.randrange((len(self.held) - length) // unit) * unit, length)
            done, turn = done + length, turn + 1
            if turn % writes_count == 0:
                os.fsync(self._number)
        os.fsync(self._number)


def main() -> None:
    path, size, seed = sys.argv[1:]
    number = os.open(path, os.O_RDWR | os.O_CREAT)
    writer = Overwriter(number, int(size), int(seed))
    for line in sys.stdin:
        way, size_bytes = line.split()
        writer.overwrite(way, int(size_bytes))
        print(digest_of(bytes(writer.held)).hex(), flush=True)
    os.close(number)


if __name__ == "__main__":
    main()
