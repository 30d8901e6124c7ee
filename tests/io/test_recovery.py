"""Which records count, on files made up by hand. What crashes leave is in test_journal.py.

Seen to fail with: epochs ignored; a repeat that was cut off voiding what it repeats; other copies not asked where a
file begins that does not count.
"""

from array import array

import pytest
from log_rig import NO_PREALLOCATION, STORE_ID, entry, new_disks, open_log, start_log
from simdisk import SimDisk

from couchestord.errors import DiskFailed, UnknownFormat
from couchestord.io import records as rec
from couchestord.io.checksum import xxh3_64
from couchestord.io.disks import load_disks
from couchestord.io.journalfile import JournalOptions
from couchestord.io.recovery import Chain, FoundFile, chain, scan


def found(epoch: int, first: int, end: int, *, void_from: int | None = None, proven: int = 0) -> FoundFile:
    count = end - first
    return FoundFile(
        epoch,
        first,
        [0],
        first if void_from is None else void_from,
        array("Q", [4096 + 100 * number for number in range(count)]),
        4096 + 100 * count,
        array("Q", range(first, end)),
        proven,
    )


def runs(it: Chain) -> list[tuple[int, int, int]]:
    return [(file.epoch, file.first, file.end) for file in it.files]


def test_files_of_one_epoch_follow_each_other() -> None:
    it = chain([found(1, 1, 10), found(1, 10, 20)])
    assert runs(it) == [(1, 1, 10), (1, 10, 20)]
    assert it.damage == ()
    assert it.void == ()
    assert it.end == 20


def test_a_newer_epoch_voids_what_it_begins_with_and_all_behind() -> None:
    it = chain([found(1, 1, 15), found(1, 15, 20), found(2, 10, 12)])
    assert runs(it) == [(1, 1, 10), (2, 10, 12)]
    assert [file.first for file in it.void] == [15]
    assert it.files[0].end_offset == 4096 + 900


def test_a_newer_file_without_records_voids_too() -> None:
    """A group failed, a new file was made for it, and then came the crash."""
    assert runs(chain([found(1, 1, 15), found(2, 10, 10)])) == [(1, 1, 10)]


def test_a_repeat_counts_only_when_it_is_whole() -> None:
    for end in (7, 8, 9):
        it = chain([found(1, 1, 10), found(2, 7, end, void_from=10)])
        assert runs(it) == [(1, 1, 10)]
        assert [file.epoch for file in it.void] == [2]
    it = chain([found(1, 1, 12), found(2, 7, 10, void_from=10)])
    assert runs(it) == [(1, 1, 7), (2, 7, 10)], "what lay behind the repeat when it was made is void"
    it = chain([found(1, 1, 10), found(2, 7, 8, void_from=10), found(3, 7, 12, void_from=10)])
    assert runs(it) == [(1, 1, 7), (3, 7, 12)]


def test_a_repeat_with_proof_behind_its_run_was_whole() -> None:
    it = chain([found(1, 1, 10), found(2, 7, 8, void_from=10, proven=12)])
    assert it.damage == ((8, 12),)


def test_gaps_and_proofs_are_damage() -> None:
    assert chain([found(1, 1, 5), found(1, 9, 12)]).damage == ((5, 9),)
    assert chain([found(1, 1, 5, proven=8)]).damage == ((5, 8),)
    assert chain([found(1, 1, 5, proven=8), found(2, 6, 9)]).damage == ((5, 6),)
    assert chain([found(1, 1, 5, proven=8), found(2, 5, 9)]).damage == ()
    assert chain([found(1, 1, 5, proven=3)]).damage == ()


def test_nothing_is_a_chain_of_nothing() -> None:
    it = chain([])
    assert it == Chain((), (), ())
    assert it.end == 0


def journal_file(epoch: int, first: int, records: list[tuple[int, int, bytes]], store: bytes = STORE_ID) -> bytes:
    """A journal file's bytes from (sequence, group, body)."""
    parts = [rec.pack_file_header(rec.FileHeader(store, epoch, first, (0,), first))]
    for sequence, group, body in records:
        parts.append(rec.pack_record(store, epoch, sequence, group, b"meta", len(body), xxh3_64(body)) + body)
    return b"".join(parts)


async def put(sims: list[SimDisk], index: int, epoch: int, first: int, data: bytes) -> None:
    await sims[index].write_at(f"journal/{rec.file_name(epoch, first)}", 0, [data], sync=True)


async def test_replicas_complete_each_other_record_by_record() -> None:
    sims = await new_disks(1)
    data = journal_file(1, 1, [(n, n, b"%d" % n * 300) for n in range(1, 8)])
    offsets = [data.index(b"%d" % n * 300) for n in range(1, 8)]
    for index, broken in ((0, (1, 4)), (2, (2, 5)), (4, (3, 6))):
        copy = bytearray(data)
        for number in broken:
            copy[offsets[number]] ^= 1
        await put(sims, index, 1, 1, bytes(copy))
    await put(sims, 5, 1, 1, data[: offsets[2]])
    (file,) = await scan(await load_disks(sims))
    assert (file.first, file.end, file.replicas, file.proven) == (1, 8, [0, 2, 4, 5], 0)


async def test_only_a_group_behind_the_run_proves() -> None:
    sims = await new_disks(2)
    whole = journal_file(1, 1, [(1, 1, b"1"), (2, 2, b"22222"), (3, 2, b"3"), (4, 4, b"4")])
    torn = bytearray(whole)
    torn[whole.index(b"22222")] ^= 1
    last = whole.rindex(b"CJRC")
    await put(sims, 0, 1, 1, bytes(torn[:last]))
    disks = await load_disks(sims)
    (file,) = await scan(disks)
    assert (file.end, file.proven) == (2, 2)
    assert chain([file]).damage == ()
    await put(sims, 0, 1, 1, bytes(torn))
    (file,) = await scan(disks)
    assert (file.end, file.proven) == (2, 4)
    assert chain([file]).damage == ((2, 4),)


async def test_foreign_misplaced_and_damaged_files_count_for_nothing() -> None:
    sims = await new_disks(3)
    log = await start_log(sims, NO_PREALLOCATION)
    await log.journal.append(1, [entry(b"ours")])
    ours = await log.contents()
    await put(sims, 0, 7, 1, journal_file(7, 1, [(1, 1, b"")], b"another store..."))
    await put(sims, 1, 8, 1, journal_file(9, 1, [(1, 1, b"")]))
    await put(sims, 2, 10, 1, b"\0" * 4096)
    await put(sims, 3, 11, 1, b"")
    await sims[4].write_at("journal/notes.txt", 0, [b"?"])
    after = await open_log(sims)
    assert await after.contents() == ours
    assert after.chain.damage == ()


async def test_records_of_another_epoch_or_order_end_the_run() -> None:
    sims = await new_disks(4)
    good = journal_file(1, 1, [(1, 1, b"1")])
    for strange in ((5, 5, b""), (1, 1, b"1")):
        await put(sims, 0, 1, 1, good + journal_file(1, 2, [strange])[4096:])
        (file,) = await scan(await load_disks(sims))
        assert file.end == 2
    await put(sims, 0, 1, 1, good + journal_file(2, 2, [(2, 2, b"2")])[4096:])
    (file,) = await scan(await load_disks(sims))
    assert file.end == 2


async def test_a_file_of_a_newer_program_stops_the_start() -> None:
    sims = await new_disks(5)
    page = bytearray(rec.pack_file_header(rec.FileHeader(STORE_ID, 1, 1, (0,), 1)))
    page[4] += 1
    length = int.from_bytes(page[8:12], "little")
    page[12:20] = xxh3_64(bytes(page[:12] + page[20 : 20 + length])).to_bytes(8, "little")
    await put(sims, 0, 1, 1, bytes(page))
    with pytest.raises(UnknownFormat):
        await scan(await load_disks(sims))


async def test_disks_that_fail_the_scan_are_given_up() -> None:
    sims = await new_disks(6)
    log = await start_log(sims)
    await log.journal.append(1, [entry(b"ours")])
    disks = await load_disks(sims)
    victims = log.journal.replicas(1)[1]
    sims[victims[0]].fail_at(1, DiskFailed("EIO"))
    sims[victims[1]].fail_at(2, DiskFailed("EIO"))
    assert chain(await scan(disks)).end == 2
    assert sorted(disks.failures) == sorted(victims[:2])


async def test_a_rotten_header_is_told_from_a_file_that_was_being_made() -> None:
    sims = await new_disks(7)
    data = journal_file(3, 1, [(1, 1, b"one"), (2, 2, b"two")])
    for page, rest in ((b"\0" * 4096, b""), (b"?" * 4096, b"\0" * 9000), (data[:30], b"")):
        for index in range(3):
            await sims[index].write_at("journal/" + rec.file_name(3, 1), 0, [page + rest], sync=True)
        (file,) = await scan(await load_disks(sims))
        assert (file.counts, file.is_headless, chain([file]).damage) == (False, False, ())
        await drop(sims, 3, 1)
    for index in range(3):
        await put(sims, index, 3, 1, b"?" * 4096 + data[4096:] + b"\0" * 4096)
    (file,) = await scan(await load_disks(sims))
    assert (file.counts, file.is_headless, file.end, file.replicas) == (True, True, 3, [0, 1, 2])
    assert not file.has_rest
    for index in range(3):
        await put(sims, index, 3, 1, b"?" * 8192)
    (file,) = await scan(await load_disks(sims))
    it = chain([file])
    assert (it.files, it.damage, it.reach, it.ends_in_rest) == ((), ((1, 2),), 2, True)


async def drop(sims: list[SimDisk], epoch: int, first: int) -> None:
    for sim in sims:
        if rec.file_name(epoch, first) in await sim.list("journal"):
            await sim.unlink(f"journal/{rec.file_name(epoch, first)}")


async def test_one_whole_header_is_enough() -> None:
    sims = await new_disks(8)
    data = journal_file(3, 1, [(1, 1, b"one"), (2, 2, b"two")])
    await put(sims, 0, 3, 1, b"?" * 4096 + data[4096:])
    await put(sims, 1, 3, 1, data)
    (file,) = await scan(await load_disks(sims))
    assert (file.is_headless, file.end, file.replicas) == (False, 3, [1])


def headless(epoch: int, first: int, end: int, proven: int = 0) -> FoundFile:
    file = found(epoch, first, end, proven=proven)
    file.is_headless = True
    return file


def test_a_file_without_a_header_voids_only_what_it_reaches() -> None:
    it = chain([found(1, 1, 10), headless(2, 7, 9)])
    assert (runs(it), it.damage) == ([(1, 1, 10)], ()), "it may be a repeat that was cut off"
    it = chain([found(1, 1, 10), headless(2, 7, 12)])
    assert (runs(it), it.damage) == ([(1, 1, 7), (2, 7, 12)], ())
    it = chain([found(1, 1, 10), headless(2, 10, 12)])
    assert (runs(it), it.damage) == ([(1, 1, 10), (2, 10, 12)], ())


def test_a_file_of_which_nothing_can_be_read_is_damage_unless_a_newer_one_begins_there() -> None:
    assert chain([found(1, 1, 10), headless(2, 10, 10)]).damage == ((10, 11),)
    assert chain([found(1, 1, 10), headless(2, 7, 7)]).damage == ((10, 11),)
    assert chain([found(1, 1, 10), headless(2, 7, 7, proven=15)]).damage == ((7, 15),)
    assert chain([found(1, 1, 10), headless(2, 10, 10), found(3, 10, 12)]).damage == ()
    assert chain([found(1, 1, 10), headless(2, 10, 10), found(3, 9, 12)]).damage == ()
    assert chain([found(1, 1, 10), headless(2, 10, 10), found(3, 14, 16)]).damage == ((10, 14),)


def test_rest_behind_the_end_is_told() -> None:
    whole, torn = found(1, 1, 10), found(1, 1, 10)
    torn.has_rest = True
    assert not chain([whole]).ends_in_rest
    assert chain([torn]).ends_in_rest
    assert not chain([torn, found(2, 10, 12)]).ends_in_rest
    first = found(2, 10, 10)
    first.has_rest = True
    assert chain([whole, first]).ends_in_rest, "its first group was torn"


async def test_rot_where_a_cut_off_repeat_begins_hides_nothing() -> None:
    """The copy that is read first ends there, as if the repeat had taken its place; the others go on."""
    sims = await new_disks(12)
    log = await start_log(sims, NO_PREALLOCATION)
    entries = [entry(b"acknowledged %d" % number) for number in range(4)]
    await log.journal.append(1, [entry(b"before")])
    await log.journal.append(2, entries)
    held = await log.contents()
    path, replicas = log.journal.replicas(2)
    data = await sims[replicas[0]].read(path, 0, 1 << 20)
    head = rec.pack_file_header(rec.FileHeader(STORE_ID, 9, 2, (0, 1, 2), 6))
    record = rec.pack_record(STORE_ID, 9, 2, 2, entries[0].meta, 0, xxh3_64(b""))
    await sims[5].write_at(f"journal/{rec.file_name(9, 2)}", 0, [head + record], sync=True)
    sims[replicas[0]].rot(path, data.index(b"acknowledged 0"))
    found = await open_log(sims, NO_PREALLOCATION)
    assert found.chain.end == 6
    assert await found.contents() == held


async def test_rot_where_a_void_file_begins_hides_nothing() -> None:
    """A file was being made when the power went; the start after it repeated the tail, and went on in that repeat."""
    sims = await new_disks(13)
    log = await start_log(sims, NO_PREALLOCATION)
    await log.journal.append(1, [entry(b"before"), entry(b"also before")])
    header = rec.pack_file_header(rec.FileHeader(STORE_ID, 1, 3, (5,), 3))
    await sims[5].write_at(f"journal/{rec.file_name(1, 3)}", 0, [header], sync=True)
    log = await start_log(sims, NO_PREALLOCATION)
    await log.journal.append(3, [entry(b"acknowledged %d" % number) for number in range(4)])
    held = await log.contents()
    path, replicas = log.journal.replicas(3)
    data = await sims[replicas[0]].read(path, 0, 1 << 20)
    sims[replicas[0]].rot(path, data.index(b"acknowledged 0"))
    found = await open_log(sims, NO_PREALLOCATION)
    assert found.chain.end == 7
    assert await found.contents() == held


async def test_a_slow_disk_is_not_given_up_for_a_long_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call for all of it would miss the deadline there."""
    sims = await new_disks(14)
    log = await start_log(sims, JournalOptions(size_bytes=64 << 20, file_bytes=64 << 20, preallocate_bytes=0))
    for number in range(1, 21):
        await log.journal.append(number, [entry(b"%d" % number, bytes(700_000))])
    held = await log.contents()
    whole = SimDisk.read

    async def read(disk: SimDisk, path: str, offset: int, length: int) -> bytes:
        if length > 5_000_000:
            raise DiskFailed("no answer within the deadline")
        return await whole(disk, path, offset, length)

    monkeypatch.setattr(SimDisk, "read", read)
    found = await open_log(sims, JournalOptions(size_bytes=64 << 20, file_bytes=64 << 20))
    assert not found.disks.failures
    assert await found.contents() == held
