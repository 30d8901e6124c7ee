"""How daemons and stores run that tests start, but where a test says which way it needs: the switch for all of them.

    COUCHESTORD_TEST_WORKERS=2              daemons, and the server of tests/frontends/s3, have workers
    COUCHESTORD_TEST_CACHES=on, off or l2   a cache in memory, none, or little memory with a second tier below it
    COUCHESTORD_TEST_MOUNT=on               daemons keep all of their buckets mounted

Unset, these are what the test prefers: what is the default of the daemon, or no caches where reads are to be those of
the disks.
"""

import functools
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import pytest

from couchestord.cache import CACHES_OFF, CacheConfig

WORKERS: Final = "COUCHESTORD_S3__WORKERS"
CACHES: Final = "COUCHESTORD_CACHE__"
"""What the names of all settings of caches begin with."""
Caches = Literal["", "on", "off", "l2"]
_L1_BYTES: Final = 256 << 10
_L2_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Mode:
    workers: int
    caches: Caches
    """Empty: as the test prefers."""
    is_mounted: bool = False

    def settings(self, stated: Mapping[str, str], l2_path: Path) -> dict[str, str]:
        """A daemon's settings: what is stated, and where that names no workers or no caches, what this mode says."""
        found = dict(stated)
        if self.workers:
            found.setdefault(WORKERS, str(self.workers))
        if not any(name.startswith(CACHES) for name in stated):
            found.update(self._caches(l2_path))
        return found

    def _caches(self, l2_path: Path) -> dict[str, str]:
        if self.caches == "off":
            return {f"{CACHES}L1_SIZE": "0"}
        if self.caches == "l2":
            return {
                f"{CACHES}L1_SIZE": str(_L1_BYTES),
                f"{CACHES}L2_SIZE": str(_L2_BYTES),
                f"{CACHES}L2_PATH": str(l2_path),
                f"{CACHES}L2_SHARED_DEVICE": "true",
            }
        return {}

    def arguments(self, folder: Path) -> list[str]:
        """More of the command line of `couchestord up`. `folder`: where a mount may be."""
        if not self.is_mounted:
            return []
        with suppress(FileExistsError):
            folder.mkdir()
        return ["--mount", str(folder)]

    def config(self, l2_path: Path) -> CacheConfig:
        """Caches of a store without a daemon, which has one at a time."""
        if self.caches == "l2":
            return CacheConfig(_L1_BYTES, l2_path=l2_path, l2_bytes=_L2_BYTES, l2_shared_device=True)
        return CACHES_OFF if self.caches == "off" else CacheConfig()


def mode() -> Mode:
    """What the environment says. Raises ValueError for what is none of the above."""
    caches = os.environ.get("COUCHESTORD_TEST_CACHES", "")
    if caches not in get_args(Caches):
        raise ValueError(f"COUCHESTORD_TEST_CACHES={caches} is none of {get_args(Caches)}")
    is_mounted = bool(os.environ.get("COUCHESTORD_TEST_MOUNT"))
    return Mode(int(os.environ.get("COUCHESTORD_TEST_WORKERS") or 0), caches, is_mounted)  # type: ignore[arg-type]


unmounted: Final = pytest.mark.skipif(
    mode().is_mounted, reason="a mount is one of the processes whose caches are counted"
)


def l2_folder() -> Path:
    """Of the stores that tests make in this process, one at a time."""
    return Path(_made().name) / "l2"


@functools.cache
def _made() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="couchestord-l2-")
