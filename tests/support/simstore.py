"""A machine for tests: simulated disks, a catalog file, and a store on them that is started, killed and cut off.

Everything runs in one thread under a clock that jumps, so that one seed gives one run. Work that the store would hand
to a thread is done in place.
"""

import random
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trio.testing
from simdisk import SimDisk

from couchestord.io.disks import load_disks
from couchestord.io.journalfile import JournalOptions
from couchestord.io.newdisk import create_store
from couchestord.store.core import Core, run_core
from couchestord.store.door import ObjectStore
from couchestord.store.options import StoreOptions

INLINE_BYTES_MAX = 3 << 10
Result = TypeVar("Result")


async def _in_place(function: Callable[..., Result], *args: Any, **_: Any) -> Result:
    await trio.lowlevel.checkpoint()
    result = function(*args)
    await trio.lowlevel.cancel_shielded_checkpoint()
    return result


class _Turns(random.Random):
    """Whose turn it is, as the seed says. Every trio in this process draws from it, so there may be one only."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._owner = threading.get_ident()
        self.is_shared = False

    def random(self) -> float:
        self.is_shared |= threading.get_ident() != self._owner
        return super().random()

    def getrandbits(self, bits: int, /) -> int:
        self.is_shared |= threading.get_ident() != self._owner
        return super().getrandbits(bits)


@contextmanager
def _one_thread(seed: int) -> Iterator[None]:
    """Tasks take turns as the seed says; no threads; bodies and parts are small."""
    turns = _Turns(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
        patch.setattr(trio._core._run, "_r", turns)
        patch.setattr(trio.to_thread, "run_sync", _in_place)
        patch.setattr("couchestord.store.intake.INLINE_BYTES_MAX", INLINE_BYTES_MAX)
        patch.setattr("couchestord.store.decide.uploads.PART_BYTES_MIN", 1)
        yield
    assert not turns.is_shared, "trio runs in another thread too: one seed is not one run"


def run_seeded(seed: int, main: Callable[[], Awaitable[Result]]) -> Result:
    """Run `main` under trio: the same turns of tasks and the same clock for the same seed.

    Raises AssertionError when another thread ran trio meanwhile, as a server that a fixture left running does.
    """

    async def begin() -> Result:
        return await main()

    with _one_thread(seed):
        return trio.run(begin, clock=trio.testing.MockClock(autojump_threshold=0))


class SeededClock:
    """Wall time that moves by a microsecond a look, and bytes drawn from a seed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._ns = 1_700_000_000_000_000_000

    def now_ns(self) -> int:
        self._ns += 1000
        return self._ns

    def random_bytes(self, count: int) -> bytes:
        return self._rng.randbytes(count)


def small_options(k: int, m: int, disks_count: int, *, preallocate_bytes: int = 0) -> StoreOptions:
    """Sizes so small that files roll, segments are sealed and the journal is trimmed within a few operations."""
    return StoreOptions(
        k=k,
        m=m,
        disks_count=disks_count,
        stripe_bytes=k * (8 << 10),
        segment_bytes=k * (40 << 10),
        engine="zfec",
        reserve_bytes=0,
        journal=JournalOptions(
            size_bytes=512 << 10,
            file_bytes=12 << 10,
            preallocate_bytes=preallocate_bytes,
            replication_factor=m + 1,
            spare_below_bytes=1 << 60,
        ),
        rebuild_grace_s=0.0,
        background_bytes_per_s=1 << 40,
        snapshot_bytes_min=64 << 10,
        services=False,
    )


class SimMachine:
    """Disks and a catalog between the runs of a store. `disks` is what lies there now, `away` who does not take part.

    After `cut` the run that is under way goes on against disks that are gone, and `disks` is what the next run finds.
    """

    def __init__(self, folder: Path, options: StoreOptions, rng: random.Random) -> None:
        self.options = options
        self.rng = rng
        self.clock = SeededClock(rng)
        self.disks = [SimDisk(f"sim-{index}", rng) for index in range(options.disks_count)]
        # drawn apart: what happens to the store is the same without it
        self._apart = random.Random(f"second tier {rng.getstate()}")
        self.second_tier = SimDisk("second tier", self._apart)
        """Of the caches, if the options say so. What it keeps when the run is cut has nothing to do with the others."""
        self.away: set[int] = set()
        self.is_cut = False
        self.folder = folder
        self._life = 0
        self._copies: list[Path] = []

    @property
    def catalog_path(self) -> Path:
        return self.folder / f"life-{self._life}" / "catalog.sqlite"

    async def create(self) -> None:
        """Superblocks of a new store."""
        ids = [self.rng.randbytes(16) for _ in self.disks]
        await create_store(
            self.disks,
            store_id=self.rng.randbytes(16),
            disk_ids=ids,
            k=self.options.k,
            m=self.options.m,
            created_ns=self.clock.now_ns(),
            stripe_bytes=self.options.stripe_bytes,
        )
        self._next_life({})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[Core, ObjectStore]]:
        """A store on the disks that are not away. A run that was not cut is closed, and its disks stay as they are."""
        self.is_cut = False
        disks = await load_disks([disk for index, disk in enumerate(self.disks) if index not in self.away])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("couchestord.store.core.open_folder", self._open_second_tier)
            async with run_core(disks, self.catalog_path, self.options, self.clock) as core:
                yield core, ObjectStore(core)
        if not self.is_cut:
            self.second_tier = self.second_tier.crash(keep_all=True)
            self._take_over({index: True for index in range(len(self.disks))})

    async def _open_second_tier(self, *_: Any) -> SimDisk:
        return self.second_tier

    def cut(self, keeps_all: Sequence[int]) -> None:
        """The run ends here: disks in `keeps_all` keep what was written, the others what was synced, the rest perhaps.

        Nothing that is answered after this has any meaning.
        """
        old = self.disks
        self._take_over({index: index in keeps_all for index in range(len(old))})
        cache = self.second_tier
        self.second_tier = cache.crash(keep_all=self._apart.random() < 0.5)
        for disk in (*old, cache):
            disk.gone = True
            disk.frozen = False
        self.is_cut = True

    def replace(self, index: int, *, keep_all: bool) -> SimDisk:
        """The disk as it is when it was unplugged and comes back; the one before is gone."""
        old = self.disks[index]
        self.disks[index] = old.crash(keep_all=keep_all)
        old.gone = True
        old.frozen = False
        return self.disks[index]

    # -- the catalog's files ---------------------------------------------------------------------------------------

    def copy_catalog(self) -> None:
        """Keep a copy, to be put back later."""
        folder = self.folder / f"copy-{len(self._copies)}"
        folder.mkdir()
        for suffix, data in self._read_catalog().items():
            Path(f"{folder / self.catalog_path.name}{suffix}").write_bytes(data)
        self._copies.append(folder / self.catalog_path.name)

    def harm_catalog(self, how: str) -> None:
        """Between runs: `delete`, `older`, `drop wal`, `cut wal`, `overwrite`."""
        path = self.catalog_path
        wal = Path(f"{path}-wal")
        if how == "delete":
            shutil.rmtree(path.parent)
            path.parent.mkdir()
        elif how == "older" and self._copies:
            shutil.rmtree(path.parent)
            shutil.copytree(self.rng.choice(self._copies).parent, path.parent)
        elif how == "drop wal":
            wal.unlink(missing_ok=True)
        elif how == "cut wal" and wal.exists():
            data = wal.read_bytes()
            wal.write_bytes(data[: self.rng.randrange(len(data) + 1)])
        elif how == "overwrite" and path.exists():
            data = path.read_bytes()
            at = self.rng.randrange(0, max(1, len(data) // 4096)) * 4096
            path.write_bytes(data[:at] + self.rng.randbytes(4096) + data[at + 4096 :])

    def _read_catalog(self) -> dict[str, bytes]:
        name = self.catalog_path.name
        paths = self.catalog_path.parent.glob(f"{name}*")
        # the -shm is made anew
        return {path.name[len(name) :]: path.read_bytes() for path in paths if not path.name.endswith("-shm")}

    def _take_over(self, keeps_all: dict[int, bool]) -> None:
        self.disks = [disk.crash(keep_all=keeps_all[index]) for index, disk in enumerate(self.disks)]
        self._next_life(self._read_catalog())

    def _next_life(self, catalog: dict[str, bytes]) -> None:
        # the run before may still have its files open: each has a folder of its own
        self._life += 1
        self.catalog_path.parent.mkdir()
        for suffix, data in catalog.items():
            Path(f"{self.catalog_path}{suffix}").write_bytes(data)
