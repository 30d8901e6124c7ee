"""How much memory the process may take, when it gives it back, and how often it is looked through."""

import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_MMAP_THRESHOLD_BYTES_MAX: Final = 32 << 20
"""Numbers of mallopt(3), and what it takes at most."""
CACHE_BYTES_MAX: Final = 128 << 20
"""What caches take in memory when nobody says how much."""
CACHE_PART: Final = 8
"""They take one part of so many at most, then."""
YOUNG_OBJECTS_MAX: Final = 5000
"""Python looks for cycles among new objects when there are so many. The requests of one commit are fewer, of which a
tenth of the CPU went into looking through them (700 by default).
"""


def settle() -> None:
    """What is here now stays: it is looked through once more, and then never again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX, 10, 10)


def keep_freed(bytes_max: int) -> None:
    """Memory that was freed stays, so much of it, for whoever asks next, until `give_back`: from the system each page
    costs a fault and a wipe, which are more than what is done with a byte that only passes through. With another C
    library than glibc nothing happens.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, bytes_max)
        mallopt(_MMAP_THRESHOLD, min(bytes_max, _MMAP_THRESHOLD_BYTES_MAX))


def give_back() -> None:
    """What was freed and kept goes back to the system; some milliseconds."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def cache_bytes(memory_bytes: int) -> int:
    """What caches take in memory when nobody says how much. Pure."""
    return min(CACHE_BYTES_MAX, memory_bytes // CACHE_PART)


def total_bytes(root: Path = Path("/")) -> int:
    """Memory of the machine, or as much of it as the control groups of this process leave to it."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        groups = (root / "proc/self/cgroup").read_text()
    except OSError:
        return found
    group = next((line[3:] for line in groups.splitlines() if line.startswith("0::")), "/").strip("/")
    folder = root / "sys/fs/cgroup"
    for path in (folder / group, *(folder / group).parents):
        try:
            limit = (path / "memory.max").read_text().strip()
        except OSError:
            limit = ""
        if limit.isdigit():
            found = min(found, int(limit))
        if path == folder:
            break
    return found
