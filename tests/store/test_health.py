import json
import os
import shutil
from pathlib import Path

import pytest
from small_store import SMALL, STRIPE_BYTES, body_of, core_of, finish, make_store, new_store, put_all, segments

from couchestord.errors import DiskFailed, DiskFull, NoSuchBucket, NoSuchKey, WritesStopped
from couchestord.store.door import ObjectStore

BODIES = {b"small": b"few bytes", b"long": body_of(6 * STRIPE_BYTES), b"mixed": body_of(3 * STRIPE_BYTES + 9)}
NOTHING = "nothing would be lost"


async def test_status_of_a_new_store(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        status = await store.status()
        assert json.loads(json.dumps(status)) == status
        assert status["store"] == core_of(store).disks.store_id.hex()
        assert status["health"] == {"state": "healthy", "reasons": []}
        assert status["engine"]["name"] == "zfec"
        assert status["redundancy"] == {"k": 4, "m": 2, "stripe_bytes": STRIPE_BYTES}
        assert [disk["index"] for disk in status["disks"]] == list(range(6))
        for disk in status["disks"]:
            assert (disk["state"], disk["full"], disk["shards"], disk["if_lost"]) == ("good", False, 0, NOTHING)
            assert 0 < disk["free_bytes"] < disk["total_bytes"]
            assert disk["shared_by"] == 6
            assert disk["name"] == str(tmp_path / f"disk-{disk['index']}")
        found = os.statvfs(tmp_path)
        assert 0 <= found.f_blocks * found.f_frsize - sum(disk["total_bytes"] for disk in status["disks"]) < 6
        counts = dict.fromkeys(("count", "open", "missing_shards", "live_bytes", "whole", "degraded", "lost"), 0)
        assert status["segments"] == counts


async def test_status_of_a_filled_store(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await put_all(store, BODIES)
        with pytest.raises(NoSuchBucket):
            await store.delete_bucket("none")
        await store.destage()
        status = await store.status()
        assert json.loads(json.dumps(status)) == status
        assert status["sequence"] == core_of(store).catalog.committed_sequence
        assert status["catalog"]["snapshot_sequence"] == core_of(store).jobs.snapshotter.sequence > 0
        assert status["catalog"]["rebuilt_because"] is None
        assert status["segments"]["live_bytes"] == sum(map(len, BODIES.values()))
        assert status["segments"]["count"] == len(segments(store))
        assert status["segments"]["open"] == 1  # those of a snapshot are sealed behind it
        assert status["writes"]["refused"] == 1
        assert status["journal"]["bytes"] == core_of(store).journal.size_bytes
        assert [disk["shards"] for disk in status["disks"]] == [len(segments(store))] * 6
        assert [disk["if_lost"] for disk in status["disks"]] == [
            f"nothing would be lost; {len(segments(store))} segments would lack shards"
        ] * 6


async def test_loss_table_names_the_last_copy_of_journal_files(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        core = core_of(store)
        [*_, file] = core.journal.files()
        for index in file.replicas[1:]:
            core.journal.damaged.add((file.path, index))
        disks = (await store.status())["disks"]
        costs = [disk["if_lost"] for disk in disks]
        assert [disk["index"] for disk in disks if disk["loses_data_if_lost"]] == file.replicas[:1]
        assert costs[file.replicas[0]] == "records of 1 journal files would be lost"
        assert [cost for cost in costs if cost != NOTHING] == [costs[file.replicas[0]]]


async def test_loss_table_with_disks_missing(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await put_all(store, BODIES)
        await core_of(store).pool.aclose()
        count = len(segments(store))
        lost = f"data of {count} segments would be lost"
        short = f"nothing would be lost; {count} segments would lack shards"
        expected = {0: short, 1: short, 2: lost}
        for gone in range(3):
            if gone:
                (tmp_path / f"disk-{gone}").rename(tmp_path / f"away-{gone}")
                await core_of(store).jobs.monitor.work()
                await core_of(store).jobs.rebuilder.work()
            status = await store.status()
            assert json.loads(json.dumps(status)) == status
            good = [disk for disk in status["disks"] if disk["state"] == "good"]
            assert len(good) == 6 - gone
            assert {disk["if_lost"] for disk in good} == {expected[gone]}, gone
            assert {disk["loses_data_if_lost"] for disk in good} == {gone == 2}, gone
            assert status["health"]["state"] == ("degraded" if gone else "healthy")
        missing = [disk for disk in status["disks"] if disk["state"] == "missing"]
        assert [(disk["index"], disk["reason"]) for disk in missing] == [
            (1, "the folder is gone"),
            (2, "the folder is gone"),
        ]
        assert all("free_bytes" not in disk for disk in missing)


async def test_health_names_what_is_wrong(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        disks = core_of(store).disks
        assert store.health().reasons == ()
        disks.fail(3, "it burned")
        disks.fail(5, DiskFull("no room"))
        health = store.health()
        assert health.state == "degraded"
        assert health.reasons[:2] == ("disk 3 is not used: it burned", "disks 5 are full")
        (why,) = health.reasons[2:]
        assert "room for 4 of 6 shards" in why
        disks.fail(2, "stolen")
        assert store.health().state == "unhealthy"  # three disks take new data, four are needed
        disks.room_again(5)
        assert store.health().state == "degraded"
        disks.fail(1, "drowned")
        health = store.health()
        assert health.state == "unhealthy"
        assert health.reasons[0] == "3 of 6 disks are missing, more than 2"
        core_of(store).writer.stop(WritesStopped("the catalog is gone"))
        assert store.health().reasons[0] == "writes are stopped: the catalog is gone"


async def test_segments_that_lack_shards_are_told(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await put_all(store, BODIES)
        await store.destage()
    shutil.rmtree(tmp_path / "disk-4/segments")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert store.health().state == "healthy"  # nobody has looked yet
        async with await store.get("box", b"long") as reader:
            assert await reader.read() == BODIES[b"long"]
        await core_of(store).jobs.rebuilder.work()
        assert store.health().state == "degraded"
        assert "lack shards and are being rebuilt" in store.health().reasons[0]
        await finish(core_of(store).jobs.rebuilder)
        assert store.health().state == "healthy"


async def test_catalog_that_was_rebuilt_is_told(tmp_path: Path) -> None:
    await make_store(tmp_path)
    for path in tmp_path.glob("catalog.sqlite*"):
        path.unlink()
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert (await store.status())["catalog"]["rebuilt_because"] == "there was none"


async def test_describe_says_where_everything_lies(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        await put_all(store, BODIES)
        await store.put("box", b"n\xc3\xa4me", b"")
        small = await store.describe("box", b"small")
        assert json.loads(json.dumps(small)) == small
        info = await store.head("box", b"small")
        assert {name: small[name] for name in ("bucket", "key", "size_bytes", "etag")} == {
            "bucket": "box",
            "key": "small",
            "size_bytes": 9,
            "etag": info.etag,
        }
        [extent] = small["extents"]
        assert len(extent["replicas"]) == 3
        for replica in extent["replicas"]:
            assert b"few bytes" in (Path(replica["disk"]) / replica["file"]).read_bytes()

        mixed = (await store.describe("box", b"mixed"))["extents"]
        assert [extent["length"] for extent in mixed] == [3 * STRIPE_BYTES, 9]
        assert [shard["index"] for shard in mixed[0]["shards"]] == list(range(6))
        assert all(shard["whole"] for shard in mixed[0]["shards"])
        first = mixed[0]["shards"][0]
        # the first data shard holds the beginning of the stripe, behind its header
        data = (Path(first["disk"]) / first["file"]).read_bytes()
        at = (mixed[0]["stripe"] + 1) * 4096
        assert data[at : at + STRIPE_BYTES // 4] == BODIES[b"mixed"][: STRIPE_BYTES // 4]
        assert (await store.describe("box", b"n\xc3\xa4me"))["key"] == "n\u00e4me"
        with pytest.raises(NoSuchKey):
            await store.describe("box", b"none")

        core_of(store).disks.fail(2, "as the test wants it")
        after = (await store.describe("box", b"long"))["extents"][0]["shards"]
        assert [shard["whole"] for shard in after].count(False) == 1


async def test_segments_are_counted_by_what_is_left_of_them(tmp_path: Path) -> None:
    await make_store(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await put_all(store, BODIES)
        await store.destage()
        count = len(segments(store))
        core = core_of(store)
        for gone, state in enumerate(("whole", "degraded", "degraded", "lost")):
            if gone:
                core.disks.fail(gone, DiskFailed("a test"))
            found = (await store.status())["segments"]
            assert {name: found[name] for name in ("whole", "degraded", "lost")} == {
                name: count * (name == state) for name in ("whole", "degraded", "lost")
            }
        assert any("fewer shards left" in reason for reason in store.health().reasons)
