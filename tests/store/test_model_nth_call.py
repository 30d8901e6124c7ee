"""Every call to a disk made to fail, the n-th for n = 1, 2, ... until one passes in which none failed.

A start, operations, a step of every job, an end: at the n-th call of one disk an error comes. No client and no job
hears of it. What was acknowledged is there after a power cut, with as many disks away as may be lost, that one counted.
"""

import gc
import itertools
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from model import ModelBroken
from model_run import JOBS, ModelRun
from simdisk import SimDisk
from simstore import run_seeded

from couchestord.errors import DiskError, DiskFailed, DiskFull

WRITES = ("write_at", "preallocate", "sync", "sync_dir", "rename", "unlink")
OPERATIONS_COUNT = 5
SEEDS = (5, 6)
"""Of different geometries. Every kind of call is made in each."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`verbs`: the calls that are counted, all if empty. `stays`: those behind the n-th fail too.

    `kind`: of an error made for each call. One that is raised again and again keeps alive all that it went through.
    """

    kind: type[DiskError]
    verbs: tuple[str, ...] = ()
    short: bool = False
    stays: bool = False


FAULTS = {
    "EIO": Fault(DiskFailed),
    "ENOSPC": Fault(DiskFull, tuple(verb for verb in WRITES if verb != "unlink")),
    "EROFS": Fault(DiskFailed, WRITES, stays=True),
    "short": Fault(DiskFailed, ("write_at",), short=True),
}


class Sweep(ModelRun):
    """A run in which one call fails, or none when there are fewer. `struck` tells which."""

    def __init__(self, fault: str, count: int, seed: int, folder: Path) -> None:
        super().__init__(seed, folder, lives=0, bursts=0)
        self.name = f"{fault} at call {count}, seed {seed}"
        self.seed = seed
        self.fault = FAULTS[fault]
        self.count = count
        self.struck = ""

    async def main(self) -> None:
        """The disk that fails was away before, so that it is compared, and what it missed is made anew on it."""
        await self.machine.create()
        async with self.running():
            await self.prepare()
            await self.work()
        self.machine.away = {0}
        async with self.running():
            await self.work()
        self.machine.away = set()
        with self.failing(self.machine.disks[0]):
            async with self.running():
                for name in (*JOBS, *JOBS):
                    await self.work()
                    await self.step(name)
                self.machine.cut([])
        self.machine.away = set(self.rng.sample(range(1, len(self.machine.disks)), self.m - 1))
        if self.count % 2:
            self.machine.away.add(0)
        async with self.running():
            await self.work()
        await self.end()

    async def work(self) -> None:
        for _ in range(OPERATIONS_COUNT):
            await self.operate()

    @contextmanager
    def failing(self, disk: SimDisk) -> Iterator[None]:
        """Calls are counted from here on."""
        whole, seen = disk._call, 0

        async def call(verb: str, *arguments: Any) -> Any:
            nonlocal seen
            if not self.fault.verbs or verb in self.fault.verbs:
                seen += 1
                if seen == self.count or (self.fault.stays and seen > self.count):
                    disk.fail_at(1, self.fault.kind(self.name), short=self.fault.short)
                    self.struck = self.struck or verb
            return await whole(verb, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(disk, "_call", call)
            yield


def fail_the_nth(fault: str, count: int, seed: int, folder: Path) -> str:
    """Which call failed; empty when there are fewer than that."""
    sweep = Sweep(fault, count, seed, folder)
    run_to_end(sweep)
    shutil.rmtree(folder)
    return sweep.struck


def run_to_end(sweep: Sweep) -> None:
    sweep.machine.folder.mkdir()
    try:
        run_seeded(sweep.seed, sweep.main)
    except Exception as error:
        done = "\n".join(sweep.log)
        raise ModelBroken(f"{sweep.name}, a {sweep.struck}: {error!r}\n{done}") from error
    finally:
        sweep.shadow.close()


@pytest.mark.parametrize(("fault", "count"), [("EIO", 3), ("EIO", 51), ("ENOSPC", 40), ("EROFS", 20), ("short", 30)])
def test_the_nth_call_fails(fault: str, count: int, tmp_path: Path) -> None:
    assert fail_the_nth(fault, count, SEEDS[0], tmp_path / "run")


def test_nothing_of_a_run_stays_in_memory(tmp_path: Path) -> None:
    """A process makes thousands of runs. A call that failed must not keep its store, nor all that led there."""
    sweep = Sweep("EIO", 3, SEEDS[0], tmp_path / "run")
    run_to_end(sweep)
    assert sweep.struck
    store, disk = weakref.ref(sweep.store), weakref.ref(sweep.machine.disks[0])
    del sweep
    gc.collect()
    assert (store(), disk()) == (None, None)


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_nth_call_fails(fault: str, seed: int, tmp_path: Path) -> None:
    for count in itertools.count(1):
        if not fail_the_nth(fault, count, seed, tmp_path / "run"):
            break
    assert count > 20, "hardly any call was counted"
