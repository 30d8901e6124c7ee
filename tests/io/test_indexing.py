"""What indexes do to a start; that they never hide a record is in test_journal.py's model too.

Seen to fail with: records behind an index that ends where another file begins left out; an index that promises more
than its replica holds believed; a block written at the wrong place.
"""

import pytest
import trio
import trio.testing
from log_rig import NO_PREALLOCATION, STORE_ID, Log, eager_indexer, entry, new_disks, open_log, renew
from log_rig import start_log as start
from simdisk import SimDisk

from couchestord.errors import DiskFailed
from couchestord.io import records as rec
from couchestord.io.checksum import xxh3_64
from couchestord.io.disks import load_disks
from couchestord.io.indexing import Indexer
from couchestord.io.recovery import scan
from couchestord.service import Progress


async def fill(log: Log, count: int, body: bytes = b"x" * 2000) -> None:
    for sequence in range(log.end, log.end + count):
        await log.journal.append(sequence, [entry(b"meta %d" % sequence, body)])


async def finish(indexer: Indexer) -> None:
    while await indexer.work() is Progress.BUSY:
        pass


def killed(sims: list[SimDisk]) -> list[SimDisk]:
    return [sim.crash(keep_all=True) for sim in sims]


def indexed(log: Log) -> list[int]:
    """Records that an index named, by file."""
    return [max((records for records, _ in file.indexed.values()), default=0) for file in log.chain.files]


async def test_a_start_reads_only_what_no_index_names() -> None:
    sims = await new_disks(1)
    log = await start(sims, NO_PREALLOCATION)
    await fill(log, 20)
    await finish(eager_indexer(log))
    await fill(log, 2)
    held = await log.contents()
    found = await open_log(killed(sims), NO_PREALLOCATION)
    assert sum(indexed(found)) == 20
    assert await found.contents() == held
    assert [len(file.offsets) for file in await scan(found.disks, indexed=False)] == [
        len(file.offsets) for file in found.chain.files
    ]


async def test_blocks_are_added_over_several_lives() -> None:
    sims = await new_disks(2)
    for _ in range(4):
        log = await start(sims)
        for _ in range(3):
            await fill(log, 2, b"short")
            await finish(eager_indexer(log))
        held = await log.contents()
        sims = killed(sims)
        found = await open_log(sims)
        assert sum(indexed(found)) == log.end - 1
        assert await found.contents() == held


async def test_little_is_left_to_be_read_before_it_is_indexed() -> None:
    sims = await new_disks(3)
    log = await start(sims, NO_PREALLOCATION)
    await fill(log, 3, b"short")
    indexer = Indexer(log.disks, log.journal, records_min=4, bytes_min=5000, closed_min=3)
    assert await indexer.work() is Progress.IDLE
    await fill(log, 1, b"short")
    await finish(indexer)
    assert sum(indexed(await open_log(killed(sims), NO_PREALLOCATION))) in (0, 4)
    assert all(file.indexed for file in log.journal.files())
    await fill(log, 1, b"x" * 5000)
    assert await indexer.work() is Progress.BUSY
    await finish(indexer)
    await fill(log, 3, b"short")
    assert await indexer.work() is Progress.IDLE
    log.journal.roll()
    await fill(log, 1, b"short")
    assert await indexer.work() is Progress.BUSY


async def test_an_index_that_ends_where_a_cut_off_repeat_begins_hides_nothing() -> None:
    sims = await new_disks(4)
    log = await start(sims)
    await fill(log, 3)
    await finish(eager_indexer(log))
    entries = [entry(b"acknowledged %d" % number) for number in range(4)]
    await log.journal.append(4, entries)
    held = await log.contents()
    sims = killed(sims)
    # a start was cut off when one of the four lay repeated under its epoch
    head = rec.pack_file_header(rec.FileHeader(STORE_ID, 9, 4, (0, 1, 2), 8))
    record = rec.pack_record(STORE_ID, 9, 4, 4, entries[0].meta, 0, xxh3_64(b""))
    await sims[0].write_at(f"journal/{rec.file_name(9, 4)}", 0, [head + record], sync=True)
    found = await open_log(sims)
    assert await found.contents() == held
    assert found.chain.end == 8


async def test_a_replica_shorter_than_its_index_is_not_believed() -> None:
    sims = await new_disks(5)
    log = await start(sims, NO_PREALLOCATION)
    await fill(log, 4)
    await finish(eager_indexer(log))
    held = await log.contents()
    path, replicas = log.journal.replicas(4)
    again = killed(sims)
    # the copy on the disk that is asked first ends within the last record
    data = await again[replicas[0]].read(path, 0, 1 << 20)
    await again[replicas[0]].unlink(path)
    await again[replicas[0]].write_at(path, 0, [data[:-100]], sync=True)
    found = await open_log(again, NO_PREALLOCATION)
    assert found.chain.files[0].end == 5
    assert replicas[0] not in found.chain.files[0].indexed
    assert await found.contents() == held


async def test_rot_behind_an_index_is_read_from_another_replica() -> None:
    sims = await new_disks(6)
    log = await start(sims)
    await fill(log, 4)
    await finish(eager_indexer(log))
    held = await log.contents()
    path, replicas = log.journal.replicas(2)
    sims[replicas[0]].rot(path, rec.FILE_HEADER_BYTES + 2500)
    found = await open_log(killed(sims))
    assert await found.contents() == held
    assert found.journal.degraded_reads_count


async def names(sims: list[SimDisk]) -> set[str]:
    return {f"journal/{name}" for sim in sims for name in await sim.list("journal")}


async def test_indexes_go_with_their_files() -> None:
    sims = await new_disks(7)
    log = await start(sims)
    await fill(log, 30)
    await finish(eager_indexer(log))
    assert len([name for name in await names(sims) if name.endswith(".index")]) == len(log.journal.files()) > 2
    await log.journal.trim(log.end)
    [left] = log.journal.files()
    assert await names(sims) == {left.path, left.index_path}


async def test_an_index_written_while_its_file_was_trimmed_goes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    sims = await new_disks(8)
    log = await start(sims)
    await fill(log, 30)
    real = SimDisk.write_at

    async def write_at(self: SimDisk, path: str, *arguments: object, **how: object) -> None:
        if path.endswith(".index"):
            await log.journal.trim(log.end)
        await real(self, path, *arguments, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(SimDisk, "write_at", write_at)
    await eager_indexer(log).work()
    [left] = log.journal.files()
    assert await names(sims) <= {left.path, left.index_path}


async def test_an_index_without_a_file_is_swept() -> None:
    sims = await new_disks(9)
    log = await start(sims)
    await fill(log, 3)
    await finish(eager_indexer(log))
    path, replicas = log.journal.replicas(2)
    await sims[replicas[1]].unlink(path)
    await sims[replicas[1]].write_at("journal/notes", 0, [b"somebody's"])
    await Indexer(await load_disks(list(sims)), log.journal).work()
    files = await names([sims[replicas[1]]])
    assert f"{path}.index" not in files
    assert "journal/notes" in files
    assert f"{path}.index" in await names([sims[replicas[0]]])


async def test_a_disk_that_fails_is_given_up_and_the_others_are_indexed() -> None:
    sims = await new_disks(10)
    log = await start(sims)
    await fill(log, 3)
    _, replicas = log.journal.replicas(2)
    sims[replicas[0]].fail_at(2, DiskFailed("EIO"))
    await finish(eager_indexer(log))
    assert replicas[0] in log.disks.failures
    again = await open_log(killed(sims))
    assert sum(indexed(again)) == 3
    await renew(again)


async def test_a_disk_that_returned_is_not_given_up_for_an_index_that_failed_before() -> None:
    sims = await new_disks(1)
    log = await start(sims, NO_PREALLOCATION)
    indexer = eager_indexer(log)
    for _ in range(2):
        await finish(indexer)
        await fill(log, 2)
    index = log.journal.files()[-1].replicas[0]
    sims[index].frozen = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish, indexer)
        await trio.testing.wait_all_tasks_blocked()
        sims[index].gone = True
        log.disks.fail(index, "pulled")
        log.disks.take(index, sims[index].crash(keep_all=True))
        sims[index].frozen = False
    assert not log.disks.failures
