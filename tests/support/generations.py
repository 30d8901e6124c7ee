"""A process that writes a file anew in place, again and again, and says the number of each state that is synced.

Each state is of one size, and all of it can be told from its number.
"""

import os
import sys
from pathlib import Path

SIZE_BYTES = 700_000
_PIECE_BYTES = 50_000


def state_of(number: int) -> bytes:
    return b"%09d\n" % number * (SIZE_BYTES // 10)


def main(path: Path) -> None:
    number = os.open(path, os.O_RDWR)
    for generation in range(1, 1 << 30):
        state = state_of(generation)
        # pieces in no order, so that a state that is cut short has holes
        for start in sorted(range(0, SIZE_BYTES, _PIECE_BYTES), key=lambda at: hash((at, generation))):
            os.pwrite(number, state[start : start + _PIECE_BYTES], start)
        os.fsync(number)
        print(generation, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
