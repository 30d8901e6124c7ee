"""A store at random, lost at random moments: the node made anew has what was there at some moment, byte for byte."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio
from memory_backend import MemoryBackend
from publish_rig import QUICK
from small_store import SMALL, STRIPE_BYTES, HandClock, body_of, core_of, faults_of, make_store, read

from couchestord.cache import CacheConfig
from couchestord.errors import DataLost
from couchestord.io.mutations import LOST
from couchestord.remote.options import UploadOptions
from couchestord.store.door import ObjectStore
from couchestord.store.options import L3Options, StoreOptions, Watermarks
from couchestord.store.remake import remake_store

Bodies = dict[bytes, bytes]
LENGTHS = (0, 1, 3000, 20_000, STRIPE_BYTES, 3 * STRIPE_BYTES + 7)
KEYS = [b"dir/%d" % number for number in range(6)] + [b"one", b"two"]


@dataclass(slots=True)
class World:
    """A store, its bucket, and what it held after which record; `lost` are buckets as nodes that went left them."""

    random: random.Random
    path: Path
    backend: MemoryBackend
    options: StoreOptions
    bodies: Bodies
    after: dict[int, Bodies]
    lost: list[dict[str, bytes]]
    packed_count: int = 0
    """Blobs that died of it."""

    def lose(self, _call: str, _key: str) -> None:
        """The node may go at any call to the bucket, before it takes effect or once it has."""
        if self.random.random() < 0.01:
            self.lost.append(dict(self.backend.objects))


async def act(world: World, store: ObjectStore, turn: int) -> None:
    """A client does something, or a job a step of its work."""
    core = core_of(store)
    assert core.jobs.l3 is not None
    key = world.random.choice(KEYS)
    services = list(core.jobs.l3.services())
    jobs: list[Callable[[], object]] = [service.work for service in services]
    jobs += [service.work for service in services if service.name in ("upload", "pack-bucket")]
    jobs += [core.jobs.compactor.work, core.destage_all, core.jobs.snapshotter.take]
    draw = world.random.random()
    if draw < 0.3:
        body = body_of(world.random.choice(LENGTHS), turn)
        await store.put("box", key, body)
        world.bodies = world.bodies | {key: body}
    elif draw < 0.4:
        await store.delete("box", key)
        world.bodies = {other: body for other, body in world.bodies.items() if other != key}
    elif draw < 0.45 and world.bodies.keys() - {key}:
        source = world.random.choice(sorted(world.bodies.keys() - {key}))
        await store.copy("box", key, "box", source)
        world.bodies = world.bodies | {key: world.bodies[source]}
    else:
        for row in core.catalog.reading.segments_open()[: world.random.randrange(2)]:
            await core.pool.retire(row.id)
        await world.random.choice(jobs)()  # type: ignore[misc]
    world.after[core.catalog.committed_sequence] = world.bodies


def held_after(world: World, sequence: int) -> Bodies:
    """What the store held after that record: what a client does is one record, others change nothing of it."""
    return world.after[max(known for known in world.after if known <= sequence)]


async def check(world: World, path: Path, objects: dict[str, bytes]) -> tuple[int, int]:
    """(objects that are there, objects that are lost) in a node made anew from such a bucket."""
    backend = MemoryBackend(100)
    backend.objects = objects
    made = await remake_store(path, SMALL, backend, HandClock(world.random.randrange(1 << 30)))
    assert made.missing_blobs == 0
    expected = held_after(world, made.sequence)
    counts = [0, 0]
    options = replace(world.options, l3=replace(l3_of(world), open_backend=lambda _clock: backend))
    async with ObjectStore.open(path, options, clock=HandClock(world.random.randrange(1 << 30))) as store:
        page = await store.list("box")
        assert {entry.key for entry in page.entries} == set(expected)
        lost = {name.key for name in made.lost_names}
        for key, body in expected.items():
            if key in lost:
                with pytest.raises(DataLost):
                    await read(store, key)
                await store.delete("box", key)
            else:
                assert await read(store, key) == body
            counts[key in lost] += 1
        rows = core_of(store).catalog.reading
        assert not rows.extents_in_segment(LOST, -1, 1), "what is lost was deleted"
    assert faults_of(path) == []
    return counts[0], counts[1]


def l3_of(world: World) -> L3Options:
    assert world.options.l3 is not None
    return world.options.l3


async def play(seed: int, path: Path, turns: int) -> tuple[int, int, int]:
    backend = MemoryBackend(100)
    rng = random.Random(seed)
    upload = UploadOptions(blob_bytes=150_000, linger_s=0.0, retry_s=0.0)
    mode = "tiered" if seed % 2 else "cache"
    l3 = L3Options(lambda _clock: backend, mode, upload, Watermarks(0, 0), publish=QUICK)  # type: ignore[arg-type]
    options = replace(SMALL, l3=l3, cache=CacheConfig(0))
    world = World(rng, path / "old", backend, options, {}, {}, [])
    await make_store(world.path, SMALL)
    turn = 0
    while turn < turns:
        async with ObjectStore.open(world.path, options, clock=HandClock(rng.randrange(1 << 30))) as store:
            world.after[core_of(store).catalog.committed_sequence] = world.bodies
            backend.before = backend.after = world.lose
            for _ in range(rng.randrange(20, 80)):
                await act(world, store, turn)
                turn += 1
                await trio.lowlevel.checkpoint()
            found = core_of(store).jobs.l3
            world.packed_count += found.status()["packed_blobs"] if found is not None else 0
            backend.before = backend.after = lambda _call, _key: None
    there = lost = 0
    published = [objects for objects in world.lost if any(key.startswith("roots/") for key in objects)]
    for number, objects in enumerate([*rng.sample(published, min(2, len(published))), dict(backend.objects)]):
        counts = await check(world, path / f"new {number}", objects)
        there, lost = there + counts[0], lost + counts[1]
    return there, lost, world.packed_count


async def test_what_is_made_anew_is_what_was_there(tmp_path: Path) -> None:
    counts = [await play(seed, tmp_path / f"{seed}", 150) for seed in range(4)]
    assert sum(there for there, _, _ in counts) > 10
    assert sum(lost for _, lost, _ in counts) > 3
    assert sum(packed for _, _, packed in counts) > 2


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4, 64))
async def test_what_is_made_anew_is_what_was_there_for_long(seed: int, tmp_path: Path) -> None:
    await play(seed, tmp_path, 600)
