import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from bucket_rig import NOW, l3_of, lose_stripes, seal_all, upload
from memory_backend import MemoryBackend
from publish_rig import QUICK
from replica_rig import READER, Pair, linked, pair, settled
from small_store import body_of, finish, md5_of, new_store, read, segments, shard_files, stream

from couchestord.cache import CACHES_OFF
from couchestord.errors import (
    BadDigest,
    DataLost,
    InvalidArgument,
    NoSuchBucket,
    NoSuchKey,
    PreconditionFailed,
    ShuttingDown,
    Unavailable,
)
from couchestord.io import filerequests as fr
from couchestord.io.directory import DirectoryDisk
from couchestord.io.sharedpage import NOBODY, SharedPage
from couchestord.metrics import Metrics, Snapshot
from couchestord.model import Attributes, Conditions
from couchestord.replica import host
from couchestord.replica import messages as ms
from couchestord.replica import store as replica_store
from couchestord.replica.host import Host
from couchestord.replica.journal import ReplicaJournal
from couchestord.replica.store import open_replica
from couchestord.store.options import L3Options, Watermarks

LONG = 700_001


async def test_what_is_written_through_either_is_read_through_the_other(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        for writer, reader in ((both.store, both.replica), (both.replica, both.store)):
            for length in (0, 1, 5000, 128 << 10, LONG):
                body = body_of(length)
                key = b"k%d" % length
                made = await writer.put("box", key, body, size=length, attributes=Attributes({"content-type": "a/b"}))
                assert made.etag == md5_of(body)
                assert await reader.head("box", key) == made
                assert await read(reader, key) == body
            assert len((await reader.list("box")).entries) == 5
            for length in (0, LONG):
                await writer.delete("box", b"k%d" % length)
                with pytest.raises(NoSuchKey):
                    await reader.head("box", b"k%d" % length)


async def test_each_change_is_seen_at_once_though_the_look_up_was_kept(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        for turn in range(50):
            await both.store.put("box", b"dir/key", b"%d" % turn)
            for _ in range(2):
                assert await read(both.replica, b"dir/key") == b"%d" % turn
        await both.store.delete("box", b"dir/key")
        await both.store.delete_bucket("box")
        with pytest.raises(NoSuchBucket):
            await both.replica.head_bucket("box")
        await both.store.create_bucket("box", owner="")
        assert (await both.replica.list("box")).entries == ()


async def test_keys_that_go_sign_nothing_any_more(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await both.store.create_user("ann")
        key = await both.store.create_key("ann")
        assert both.replica.find_key(key.access_key) == key
        assert both.replica.find_user("ann") is not None
        await both.store.delete_user("ann")
        assert both.replica.find_key(key.access_key) is None
        assert both.replica.find_user("ann") is None


async def test_refusals_come_as_they_are(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        with pytest.raises(NoSuchBucket, match="none"):
            await both.replica.put("none", b"k", b"")
        with pytest.raises(NoSuchBucket):
            await both.replica.put("none", b"k", body_of(LONG), size=LONG)
        await both.replica.put("box", b"k", b"1")
        with pytest.raises(PreconditionFailed):
            await both.replica.put("box", b"k", b"2", conditions=Conditions(if_none_match=("*",)))
        with pytest.raises(PreconditionFailed):
            await both.replica.put("box", b"k", body_of(LONG), size=LONG, conditions=Conditions(if_none_match=("*",)))
        with pytest.raises(InvalidArgument):
            await both.replica.set_versioning("box", "Perhaps")


async def test_what_the_writer_does_not_take_at_once_is_answered_too(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        files = both.replica.files
        before = files.sequence
        request = fr.MakeNode(files.root("box"), b"a", 0o100644, 0, 0, token=7)
        made = await files.change(request)
        assert made is not None
        again = await files.change(replace(request, asked_after=before))
        assert again is not None
        assert again.id == made.id, "it was done, and is looked for in the log"
        both.store.core.writer._filled = 0.95  # a journal that fills slows its writers
        await both.replica.put("box", b"k", b"1")
        assert await read(both.store, b"k") == b"1"


async def test_long_body_that_turns_out_wrong_stores_nothing(tmp_path: Path) -> None:
    async def wrong() -> Attributes:
        raise BadDigest("not what was promised")

    def finish_wrong() -> Attributes:
        raise BadDigest("not what was promised")

    async with pair(tmp_path) as both:
        await both.replica.put("box", b"k", b"before")
        with pytest.raises(BadDigest):
            await both.replica.put("box", b"k", stream(body_of(LONG)), size=LONG, finish=finish_wrong)
        await both.replica.put("box", b"other", b"")
        assert await read(both.store, b"k") == b"before"
        # what is shorter than announced, too
        with pytest.raises(Exception, match="announced"):
            await both.replica.put("box", b"k", stream(body_of(LONG)), size=LONG + 1)
        assert await read(both.store, b"k") == b"before"


async def test_parts_pass(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        upload = await both.replica.create_upload("box", b"mp", attributes=Attributes(metadata={"a": "b"}))
        bodies = [body_of(5 << 20, 1), body_of(100, 2)]
        parts = []
        for number, body in enumerate(bodies, start=1):
            part = await both.replica.put_part(
                "box", b"mp", upload.upload_id, number, stream(body, 1 << 20), finish=lambda: {"crc32": "AAAAAA=="}
            )
            assert (part.number, part.checksums) == (number, {"crc32": "AAAAAA=="})
            parts.append((number, part.etag))
        assert len((await both.replica.list_parts("box", b"mp", upload.upload_id))[0]) == 2
        await both.replica.complete_upload("box", b"mp", upload.upload_id, parts)
        assert await read(both.replica, b"mp") == b"".join(bodies)


@pytest.mark.parametrize("told_at_once", [1, 2, 1000])
async def test_records_that_were_appended_after_the_last_question_are_found(
    tmp_path: Path, told_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_PLACES_MAX", told_at_once)
    async with pair(tmp_path) as both:
        for turn in range(30):
            body = body_of(60_000, turn)
            await both.store.put("box", b"k%d" % turn, body)
            assert await read(both.replica, b"k%d" % turn) == body
        assert len(both.store.core.journal.files()) > 1, "more than one file"
        for turn in range(30):
            assert await read(both.replica, b"k%d" % turn) == body_of(60_000, turn)


async def test_reader_that_comes_late_finds_all_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_PLACES_MAX", 2)
    async with pair(tmp_path) as both:
        for turn in range(30):
            await both.store.put("box", b"k%d" % turn, body_of(5000, turn))
        journal = both.replica._core.reader_parts.journal
        assert isinstance(journal, ReplicaJournal)
        ask, told = journal._ask, list[int]()

        async def noting(*question: int) -> ms.Places:
            places = await ask(*question)
            told.append(len(places.offsets) // 8)
            return places

        monkeypatch.setattr(journal, "_ask", noting)
        for turn in (24, 25, 3, 29, 0):
            assert await read(both.replica, b"k%d" % turn) == body_of(5000, turn)
        assert max(told) == 2, "so many at a time"
        assert both.store.core.journal.damaged == set(), "each was read where it lies"


async def test_damaged_copy_of_the_journal_is_told_and_made_good(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await both.store.put("box", b"k", body_of(5000))
        core = both.store.core
        [file] = core.journal.files()
        victim = tmp_path / f"disk-{file.replicas[0]}" / file.path
        victim.write_bytes(bytes(victim.stat().st_size))
        assert await read(both.replica, b"k") == body_of(5000)
        with trio.fail_after(10):
            while (file.path, file.replicas[0]) not in core.journal.damaged:
                await trio.sleep(0.01)
        both.link.tell(ms.ReplicaDamage("journal/of another time", 0))
        both.link.tell(ms.ReplicaDamage(file.path, 99))
        await both.link.ask(lambda id_: ms.Hold(id_, [], []), None)
        assert core.journal.damaged == {(file.path, file.replicas[0])}


async def test_damaged_copy_in_the_bucket_is_told_and_made_anew(tmp_path: Path) -> None:
    backend, body = MemoryBackend(keys_per_page=100), body_of(LONG)
    l3 = L3Options(lambda _clock: backend, "cache", NOW, publish=QUICK)
    async with pair(tmp_path, backend=backend, l3=l3) as both:
        await both.store.put("box", b"k", body)
        await upload(both.store)
        for key, data in backend.objects.items():
            if key.startswith("blobs/"):
                backend.objects[key] = data[:-100] + bytes(100)
        here = {file: file.read_bytes() for file in shard_files(tmp_path)}
        lose_stripes(tmp_path)
        with pytest.raises(DataLost):
            await read(both.replica, b"k")
        for file, data in here.items():
            file.write_bytes(data)
        await both.link.ask(lambda id_: ms.Hold(id_, [], []), None)
        await upload(both.store)
        assert l3_of(both.store).status()["lost_copies"] == 1
        await upload(both.store)
        lose_stripes(tmp_path)
        assert await read(both.replica, b"k") == body


async def test_what_is_read_leaves_the_disks_last(tmp_path: Path) -> None:
    backend = MemoryBackend(keys_per_page=100)
    l3 = L3Options(lambda _clock: backend, "tiered", NOW, Watermarks(0, 0), publish=QUICK)
    async with pair(tmp_path, backend=backend, l3=l3) as both:
        for number in range(3):
            await both.store.put("box", b"%d" % number, body_of(LONG, number))
            await seal_all(both.store)
        evictor = next(job for job in l3_of(both.store).services() if job.name == "evict")
        for job in l3_of(both.store).services():
            if job is not evictor:
                await finish(job)
        assert await read(both.replica, b"0") == body_of(LONG)
        with trio.fail_after(10):
            while not both.store.core.reader_parts.read_at:
                await trio.sleep(0.01)
        left: list[int] = []
        while not left or left[-1] < 3:
            await evictor.work()
            left.append(sum(not row.live_bytes for row in segments(both.store)))
            if left[-1] == 2:
                where = (await both.store.describe("box", b"0"))["extents"]
                assert "segment" in where[0], "it was read"


async def test_reader_goes_on_while_its_object_is_destaged_deleted_and_compacted(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        body = body_of(LONG)
        await both.store.put("box", b"k", body)
        async with await both.replica.get("box", b"k") as reader:
            pieces = aiter(reader)
            begun = bytes(await anext(pieces))
            await both.store.delete("box", b"k")
            await both.store.core.pool.aclose()
            # however long it takes: what is held is told
            for _ in range(3):
                await settled(both)
                await finish(both.store.core.jobs.compactor)
                await trio.sleep(0.3)
            assert shard_files(tmp_path), "what is read is kept"
            begun += b"".join([bytes(piece) async for piece in pieces])
            assert begun == body
        # once it is closed, all of it goes
        with trio.fail_after(20):
            while segments(both.store):
                await settled(both)
                await both.store.put("box", b"tick", b"")
                await finish(both.store.core.jobs.compactor)
                await trio.sleep(0.05)
        assert not shard_files(tmp_path)
        # what a reader has open takes its room
        with trio.fail_after(20):
            while open_without_name(tmp_path):
                await trio.sleep(0.05)


def open_without_name(folder: Path) -> list[str]:
    """Files below a folder that this process has open though they were removed."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # closed by a thread meanwhile
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return [name for name in found if name.startswith(str(folder)) and name.endswith(" (deleted)")]


async def test_nothing_is_dropped_before_a_reader_has_looked_again(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await both.store.put("box", b"k", body_of(LONG))
        await both.store.core.pool.aclose()
        await settled(both)
        seen = both.page.seen(READER)
        await both.store.delete("box", b"k")
        both.page.see(READER, seen)  # it has not looked since
        assert not both.store.core.jobs.views.is_unseen(segments(both.store)[0].id)
        await finish(both.store.core.jobs.compactor)
        assert segments(both.store)
        both.page.clear(READER)
        await finish(both.store.core.jobs.compactor)
        assert not segments(both.store)


async def test_journal_is_trimmed_once_all_readers_have_seen_that_it_may(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        core = both.store.core
        both.page.see(READER, 0)
        for turn in range(5):
            await both.store.put("box", b"k%d" % turn, body_of(100_000, turn))
        core.jobs.destager.force()
        await finish(core.jobs.destager)
        first = core.journal.first_sequence
        await core.jobs.snapshotter.take()
        both.page.see(READER, 0)
        await core.jobs.snapshotter.trim()
        assert core.journal.first_sequence == first
        both.page.clear(READER)
        await core.jobs.snapshotter.trim()
        assert core.journal.first_sequence != first


async def test_reader_keeps_no_transaction_over_a_turn(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        for turn in range(20):
            await both.store.put("box", b"k%d" % turn, b"x")
            await both.replica.head("box", b"k%d" % turn)
        await trio.sleep(0.01)
        assert await both.store.core.jobs.checkpointer.checkpoint()
        assert both.store.core.catalog.wal_bytes() == 0


async def rot_is_told(both: Pair, path: Path, body: bytes) -> None:
    """All of a shard of a segment rots, and the reader finds it."""
    await both.replica._core.reader_parts.cache.evict()
    home = segments(both.store)[0].disks[0]
    victim = next(file for file in shard_files(path) if file.parts[-3] == f"disk-{home}")
    size = victim.stat().st_size
    with victim.open("r+b") as rotten:
        rotten.write(os.urandom(size))
    assert await read(both.replica, b"k") == body
    with trio.fail_after(10):
        while not both.store.core.jobs.rebuilder._damages:
            await trio.sleep(0.01)


async def test_damage_is_told_and_made_good(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        body = body_of(LONG)
        await both.store.put("box", b"k", body)
        await both.store.core.pool.aclose()
        await rot_is_told(both, tmp_path, body)
        # what is made anew in its place is read, and tells of no damage again
        await finish(both.store.core.jobs.rebuilder)
        with trio.fail_after(20):
            while open_without_name(tmp_path):
                await trio.sleep(0.05)
        await both.replica._core.reader_parts.cache.evict()
        assert await read(both.replica, b"k") == body
        await both.replica.put("box", b"told", b"after it")
        assert not both.store.core.jobs.rebuilder._damages


async def test_damage_to_what_was_made_good_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair(tmp_path) as both:
        body = body_of(LONG)
        await both.store.put("box", b"k", body)
        await both.store.core.pool.aclose()
        for count in (1, 2):
            await rot_is_told(both, tmp_path, body)
            await finish(both.store.core.jobs.rebuilder)
            assert both.store.core.jobs.rebuilder.rebuilt_shards_count == count
            with trio.fail_after(20):
                while open_without_name(tmp_path):
                    await trio.sleep(0.05)
            monkeypatch.setattr("couchestord.ec.trust.NOTED_AGAIN_S", 0.0)  # as if a minute had passed


async def test_disk_that_was_given_up_is_not_asked_any_more(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        disks = both.replica._core.reader_parts.stripes._disks
        both.store.core.disks.fail(2, "for the test")
        with trio.fail_after(10):
            while disks.get(2) is not None:
                await trio.sleep(0.01)
        await both.store.put("box", b"k", body_of(LONG))
        assert await read(both.replica, b"k") == body_of(LONG)


async def test_disk_that_died_here_is_given_up_though_nobody_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_store, "_LET_GO_S", 0.01)
    monkeypatch.setattr(replica_store, "_DEADLINE_S", 600.0)
    async with pair(tmp_path) as both:
        disks = both.replica._core.reader_parts.stripes._disks
        dead = disks.get(2)
        assert isinstance(dead, DirectoryDisk)
        dead.suspect("no answer")
        with trio.fail_after(20):
            while disks.get(2) is dead:
                await trio.sleep(0.01)
        assert 2 in disks.failures


async def test_disk_that_died_here_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_store, "_LET_GO_S", 600.0)
    async with pair(tmp_path) as both:
        await both.store.put("box", b"k", body_of(LONG))
        await both.store.core.pool.aclose()
        disks = both.replica._core.reader_parts.stripes._disks
        dead = [disk for index in (1, 4) if isinstance(disk := disks.get(index), DirectoryDisk)]
        for disk in dead:
            disk.suspect("no answer")
        both.link.disks_changed.set()
        with trio.fail_after(20):
            while disks.failures or disks.get(1) is dead[0] or disks.get(4) is dead[1]:
                await trio.sleep(0.01)
        assert await read(both.replica, b"k") == body_of(LONG)
        assert not both.store.core.jobs.rebuilder._damages


async def test_counts_are_told(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        for metrics in (both.counted, both.counting):
            metrics.count_request("GetObject", 200, 0.01, 3, 4)
            metrics.count_late("body")
        expected = b'couchestord_requests_total{operation="GetObject",status="2xx"} 2.0'
        with trio.fail_after(10):
            while expected not in both.counted.render(Snapshot()):
                await trio.sleep(0.01)
        page = both.counted.render(Snapshot())
        assert b"couchestord_received_bytes_total 6.0" in page
        assert b'couchestord_late_clients_total{awaited="body"} 2.0' in page
        assert b'couchestord_request_duration_seconds_count{operation="GetObject"} 2.0' in page


async def test_catalog_that_is_shut_is_unavailable_and_read_again_when_it_is_back(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await both.store.put("box", b"k", b"1")
        assert await read(both.replica, b"k") == b"1"
        catalog = both.store.core.catalog
        catalog.shut("for the test")
        with pytest.raises(Unavailable):
            await both.replica.head("box", b"k")
        catalog.reopen_writer()
        catalog.reopen_reader()
        assert await read(both.replica, b"k") == b"1"


async def test_unreadable_catalog_is_told(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        both.link.tell(ms.CatalogFailed("for the test"))
        with trio.fail_after(10):
            while not both.store.core.writer.broken_because:
                await trio.sleep(0.01)


async def test_writes_of_a_store_that_stops_are_refused_and_when_it_is_gone_nobody_waits(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await both.replica.put("box", b"k", b"1")
        await both.store.drain()
        with pytest.raises(ShuttingDown):
            await both.replica.put("box", b"k", b"2")
        with pytest.raises(ShuttingDown):
            await both.replica.put("box", b"k", body_of(LONG), size=LONG)
        both.link.channel.close()
        with trio.fail_after(10):
            await both.link.closing.wait()
            with pytest.raises(Unavailable):
                await both.replica.put("box", b"k", b"3")


async def test_what_a_reader_held_is_let_go_when_it_is_gone(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await both.store.put("box", b"k", body_of(LONG))
        reader = await both.replica.get("box", b"k")
        pool = both.store.core.pool
        with trio.fail_after(10):
            while not pool.pinned_count:
                await trio.sleep(0.01)
            both.link.channel.close()
            while pool.pinned_count:
                await trio.sleep(0.01)
        await reader.aclose()


async def test_reader_says_what_it_sees(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await both.store.put("box", b"k", b"1")
        await settled(both)
        assert both.page.seen(READER) == both.page.version
        assert both.page.seen(READER + 1) == NOBODY


async def test_record_that_is_nowhere_is_lost(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await both.store.put("box", b"k", b"1")
        with pytest.raises(DataLost):
            await both.replica._core.reader_parts.journal.read(1 << 40, 0, 1)


async def test_reader_is_protected_before_it_hears_of_an_open_store(tmp_path: Path) -> None:
    page = SharedPage()
    async with linked(Host(page, Metrics()), page) as link, trio.open_nursery() as nursery:
        assert page.seen(READER) == NOBODY
        nursery.start_soon(link.open)
        await trio.testing.wait_all_tasks_blocked()
        assert page.seen(READER) == page.version
        nursery.cancel_scope.cancel()


async def test_files_of_the_journal_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        core, journal = both.store.core, both.replica._core.reader_parts.journal
        assert isinstance(journal, ReplicaJournal)
        await both.store.put("box", b"k", b"1")
        assert await read(both.replica, b"k") == b"1"
        [old] = journal._files
        core.jobs.destager.force()
        await finish(core.jobs.destager)
        await core.jobs.snapshotter.take()
        with trio.fail_after(20):
            while core.journal.first_sequence == old.first:
                await settled(both)
                await core.jobs.snapshotter.trim()
        await both.store.put("box", b"new", b"1")
        assert await read(both.replica, b"new") == b"1"
        assert old not in journal._files


async def test_reader_opens_beside_a_store_none_of_whose_disks_is_good(tmp_path: Path) -> None:
    page = SharedPage()
    host_ = Host(page, Metrics())
    async with new_store(tmp_path) as store, linked(host_, page) as link, host_.serving(store):
        made = await store.put("box", b"k", body_of(5000))
        for index in store.core.disks.good():
            store.core.disks.fail(index, "as if it refused the new superblock")
        opened = await link.open()
        try:
            async with open_replica(link, opened, Metrics(), CACHES_OFF) as replica:
                assert await replica.head("box", b"k") == made
                with pytest.raises(DataLost):
                    await read(replica, b"k")
                with pytest.raises(Unavailable):
                    await replica.put("box", b"other", b"1")
        finally:
            link.channel.close()
