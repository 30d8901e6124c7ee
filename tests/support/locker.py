"""A process that locks the file in its folder as it is told, and says what came of it.

Lines: `flock sh|ex|un` and `range sh|ex|un FIRST LENGTH`, both `refused` when another has a lock that is in the way;
`wait FIRST LENGTH`, for an exclusive one, until it is had; `holder FIRST LENGTH`, the process that is in the way, or 0.
"""

import fcntl
import os
import struct
import sys
from pathlib import Path

KINDS = {"sh": fcntl.LOCK_SH | fcntl.LOCK_NB, "ex": fcntl.LOCK_EX | fcntl.LOCK_NB, "un": fcntl.LOCK_UN}
FLOCK_LAYOUT = "hhqqi4x"
"""struct flock of 64-bit Linux: kind, whence, first, length, process."""


def main(path: Path) -> None:
    number = os.open(path, os.O_RDWR | os.O_CREAT)
    for line in sys.stdin:
        try:
            print(carry_out(number, *line.split()), flush=True)
        except BlockingIOError:
            print("refused", flush=True)


def carry_out(number: int, what: str, *arguments: str) -> str:
    match what:
        case "flock":
            fcntl.flock(number, KINDS[arguments[0]])
        case "range":
            fcntl.lockf(number, KINDS[arguments[0]], int(arguments[2]), int(arguments[1]))
        case "wait":
            fcntl.lockf(number, fcntl.LOCK_EX, int(arguments[1]), int(arguments[0]))
        case "holder":
            first, length = map(int, arguments)
            asked = struct.pack(FLOCK_LAYOUT, fcntl.F_WRLCK, os.SEEK_SET, first, length, 0)
            kind, _, _, _, process = struct.unpack(FLOCK_LAYOUT, fcntl.fcntl(number, fcntl.F_GETLK, asked))
            return "0" if kind == fcntl.F_UNLCK else str(process)
    return "done"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
