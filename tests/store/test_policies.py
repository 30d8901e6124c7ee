"""Policies: what a bucket asks for is what its data gets, through destage, compaction and restarts."""

from dataclasses import replace
from pathlib import Path

import pytest
from small_store import SMALL, STRIPE_BYTES, body_of, core_of, faults_of, finish, make_store, new_store, read, segments

from couchestord.errors import InvalidArgument, NoSpace, NoSuchPolicy, PolicyAlreadyExists, PolicyChanged
from couchestord.io import requests as rq
from couchestord.io.catalog.catalog import dump
from couchestord.model import Policy
from couchestord.store.door import ObjectStore

SAFE = Policy(name="safe", k=2, m=4, stripe_bytes=STRIPE_BYTES)


async def with_safe_bucket(store: ObjectStore) -> Policy:
    safe = await store.policies.add(SAFE)
    await store.create_bucket("vault", policy="safe")
    return safe


def geometries(store: ObjectStore) -> set[tuple[int, int, int]]:
    """(policy, k, m) of the segments that hold live data."""
    return {(row.policy, row.k, row.m) for row in segments(store) if row.live_bytes}


async def test_data_lies_under_the_policy_of_its_bucket(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        safe = await with_safe_bucket(store)
        for bucket in ("box", "vault"):
            await store.put(bucket, b"long", body_of(5 * STRIPE_BYTES))
        assert geometries(store) == {(0, 4, 2), (safe.id, 2, 4)}
        for number in range(20):
            await store.put("vault" if number % 2 else "box", b"%d" % number, body_of(3000, number))
        upload = (await store.create_upload("vault", b"parts")).upload_id
        await store.put_part("vault", b"parts", upload, 1, b"a small part")
        await store.destage()
        assert not core_of(store).catalog.reading.extents_in_journal(0, 1)
        assert geometries(store) == {(0, 4, 2), (safe.id, 2, 4)}
        assert (await store.head_bucket("vault")).policy == "safe"
        for number in range(20):
            assert await read(store, b"%d" % number, "vault" if number % 2 else "box") == body_of(3000, number)
    assert faults_of(tmp_path) == []  # no extent lies under another policy than its content


async def test_compaction_and_copies_stay_under_the_policy(tmp_path: Path) -> None:
    async with new_store(tmp_path, segment_bytes=8 * STRIPE_BYTES) as store:
        safe = await with_safe_bucket(store)
        for number in range(12):
            await store.put("vault", b"%d" % number, body_of(3 * STRIPE_BYTES, number))
        await store.copy("box", b"copy", "vault", b"11")
        for number in range(12):
            await store.delete("vault", b"%d" % number)
        await core_of(store).pool.aclose()
        await finish(core_of(store).jobs.compactor)
        assert core_of(store).jobs.compactor.moved_extents_count
        assert geometries(store) == {(safe.id, 2, 4)}
        assert await read(store, b"copy") == body_of(3 * STRIPE_BYTES, 11)
    assert faults_of(tmp_path) == []


async def test_a_changed_policy_is_for_new_data(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await store.put("box", b"old", body_of(5 * STRIPE_BYTES))
        await store.policies.change("default", k=3, m=3)
        await store.put("box", b"new", body_of(5 * STRIPE_BYTES))
        assert geometries(store) == {(0, 4, 2), (0, 3, 3)}
        await store.policies.add(SAFE)
        await store.policies.assign("box", "safe")
        await store.put("box", b"newer", body_of(5 * STRIPE_BYTES))
        assert {row[1:] for row in geometries(store)} == {(4, 2), (3, 3), (2, 4)}
        for key in (b"old", b"new", b"newer"):
            assert await read(store, key) == body_of(5 * STRIPE_BYTES)


async def test_the_log_and_the_snapshot_outlive_what_the_strongest_policy_makes_good(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        core = core_of(store)
        await store.put("box", b"before", b"1")
        await core.jobs.snapshotter.take()
        assert len(core.journal.replicas(core.catalog.committed_sequence)[1]) == 3
        await store.policies.add(SAFE)
        # the record of the policy itself already lies on five disks
        assert len(core.journal.replicas(core.catalog.committed_sequence)[1]) == 5
        await finish(core.jobs.rejournaler)
        first = core.journal.first_sequence
        assert first is not None
        assert len(core.journal.replicas(first)[1]) == 5
        assert core.jobs.snapshotter.is_due()
        await core.jobs.snapshotter.work()
        root = core.disks.slot.snapshot
        assert root is not None
        row = core.catalog.reading.segment(root.segment)
        assert row is not None
        assert (row.k, row.m) == (2, 4)
        assert not core.jobs.snapshotter.is_due()
    for name in ("disk-0", "disk-1", "disk-3", "disk-5"):
        (tmp_path / name).rename(tmp_path / f"away-{name}")
    (tmp_path / "catalog.sqlite").unlink()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert core_of(store).disks.m == 4
        assert store.policies.find("safe").m == 4
        assert await read(store, b"before") == b"1"


async def test_a_start_takes_back_replicas_that_nothing_asks_for(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await store.policies.add(SAFE)
        await store.policies.change("safe", m=1)
        assert core_of(store).disks.m == 4
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert core_of(store).disks.m == 2


async def test_policies_survive_without_the_catalog(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await with_safe_bucket(store)
        await store.policies.change("default", min_healthy_shards=6)
        before = dump(core_of(store).catalog.path)
    (tmp_path / "catalog.sqlite").unlink()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        after = dump(core_of(store).catalog.path)
        assert after == {**before, "state": after["state"], "segment": after["segment"]}
        assert [policy.name for policy in store.policies.list()] == ["default", "safe"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"k": 5}, r"5\+4 needs 9 disks, there are 6"),
        ({"k": 0}, "cannot be coded"),
        ({"m": -1}, "cannot be coded"),
        ({"stripe_bytes": 4096}, "too short"),
        ({"stripe_bytes": 1 << 30}, "over the limit"),
        ({"min_healthy_shards": 1}, r"from k = 2 to k\+m = 6"),
        ({"disk_class": "ssd"}, "disks of class 'ssd', there are 0"),
        ({"name": "No Name"}, "a policy's name"),
    ],
)
async def test_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, object], why: str) -> None:
    async with new_store(tmp_path) as store:
        with pytest.raises(InvalidArgument, match=why):
            await store.policies.add(replace(SAFE, **changes))  # type: ignore[arg-type]
        assert len(store.policies.list()) == 1
        assert core_of(store).disks.m == 2


async def test_names_and_changes_are_compared(tmp_path: Path) -> None:
    await make_store(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        safe = await store.policies.add(SAFE)
        with pytest.raises(PolicyAlreadyExists):
            await store.policies.add(SAFE)
        await store.policies.change("safe", m=3)
        with pytest.raises(PolicyChanged):
            await core_of(store).submit(rq.PutPolicy(replace(safe, m=2), safe))
        for ask in (store.policies.change("none", m=1), store.policies.assign("box", "none")):
            with pytest.raises(NoSuchPolicy):
                await ask
        with pytest.raises(NoSuchPolicy):
            await store.create_bucket("other", policy="none")


@pytest.mark.parametrize(("disks_count", "per_disk", "survives"), [(3, 2, 1), (1, 6, 0), (5, 2, 1)])
async def test_several_shards_on_a_disk(tmp_path: Path, disks_count: int, per_disk: int, survives: int) -> None:
    with pytest.raises(InvalidArgument, match="needs 6 disks"):
        await ObjectStore.create(tmp_path, replace(SMALL, disks_count=disks_count))
    options = replace(SMALL, disks_count=disks_count, shards_per_disk=per_disk)
    async with new_store(tmp_path, disks_count=disks_count, shards_per_disk=per_disk) as store:
        await store.put("box", b"small", b"in the log")
        await store.put("box", b"long", body_of(5 * STRIPE_BYTES))
        (row,) = segments(store)
        assert max(map(row.disks.count, row.disks)) <= per_disk
        assert row.missing == 0
        replicas = core_of(store).journal.replicas(core_of(store).catalog.committed_sequence)[1]
        assert len(replicas) == len(set(replicas)) == min(3, disks_count)
        status = await store.status()
        assert status["policies"][0]["survives_disks"] == status["journal"]["survives_disks"] == survives
        assert [disk["loses_data_if_lost"] for disk in status["disks"]] == [survives == 0] * disks_count
    for index in range(survives):
        (tmp_path / f"disk-{index}").rename(tmp_path / f"away-{index}")
    async with ObjectStore.open(tmp_path, options) as store:
        assert await read(store, b"small") == b"in the log"
        assert await read(store, b"long") == body_of(5 * STRIPE_BYTES)


async def test_a_full_disk_costs_new_segments_a_shard_until_it_has_room(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        core = core_of(store)
        core.disks.set_tight(5, True)
        await store.put("box", b"long", body_of(5 * STRIPE_BYTES))
        (row,) = segments(store)
        assert (row.disks.count(-1), row.missing.bit_count()) == (1, 1)
        assert any("room for 5 of 6 shards" in reason for reason in store.health().reasons)
        await store.policies.change("default", min_healthy_shards=6)
        with pytest.raises(NoSpace):
            await store.put("box", b"more", body_of(5 * STRIPE_BYTES))
        assert store.health().state == "unhealthy"
        core.disks.set_tight(5, False)
        await core.pool.seal_unfit()
        await finish(core.jobs.rebuilder)
        assert [each.missing for each in segments(store)] == [0] * len(segments(store))
        assert store.health().state == "healthy"


CLASSES = ("ssd", "hdd") * 4


async def test_a_class_is_kept_to_also_while_its_disks_are_away(tmp_path: Path) -> None:
    """By new segments, and by shards that are made anew: on the class's last disk, not on another's."""
    options = replace(SMALL, disks_count=8, disk_classes=CLASSES)
    of_class = {index for index, name in enumerate(CLASSES) if name == "ssd"}
    async with new_store(tmp_path, disks_count=8, disk_classes=CLASSES) as store:
        await store.policies.add(replace(SAFE, name="fast", k=2, m=1, disk_class="ssd"))
        await store.create_bucket("quick", policy="fast")
        await store.put("quick", b"first", body_of(5 * STRIPE_BYTES))
        (row,) = segments(store)
        assert set(row.disks) < of_class
        lost = row.disks[0]
        assert [disk["class"] for disk in (await store.status())["disks"]] == list(CLASSES)
    (tmp_path / f"disk-{lost}").rename(tmp_path / "away")
    async with ObjectStore.open(tmp_path, options) as store:
        assert [disk["class"] for disk in (await store.status())["disks"]] == list(CLASSES)
        await finish(core_of(store).jobs.rebuilder)
        await store.put("quick", b"second", body_of(5 * STRIPE_BYTES, 1))
        for row in segments(store):
            assert set(row.disks) == of_class - {lost}
            assert not row.missing
        await store.policies.change("fast", m=2)
        await store.put("quick", b"third", body_of(5 * STRIPE_BYTES, 2))
        # not two shards on a disk for want of the one that is away
        assert sorted(segments(store)[-1].disks) == sorted([-1, *(of_class - {lost})])
        for number, key in enumerate((b"first", b"second", b"third")):
            assert await read(store, key, "quick") == body_of(5 * STRIPE_BYTES, number)


async def test_what_there_are_no_disks_for_leaves_half_of_the_journal_to_others(tmp_path: Path) -> None:
    journal = replace(SMALL.journal, size_bytes=8 << 20)
    body = body_of(100_000)
    async with new_store(tmp_path, disks_count=8, disk_classes=CLASSES, journal=journal) as store:
        core = core_of(store)
        await store.policies.add(replace(SAFE, name="fast", k=2, m=1, disk_class="ssd"))
        await store.create_bucket("quick", policy="fast")
        for index in (0, 2, 4):
            core.disks.set_tight(index, True)
        kept_count = 0
        while core.journal.size_bytes < core.journal.size_bytes_max // 2:
            await store.put("quick", b"%d" % kept_count, body)
            await core.destage_all()
            kept_count += 1
        with pytest.raises(NoSpace):
            await store.put("quick", b"more", body)
        assert 0.5 <= core.journal.size_bytes / core.journal.size_bytes_max < 0.6
        for number in range(20):
            await store.put("box", b"%d" % number, body)
        await store.put("quick", b"empty", b"")
        for index in (0, 2, 4):
            core.disks.set_tight(index, False)
        await core.destage_all()
        await store.put("quick", b"again", body)
        for number in range(kept_count):
            assert await read(store, b"%d" % number, "quick") == body


async def test_each_disk_has_one_class(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="2 classes for 6 disks"):
        await ObjectStore.create(tmp_path, replace(SMALL, disk_classes=("ssd", "hdd")))
    assert not list(tmp_path.iterdir())
