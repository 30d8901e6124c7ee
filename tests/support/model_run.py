"""One random run of a store against the model: operations side by side, faults, crashes, restarts. One seed, one run.

Never more than m disks of a store are impaired at a time (gone, stale, failing, full, rotten); whoever was impaired
counts until everything was made good. So whatever was acknowledged must be there, byte for byte, at any time.
"""

import random
import stat
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio
from model import Model, ModelBroken, OpenUpload, Place, State, Version, top
from modes import mode
from shadow import Shadow, check_nothing_left, check_redundancy, scrub
from simstore import INLINE_BYTES_MAX, SimMachine, run_seeded, small_options
from small_store import compared

from couchestord.cache import CACHES_OFF, CacheConfig
from couchestord.errors import (
    BucketNotEmpty,
    DiskFailed,
    Error,
    JournalFull,
    NoSpace,
    NoSuchKey,
    NoSuchUpload,
    NoSuchVersion,
    PreconditionFailed,
)
from couchestord.io import filerequests as fr
from couchestord.io.catalog.read import BucketRow, CatalogReader
from couchestord.io.keys import split_key
from couchestord.model import ByteRange, Conditions, Policy
from couchestord.service import Progress, Service
from couchestord.store.core import Core
from couchestord.store.decide.context import find_live
from couchestord.store.door import ObjectStore
from couchestord.store.values import version_id

GEOMETRIES = ((4, 2, 6), (4, 2, 6), (2, 2, 5), (2, 1, 4))
MADE = b"made/"
"""A directory that is made as a mount does it: an object without bytes, until there is another one."""
KEYS = (b"a", b"a/", b"a//b", b"a/b", b"a/b/c", b"b/1", b"b/2", b"b-", b"dir/x/y/z", b"\xc3\xa9/\xc3\xa9", MADE)
CACHES = (CACHES_OFF, CacheConfig(l1_bytes=60_000), CacheConfig())
"""None, one that holds little, and one that holds all that a run writes."""
SECOND_TIER = CacheConfig(l1_bytes=20_000, l2_path=Path("simulated"), l2_bytes=8 << 20)
FAULTS = ("gone", "eio", "short", "full", "frozen", "rot", "rot")
JOBS = ("destage", "compact", "rebuild", "rejournal", "snapshot", "trim", "checkpoint", "housekeep")
STEPS_TO_IDLE_MAX = 3000


def run_model(
    seed: int,
    folder: Path,
    *,
    lives: int = 5,
    bursts: int = 7,
    races: bool = False,
    rots: bool = False,
    caches: CacheConfig | None = None,
) -> list[str]:
    """What was done. Raises ModelBroken, with the seed and the same, when the store breaks a promise.

    `races`: most operations are two creators of one key, and the power goes when one is refused before the other knows.
    `rots`: every fault of a disk is rot. `caches`: None: as the mode says (`modes`), or else the seed.
    """
    run = ModelRun(seed, folder, lives, bursts, caches)
    run.races_weight, run.cuts_races = (40, True) if races else (2, False)
    run.faults = ("rot",) if rots else FAULTS
    try:
        run_seeded(seed, run.main)
    except Exception as error:
        done = "\n".join(run.log)
        raise ModelBroken(f"seed {seed}: {type(error).__name__}: {error}\n{done}") from error
    finally:
        run.shadow.close()
    run.log.append(f"hits of caches: {dict(run.hits)}")
    return run.log


def _caches_of(seed: int) -> CacheConfig:
    forced = {"": None, "on": CacheConfig(), "off": CACHES_OFF, "l2": SECOND_TIER}[mode().caches]
    # drawn apart: what a seed does is the same with any caches, as far as they change nothing
    return forced or random.Random(f"caches {seed}").choice(CACHES)


class ModelRun:
    def __init__(self, seed: int, folder: Path, lives: int, bursts: int, caches: CacheConfig | None = None) -> None:
        self.rng = random.Random(seed)
        k, m, disks_count = self.rng.choice(GEOMETRIES)
        options = small_options(k, m, disks_count, preallocate_bytes=self.rng.choice((0, 4096)))
        options = replace(options, cache=caches or _caches_of(seed))
        spare = disks_count - k - m
        geometries = [Policy(k=k - 1, m=m + 1), Policy(k=1, m=m), *([Policy(k=k + 1, m=m)] if spare else [])]
        self.second = self.rng.choice(geometries)
        """No policy makes fewer lost disks good than the default one."""
        self.machine = SimMachine(folder, options, self.rng)
        self.model = Model()
        self.shadow = Shadow(self.machine)
        self.log: list[str] = [f"{k}+{m} on {disks_count} disks"]
        self.hits: Counter[str] = Counter()
        """Of each tier of the caches."""
        self.m, self.disks_count = m, disks_count
        self.lives = lives
        self.bursts = bursts
        self.impaired: set[int] = set()
        self.rotten: set[int] = set()
        self.made_count = 0
        self.races_weight, self.cuts_races = 2, False
        self.faults: tuple[str, ...] = FAULTS
        self.last_replicas: list[int] = []
        self.core: Core
        self.store: ObjectStore

    def note(self, text: str) -> None:
        self.log.append(f"{trio.current_time():8.2f} {text}")

    # -- lives -----------------------------------------------------------------------------------------------------

    async def main(self) -> None:
        await self.machine.create()
        for life in range(self.lives):
            async with self.running():
                if isinstance(self.core.started.read_only, NoSpace):
                    self.make_room()
                    continue
                if life == 0:
                    await self.prepare()
                for _ in range(self.rng.randint(1, self.bursts)):
                    if self.machine.is_cut:
                        break
                    await self.burst()
                if not self.machine.is_cut and self.rng.random() < 0.35:
                    await self.make_good()
                if not self.machine.is_cut and self.rng.random() < 0.5:
                    self.cut()
            self.choose_away()
            self.harm_catalog()
        await self.end()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """A run of the store, from a start that is compared with the model to its end."""
        self.note(f"start without {sorted(self.machine.away)}")
        with self.shadow.watching():
            async with self.machine.running() as (self.core, self.store):
                await self.shadow.compare(self.core)
                await self.look(restarted=True)
                yield
                self.hits += Counter({tier.name: tier.hits_count for tier in self.core.cache.stats()})
                if not self.machine.is_cut:
                    await self.shadow.compare(self.core)
        self.note("the run ended")

    async def prepare(self) -> None:
        second = replace(self.second, name="second", stripe_bytes=self.second.k * (8 << 10))
        self.note(f"second policy {second.k}+{second.m}")
        await self.store.policies.add(second)
        for name in ("plain", "other", "versioned"):
            await self.store.create_bucket(name, policy="second" if name == "other" else "default")
            self.model.simple["bucket", name] = [""]
        await self.store.set_versioning("versioned", "Enabled")
        self.model.simple["bucket", "versioned"] = ["Enabled"]

    async def end(self) -> None:
        """Faults stop. Everything is made good; then any m disks may go, with the catalog."""
        self.machine.away.clear()
        async with self.running():
            if isinstance(self.core.started.read_only, NoSpace):
                self.make_room()
        async with self.running():
            await self.make_good()
            lost = self.rng.sample(range(len(self.machine.disks)), self.m)
            self.note(f"made good; lose {lost}")
            for index in lost:
                self.machine.disks[index].gone = True
            await self.core.cache.evict()  # what is read is what the others have
            await self.look(restarted=False)
            self.machine.cut(range(len(self.machine.disks)))
        self.machine.away = set(self.rng.sample(range(len(self.machine.disks)), self.m))
        self.machine.harm_catalog("delete")
        self.note(f"start without {self.machine.away} and without a catalog")
        async with self.running():
            pass
        self.machine.away.clear()
        async with self.running():
            await self.make_good()
            await self.delete_all()
            await self.step_to_idle()
            await check_nothing_left(self.core)

    async def delete_all(self) -> None:
        """Every version of every object, every upload, and the buckets with them."""
        self.note("delete everything")
        reading = self.core.catalog.reading
        for bucket in await self.store.list_buckets():
            row = reading.bucket(bucket.name)
            assert row is not None
            for key in KEYS:
                while (version := _any_version(reading, row, key)) is not None:
                    await self.store.delete(bucket.name, key, version_id=version)
            await self.store.delete_bucket(bucket.name)

    def cut(self) -> None:
        count = len(self.machine.disks)
        how = self.rng.choice(("power", "power", "kill", "split"))
        keeps = list(range(count)) if how == "kill" else []
        if how == "split":
            # one disk keeps what the others lose, and is not there at the next start
            one = self.pick_impaired()
            if one is not None:
                keeps = [one]
                self.impaired.add(one)
                self.machine.away.add(one)
        self.last_replicas = self.find_replicas()
        self.note(f"cut: {how} {keeps}")
        self.machine.cut(keeps)

    def find_replicas(self) -> list[int]:
        """Disks that the last record lies on."""
        try:
            return self.core.journal.replicas(self.core.catalog.committed_sequence)[1]
        except Error:
            return []

    def pick_impaired(self, among: list[int] | None = None) -> int | None:
        """A disk that may be impaired now: one that is, or a further one while there are fewer than m."""
        if len(self.impaired) >= self.m:
            return self.rng.choice(sorted(self.impaired)) if self.impaired else None
        return self.rng.choice(among or range(len(self.machine.disks)))

    def choose_away(self) -> None:
        """Between runs: some of those that are away return, others go, best those with the newest records."""
        away = {index for index in self.machine.away if self.rng.random() < 0.5}
        if self.machine.is_cut and self.machine.away:
            away = set(self.machine.away)
        if self.rng.random() < 0.5:
            for _ in range(self.m):
                index = self.pick_impaired(self.last_replicas)
                if index is not None and len(self.impaired | {index}) <= self.m:
                    self.impaired.add(index)
                    away.add(index)
        self.note(f"away at the next start: {sorted(away)}; impaired {sorted(self.impaired)}")
        self.machine.away = away

    def harm_catalog(self) -> None:
        how = self.rng.choice(("", "", "", "delete", "older", "drop wal", "cut wal", "overwrite"))
        if how:
            self.note(f"catalog: {how}")
            self.machine.harm_catalog(how)

    # -- bursts ----------------------------------------------------------------------------------------------------

    async def burst(self) -> None:
        """Some operations and background steps side by side, perhaps a fault, perhaps the end of the run."""
        ends = self.rng.random() < 0.2
        if self.rng.random() < 0.4:
            await self.harm_disk()
        async with trio.open_nursery() as nursery:
            for _ in range(self.rng.randint(1, 6)):
                nursery.start_soon(self.operate)
            for _ in range(self.rng.randint(0, 2)):
                nursery.start_soon(self.step)
            if ends:
                nursery.start_soon(self.cut_after, self.rng.randint(0, 60))
        if not self.machine.is_cut:
            if self.rng.random() < 0.3:
                await self.look(restarted=False)
            if self.rng.random() < 0.15:
                self.machine.copy_catalog()
            if self.rng.random() < 0.3:
                await self.bring_back()

    async def cut_after(self, turns: int) -> None:
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        if not self.machine.is_cut:
            self.cut()

    async def operate(self) -> None:
        choice: Callable[[], Awaitable[None]] = self.rng.choices(
            (
                self.put,
                self.get,
                self.delete,
                self.copy,
                self.race,
                self.upload,
                self.account,
                self.bucket,
                self.policy,
                self.make_directory,
            ),
            (8, 4, 3, 2, self.races_weight, 3, 1, 1, 1, 1),
        )[0]
        await choice()

    async def step(self, name: str = "") -> None:
        """One step of a background job, of any if it is not said of which."""
        jobs = self.core.jobs
        name = name or self.rng.choice(("destage", *JOBS))
        self.note(f"step {name}")
        try:
            if name == "destage":
                jobs.destager.force()
                await jobs.destager.work()
            elif name == "snapshot":
                await jobs.snapshotter.take()
            elif name == "trim":
                await jobs.checkpointer.checkpoint()
                await jobs.snapshotter.work()
            elif name == "checkpoint":
                await jobs.checkpointer.checkpoint()
            else:
                services: dict[str, Service] = {
                    "compact": jobs.compactor,
                    "rebuild": jobs.rebuilder,
                    "rejournal": jobs.rejournaler,
                    "housekeep": jobs.housekeeper,
                }
                await services[name].work()
        except Error as error:
            if not self.machine.is_cut and not isinstance(error, JournalFull):
                raise ModelBroken(f"{name} failed: {type(error).__name__}: {error}") from error

    async def policy(self) -> None:
        """A bucket gets another policy, or a policy another form: new data only. Whether it happened, nobody minds."""
        name = self.rng.choice(("default", "second"))
        with suppress(Error):
            if self.rng.random() < 0.5:
                await self.store.policies.assign(self.rng.choice(("plain", "other")), name)
            else:
                stripe_bytes = self.store.policies.find(name).k * self.rng.choice((8 << 10, 10 << 10))
                await self.store.policies.change(name, stripe_bytes=stripe_bytes)
            self.note(f"policy {name}")

    # -- faults ----------------------------------------------------------------------------------------------------

    async def harm_disk(self) -> None:
        index = self.pick_impaired()
        if index is None or index in self.machine.away:
            return
        self.impaired.add(index)
        disk = self.machine.disks[index]
        how = self.rng.choice(self.faults)
        if how == "full" and self.disks_count - len(self.impaired) <= max(self.m, self.second.m):
            return  # a disk that is full may be one too many for a record, where one that is gone is not
        self.note(f"disk {index}: {how}")
        if how == "gone":
            disk.gone = True
        elif how in ("eio", "short"):
            for _ in range(self.rng.randint(1, 2)):
                disk.fail_at(self.rng.randint(1, 12), DiskFailed(f"{disk.name}: EIO"), short=how == "short")
        elif how == "full":
            disk.capacity_bytes = sum((await _sizes(disk)).values()) + self.rng.randint(0, 8192)
        elif how == "frozen":
            disk.frozen = True
        else:
            await self.rot(index)

    async def rot(self, index: int) -> None:
        self.rotten.add(index)
        disk = self.machine.disks[index]
        sizes = [(path, size) for path, size in sorted((await _sizes(disk)).items()) if path != "superblock" and size]
        for path, size in self.rng.sample(sizes, min(len(sizes), 3)):
            at = self.rng.randrange(size)
            self.note(f"  rot {path} at {at} of {size}")
            disk.rot(path, at, self.rng.randint(1, 255), min(size - at, self.rng.choice((1, 1, 600))))

    async def bring_back(self) -> None:
        """A disk that was given up is plugged in again, with what it had; room comes back."""
        for index in sorted(self.impaired):
            disk = self.machine.disks[index]
            disk.capacity_bytes = 1 << 40
            self.core.disks.room_again(index)
            disk.frozen = False
            if disk.failure is not None:
                self.core.disks.fail(index, disk.failure)
            if index not in self.core.disks.failures:
                disk.gone = False
                continue
            self.note(f"disk {index} returns")
            keep_all = self.rng.random() < 0.5
            self.core.disks.release_failed()
            await self.core.disks.join(index, self.machine.replace(index, keep_all=keep_all))
            self.machine.away.discard(index)
            self.core.jobs.monitor.welcome([index])
            await compared(self.core)

    def make_room(self) -> None:
        """So many disks are full, with no journal file to spare, that this start may not write. The next one may."""
        self.note("the disks have room")
        for disk in self.machine.disks:
            disk.capacity_bytes = 1 << 40

    async def make_good(self) -> None:
        """Faults stop, background jobs run until they are idle: full redundancy must be back by itself."""
        for disk in self.machine.disks:
            # what is still to fail, fails at a call that is never made: nor at the return of another disk
            disk._faults.clear()
        await self.bring_back()
        for index in sorted(self.rotten):
            await scrub(self.core, index)
        await self.step_to_idle()
        await check_redundancy(self.core)
        self.impaired.clear()
        self.rotten.clear()
        self.note("everything is made good")

    async def step_to_idle(self) -> None:
        jobs = self.core.jobs
        await self.core.pool.aclose()
        for _ in range(3):
            await jobs.monitor.work()  # sees that disks that were full have room
            await compared(self.core)
            jobs.destager.force()
            for service in (jobs.destager, jobs.rebuilder, jobs.rejournaler, jobs.compactor, jobs.housekeeper):
                await _finish(service)
            await jobs.snapshotter.take()
            await jobs.snapshotter.trim()
            await self.core.pool.aclose()
            await _finish(jobs.compactor)  # the snapshot before is dead
            # what could not be rebuilt is tried again after a while
            await trio.sleep(120)

    # -- operations on objects -------------------------------------------------------------------------------------

    def body(self, limit: int = 0) -> bytes:
        """Bytes that were never used before."""
        self.made_count += 1
        small = self.rng.randint(0, 600)
        size = self.rng.choice(
            (small, small, INLINE_BYTES_MAX + self.rng.randint(-2, 2), self.rng.randint(4000, 50000))
        )
        return b"#%d:" % self.made_count + self.rng.randbytes(min(size, limit) if limit else size)

    def pick(self, *, versioned: bool = True) -> Place | None:
        """A place that no change is under way about."""
        buckets = [name for name in self.model.names("bucket") if ("bucket", name) not in self.model.busy]
        if not versioned:
            buckets = [name for name in buckets if not self.model.value("bucket", name)]
        place = (self.rng.choice(buckets), self.rng.choice(KEYS))
        return None if place in self.model.busy else place

    async def alter(
        self, place: Place, doing: str, call: Callable[[], Awaitable[Any]], effect: Callable[[State, Any], State]
    ) -> Any:
        """A change to an object: known when it is acknowledged, both values possible when it is not."""
        before = self.model.states(place)
        after = [effect(state, None) for state in before]
        self.model.busy.add(place)
        self.model.offer(place, after)
        self.note(f"{doing} {place}")
        try:
            result = await call()
        except Error as error:
            self.note(f"  {doing} {place}: {type(error).__name__}: {error}")
            if self.machine.is_cut:
                self.model.set_states(place, [*before, *after])
            elif not isinstance(error, JournalFull):
                raise ModelBroken(f"{doing} {place} failed: {type(error).__name__}: {error}") from error
            return None
        finally:
            self.model.busy.discard(place)
        if self.machine.is_cut:
            self.model.set_states(place, [*before, *after])
            return None
        self.note(f"  {doing} {place}: done")
        self.model.set_states(place, [effect(state, result) for state in before])
        return result

    def written(self, place: Place, body: bytes) -> Callable[[State, Any], State]:
        keep = self.model.value("bucket", place[0]) == "Enabled"

        def effect(state: State, info: Any) -> State:
            return (Version(info.version_id if info else None, body), *(state if keep else ()))

        return effect

    async def put(self) -> None:
        place = self.pick()
        if place is None:
            return
        body = self.body()
        streamed = self.rng.random() < 0.5
        given = _stream(body, self.rng.randint(1, 9000)) if streamed else body
        await self.alter(
            place,
            f"put {body[:7]!r} {len(body)}",
            lambda: self.store.put(*place, given, size=len(body) if self.rng.random() < 0.5 else None),
            self.written(place, body),
        )

    async def make_directory(self) -> None:
        buckets = [name for name in self.model.names("bucket") if not self.model.value("bucket", name)]
        place = (self.rng.choice(buckets), MADE)
        if {place, ("bucket", place[0])} & self.model.busy or self.model.states(place) != [()]:
            return
        asked = fr.MakeNode(self.store.files.root(place[0]), MADE[:-1], stat.S_IFDIR | 0o755, 0, 0)
        await self.alter(
            place, "make directory", lambda: self.store.files.change(asked), lambda *_: (Version(None, b""),)
        )

    async def delete(self) -> None:
        place = self.pick()
        if place is None:
            return
        keep = self.model.value("bucket", place[0]) == "Enabled"
        states = self.model.states(place)
        known = [version.id for version in states[0] if version.id is not None] if len(states) == 1 else []
        if keep and known and self.rng.random() < 0.5:
            chosen = self.rng.choice(known)
            await self.alter(
                place,
                f"delete version {chosen}",
                lambda: self.store.delete(*place, version_id=chosen),
                lambda state, _: tuple(version for version in state if version.id != chosen),
            )
            return

        def effect(state: State, result: Any) -> State:
            return (Version(result.version_id if result else None, None), *state) if keep else ()

        await self.alter(place, "delete", lambda: self.store.delete(*place), effect)

    async def copy(self) -> None:
        source, target = self.pick(), self.pick()
        if source is None or target is None or source == target or not self.model.is_certain(source):
            return
        body = top(self.model.states(source)[0])
        if body is None:
            return
        self.model.busy.add(source)
        try:
            call = lambda: self.store.copy(*target, *source)  # noqa: E731
            await self.alter(target, f"copy {source} to", call, self.written(target, body))
        finally:
            self.model.busy.discard(source)

    async def race(self) -> None:
        """Two create the same key if it is not there: one must win, and the refusal of the other is a promise too."""
        place = self.pick(versioned=False)
        if place is None or self.model.states(place) != [()]:
            return
        bodies = [self.body(200), self.body(200)]
        self.model.busy.add(place)
        self.model.offer(place, [(Version(None, body),) for body in bodies])
        outcomes: list[str] = ["", ""]

        async def one(number: int) -> None:
            outcome = "done"
            try:
                await self.store.put(*place, bodies[number], conditions=Conditions(if_none_match=("*",)))
            except PreconditionFailed:
                outcome = "refused"
            except Error as error:
                outcome = type(error).__name__
            if not self.machine.is_cut:
                outcomes[number] = outcome
                if self.cuts_races and outcome == "refused" and not outcomes[1 - number]:
                    self.cut()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, 0)
            nursery.start_soon(one, 1)
        self.model.busy.discard(place)
        self.note(f"race {place} {bodies[0][:7]!r} {bodies[1][:7]!r}: {outcomes}")
        made: list[State] = [(Version(None, body),) for body in bodies]
        if "done" in outcomes:
            if outcomes.count("done") == 2:
                raise ModelBroken(f"both created {place}")
            self.model.set_states(place, [made[outcomes.index("done")]])
        elif "refused" in outcomes:
            if outcomes.count("refused") == 2:
                raise ModelBroken(f"both were refused, and {place} was not there")
            self.model.set_states(place, [made[1 - outcomes.index("refused")]])
        elif self.machine.is_cut:
            self.model.set_states(place, [(), *made])
        elif outcomes != ["JournalFull", "JournalFull"]:
            raise ModelBroken(f"race {place}: {outcomes}")

    # -- uploads ---------------------------------------------------------------------------------------------------

    async def upload(self) -> None:
        free = [
            id_
            for id_, each in self.model.uploads.items()
            if not {id_, each.place} & self.model.busy and each.completing is None and not each.aborting
        ]
        if free and self.rng.random() < 0.75:
            id_ = self.rng.choice(free)
            self.model.busy.add(id_)
            try:
                await self.go_on(id_, self.model.uploads[id_])
            finally:
                self.model.busy.discard(id_)
            return
        place = self.pick(versioned=False)
        if place is not None and place[0] != "temporary":
            made = await self.simple_call(f"begin upload {place}", lambda: self.store.create_upload(*place))
            if made is not None:
                self.model.uploads[made.upload_id] = OpenUpload(place)

    async def simple_call(self, doing: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """None when it was not acknowledged."""
        self.note(doing)
        try:
            result = await call()
        except Error as error:
            if not self.machine.is_cut and not isinstance(error, JournalFull):
                raise ModelBroken(f"{doing} failed: {type(error).__name__}: {error}") from error
            return None
        if self.machine.is_cut:
            return None
        self.note(f"  {doing}: done")
        return result

    async def go_on(self, id_: str, it: OpenUpload) -> None:
        number = self.rng.randint(1, 3)
        certain = bool(it.parts) and all(len(each) == 1 for each in it.parts.values())
        if not certain or self.rng.random() < 0.6:
            body = self.body()
            before = it.parts.get(number, [("", b"")])
            it.parts[number] = [*before, ("?", body)]
            info = await self.simple_call(
                f"part {number} {body[:7]!r}", lambda: self.store.put_part(*it.place, id_, number, body)
            )
            if info is not None:
                it.parts[number] = [(info.etag, body)]
            elif not self.machine.is_cut:
                it.parts[number] = before
                if before == [("", b"")]:
                    del it.parts[number]
        elif self.rng.random() < 0.2:
            it.aborting = True
            await self.simple_call("abort upload", lambda: self.store.abort_upload(*it.place, id_))
            if not self.machine.is_cut:
                del self.model.uploads[id_]  # refused for want of room: nobody looks at it any more
        elif it.place[0] in self.model.names("bucket"):
            it.completing = b"".join(it.parts[each][0][1] for each in sorted(it.parts))
            done = await self.alter(
                it.place, "complete", lambda: self.complete(id_, it), self.written(it.place, it.completing)
            )
            if done is not None:
                del self.model.uploads[id_]
            elif not self.machine.is_cut:
                it.completing = None

    async def complete(self, id_: str, it: OpenUpload) -> Any:
        parts = [(number, it.parts[number][0][0]) for number in sorted(it.parts)]
        return await self.store.complete_upload(*it.place, id_, parts)

    # -- buckets, users, keys --------------------------------------------------------------------------------------

    async def alter_simple(self, kind: str, name: str, value: str | None, call: Callable[[], Awaitable[Any]]) -> None:
        fact = (kind, name)
        before = self.model.simple.get(fact, [None])
        self.model.busy.add(fact)
        try:
            done = await self.simple_call(f"{kind} {name} -> {value}", lambda: _acknowledged(call()))
        finally:
            self.model.busy.discard(fact)
        if done is not None:
            self.model.simple[fact] = [value]
        elif self.machine.is_cut:
            self.model.simple[fact] = [*before, value]

    async def account(self) -> None:
        name = self.rng.choice(("ann", "bob", "eve"))
        if {("user", name), ("key", name)} & self.model.busy:
            return
        if self.model.value("user", name) is None:
            await self.alter_simple("user", name, "", lambda: self.store.create_user(name))
        elif self.model.value("key", name) is None and len(self.model.simple.get(("key", name), "1")) == 1:
            self.made_count += 1
            secret = f"secret-{self.made_count}"
            id_ = f"AK{name.upper()}0000"
            make = lambda: self.store.create_key(name, access_key=id_, secret_key=secret)  # noqa: E731
            await self.alter_simple("key", name, secret, make)
        elif self.model.value("key", name) is not None:
            await self.alter_simple("key", name, None, lambda: self.store.delete_key(f"AK{name.upper()}0000"))

    async def bucket(self) -> None:
        """Buckets `temporary` come and go; one that holds something must not."""
        name = "temporary"
        busy = ("bucket", name) in self.model.busy or any(
            isinstance(each, tuple) and each[0] == name for each in self.model.busy
        )
        if busy or any(each.place[0] == name for each in self.model.uploads.values()):
            return
        values = self.model.simple.get(("bucket", name), [None])
        places = list(self.model.places(name))
        if values == [None]:
            await self.alter_simple("bucket", name, "", lambda: self.store.create_bucket(name))
        elif len(values) == 1 and all(self.model.states(place) == [()] for place in places):
            await self.alter_simple("bucket", name, None, lambda: self.store.delete_bucket(name))
        elif len(values) == 1 and any(() not in self.model.states(place) for place in places):
            self.model.busy.add(("bucket", name))
            try:
                await self.store.delete_bucket(name)
                raise ModelBroken("a bucket that is not empty was deleted")
            except BucketNotEmpty:
                pass
            except Error as error:
                if not self.machine.is_cut and not isinstance(error, JournalFull):
                    raise ModelBroken(f"delete of a full bucket: {type(error).__name__}: {error}") from error
            finally:
                self.model.busy.discard(("bucket", name))

    # -- looking ---------------------------------------------------------------------------------------------------

    async def read(self, place: Place, version_id: str | None = None) -> tuple[bytes | None, str | None]:
        """(body, version) of an object, None when there is none."""
        try:
            reader = await self.store.get(*place, version_id=version_id)
        except NoSuchKey:
            return None, None
        async with reader:
            return await reader.read(), reader.info.version_id

    async def get(self) -> None:
        """A read beside writers: one whole version, no older than what was acknowledged when it began."""
        buckets = [name for name in self.model.names("bucket") if name != "temporary"]
        place = (self.rng.choice(buckets), self.rng.choice(KEYS))
        allowed = {top(state) for state in self.model.states(place)}
        began = self.model.began(place)
        try:
            body, _ = await self.read(place)
        except Error as error:
            if not self.machine.is_cut:
                raise ModelBroken(f"get {place}: {type(error).__name__}: {error}") from error
            return
        if not self.machine.is_cut and body not in allowed | self.model.visible(place, began):
            raise ModelBroken(f"get {place} answered {body and body[:24]!r}, allowed {[a and a[:24] for a in allowed]}")

    async def look(self, *, restarted: bool) -> None:
        """Everything, when nothing is under way."""
        await self._look_at_simple()
        for place in list(self.model.objects):
            if self.model.value("bucket", place[0]) is None:
                if any(self.model.states(place)) and () not in self.model.states(place):
                    raise ModelBroken(f"{place} was in a bucket that is gone")
                del self.model.objects[place]
                continue
            body, version_id = await self.read(place)
            gone = {id_ for id_ in self.model.in_doubt(place) if restarted and not await self._has_version(place, id_)}
            self.model.settle(place, body, version_id, restarted=restarted, gone=gone)
            await self._look_at_versions(place)
            if body:
                await self._look_at_range(place, body)
        for id_, it in list(self.model.uploads.items()):
            await self._look_at_upload(id_, it)
        for bucket in self.model.names("bucket"):
            await self._look_at_lists(bucket)

    async def _look_at_versions(self, place: Place) -> None:
        if self.model.value("bucket", place[0]) != "Enabled" or not self.model.is_certain(place):
            return
        for version in self.model.states(place)[0]:
            if version.id is not None and version.body is not None:
                body, _ = await self.read(place, version.id)
                if body != version.body:
                    raise ModelBroken(f"{place} version {version.id} has other bytes")

    async def _has_version(self, place: Place, version_id: str) -> bool:
        try:
            await self.read(place, version_id)
        except NoSuchVersion:
            return False
        return True

    async def _look_at_range(self, place: Place, body: bytes) -> None:
        first = self.rng.randrange(len(body))
        last = self.rng.randrange(first, len(body) + 10)
        reader = await self.store.get(*place, byte_range=ByteRange(first, last))
        async with reader:
            if await reader.read() != body[first : last + 1]:
                raise ModelBroken(f"{place}: bytes {first}-{last} differ")

    async def _look_at_upload(self, id_: str, it: OpenUpload) -> None:
        if it.aborting:
            with suppress(NoSuchUpload):
                await self.store.abort_upload(*it.place, id_)
            del self.model.uploads[id_]
            return
        if it.completing is not None:
            # whether the first answer was lost or the first try was: the same answer, and the object is there
            await self.complete(id_, it)
            self.model.set_states(it.place, [(Version(None, it.completing),)])
            del self.model.uploads[id_]
            self.model.settle(it.place, *await self.read(it.place), restarted=True)
            return
        found = {part.number: part for part in (await self.store.list_parts(*it.place, id_))[0]}
        for number, choices in list(it.parts.items()):
            part = found.pop(number, None)
            fitting = [
                (part.etag if part else "", body)
                for etag, body in choices
                if (part is None and not etag)
                or (part is not None and (etag == part.etag or (etag == "?" and part.size_bytes == len(body))))
            ]
            if not fitting:
                raise ModelBroken(f"upload {id_}: part {number} is {part}, allowed {[e for e, _ in choices]}")
            it.parts[number] = fitting[:1]
            if part is None:
                del it.parts[number]
        if found:
            raise ModelBroken(f"upload {id_} has parts that nobody put: {found}")

    async def _look_at_lists(self, bucket: str) -> None:
        tops = {place[1]: top(self.model.states(place)[0]) for place in self.model.places(bucket)}
        keys = sorted(key for key, body in tops.items() if body is not None)
        if not all(self.model.is_certain(place) for place in self.model.places(bucket)):
            return
        for prefix, delimiter in ((b"", b""), (b"", b"/"), (b"a/", b"/"), (b"b", b"")):
            expected = _expected(keys, prefix, delimiter)
            entries: list[tuple[bytes, int]] = []
            prefixes: list[bytes] = []
            start: bytes | None = b""
            while start is not None:
                page = await self.store.list(
                    bucket, prefix=prefix, delimiter=delimiter, start_after=start, max_keys=self.rng.randint(1, 5)
                )
                entries += [(entry.key, entry.size_bytes) for entry in page.entries]
                prefixes += page.prefixes
                start = page.next_start
            sizes = [(key, len(tops[key] or b"")) for key in expected[0]]
            if (entries, prefixes) != (sizes, expected[1]):
                raise ModelBroken(
                    f"list {bucket} {prefix!r} {delimiter!r}: {entries} {prefixes}, want {sizes} {expected}"
                )

    async def _look_at_simple(self) -> None:
        found: dict[tuple[str, str], str] = {}
        for bucket in await self.store.list_buckets():
            found["bucket", bucket.name] = bucket.versioning
        for user in await self.store.list_users():
            found["user", user.name] = ""
        for key in await self.store.list_keys():
            found["key", key.user] = key.secret_key
        for fact, values in self.model.simple.items():
            value = found.pop(fact, None)
            if value not in values:
                raise ModelBroken(f"{fact} is {value!r}, allowed {values}")
            self.model.simple[fact] = [value]
        if found:
            raise ModelBroken(f"nobody made {found}")


async def _sizes(disk: Any) -> dict[str, int]:
    return {path: len(file.data) for path, file in disk._names.items()}


def _any_version(reading: CatalogReader, bucket: BucketRow, key: bytes) -> str | None:
    """The id of a version of a key, markers included; None when none is left."""
    folders, name = split_key(key)
    directory = reading.directory(bucket.root, folders)
    if directory is None:
        return None
    live = find_live(reading, directory, name)
    rows = [live] if live else reading.versions(directory, name)
    return version_id(rows[0], "Enabled") if rows else None


async def _finish(service: Service) -> None:
    for _ in range(STEPS_TO_IDLE_MAX):
        if await service.work() not in (Progress.BUSY, Progress.THROTTLED):
            return
    raise ModelBroken(f"{service.name} does not come to an end")


async def _acknowledged(call: Awaitable[Any]) -> bool:
    await call
    return True


async def _stream(body: bytes, step: int) -> Any:
    for at in range(0, len(body), step):
        await trio.lowlevel.checkpoint()
        yield body[at : at + step]


def _expected(keys: list[bytes], prefix: bytes, delimiter: bytes) -> tuple[list[bytes], list[bytes]]:
    entries: list[bytes] = []
    prefixes: list[bytes] = []
    for key in keys:
        if not key.startswith(prefix):
            continue
        at = key.find(delimiter, len(prefix)) if delimiter else -1
        if at < 0:
            entries.append(key)
        elif key[: at + 1] not in prefixes:
            prefixes.append(key[: at + 1])
    return entries, prefixes
