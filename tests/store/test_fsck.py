import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace
from small_store import (
    SMALL,
    STRIPE_BYTES,
    body_of,
    catalog_of,
    core_of,
    fingerprints,
    flip,
    journal_files,
    make_store,
    put_all,
    shard_files,
)

from couchestord.errors import DiskLocked, NotAStore
from couchestord.io.recovery import chain, scan
from couchestord.store.door import ObjectStore
from couchestord.store.fsck import Finding, check_store
from couchestord.store.opening import load_directories

BODIES = {b"%d" % number: body_of(20_000, number) for number in range(30)} | {b"long": body_of(20 * STRIPE_BYTES)}
INLINE = {b"inline/%d" % number: body_of(30_000, (number, "inline")) for number in range(60)}
SHARD_BYTES = STRIPE_BYTES // 4
STRIPE_PAGES = 1 + SHARD_BYTES // 4096


async def filled(path: Path) -> Path:
    """Bodies in stripes, bodies in the journal, a snapshot, several segments and several journal files."""
    await make_store(path)
    async with ObjectStore.open(path, SMALL) as store:
        await put_all(store, BODIES)
        await store.destage()
        await put_all(store, INLINE)
        await store.delete("box", b"inline/3")
    return path


async def findings(path: Path) -> list[Finding]:
    """What fsck finds; nothing on the disks is another afterwards, and it finds the same again."""
    before = fingerprints([path])
    found = await check_store(path, SMALL)
    after = fingerprints([path])
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    # the -shm of a store that was killed is memory that readers share, and holds nothing
    assert {name for name in changed if not (name.name.endswith("-shm") and name in before)} == set()
    assert await check_store(path, SMALL) == found
    return found


def shards_of(path: Path, key_segment: int) -> list[Path]:
    return [file for file in shard_files(path) if int(file.name[:16], 16) == key_segment]


async def segment_of(path: Path, key: bytes) -> tuple[int, int]:
    """(segment, page of the first stripe) of an object."""
    async with ObjectStore.open(path, SMALL) as store:
        extent = (await store.describe("box", key))["extents"][0]
    return extent["segment"], extent["stripe"]


async def test_clean_store(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    await filled(tmp_path)
    assert await findings(tmp_path) == []
    assert await check_store(tmp_path, SMALL, lambda done, total: seen.append((done, total))) == []
    total = seen[-1][1]
    assert seen == [(done, total) for done in range(total + 1)]
    assert total >= 2


async def test_new_store_is_clean(tmp_path: Path) -> None:
    await ObjectStore.create(tmp_path, SMALL)
    assert [(found.severity, found.what[:10]) for found in await findings(tmp_path)] == [("note", "is missing")]
    async with ObjectStore.open(tmp_path, SMALL):
        pass
    assert await findings(tmp_path) == []


async def test_cut_off_streams_are_no_findings(tmp_path: Path) -> None:
    await filled(tmp_path)

    async def cut() -> AsyncIterator[bytes]:
        yield body_of(7 * STRIPE_BYTES)
        raise OSError("hung up")

    async with ObjectStore.open(tmp_path, SMALL) as store:
        with pytest.raises(OSError, match="hung up"):
            await store.put("box", b"cut", cut())
    assert await findings(tmp_path) == []


async def test_stripe_that_a_crash_left_on_some_disks_is_no_finding(tmp_path: Path) -> None:
    """Behind live data, in a segment whose end nobody knows."""
    await make_store(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await store.put("box", b"kept", body_of(7 * STRIPE_BYTES))
        await store.put("box", b"cut", body_of(7 * STRIPE_BYTES))
        # as if nobody had been told of it
        await store.delete("box", b"cut")
    segment, _ = await segment_of(tmp_path, b"kept")
    for file in shards_of(tmp_path, segment)[:4]:
        os.truncate(file, file.stat().st_size - SHARD_BYTES - 100)
    assert await findings(tmp_path) == []


async def test_refused_where_there_is_nothing_or_a_daemon(tmp_path: Path) -> None:
    with pytest.raises(NotAStore):
        await check_store(tmp_path, SMALL)
    assert list(tmp_path.iterdir()) == []
    await filled(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL):
        with pytest.raises(DiskLocked):
            await check_store(tmp_path, SMALL)
    assert await findings(tmp_path) == []


@pytest.mark.parametrize("how", ["gone", "empty", "damaged"])
async def test_disk_that_is_missing(tmp_path: Path, how: str) -> None:
    await filled(tmp_path)
    if how == "damaged":
        flip(tmp_path / "disk-2/superblock", 30)
    else:
        shutil.rmtree(tmp_path / "disk-2")
        if how == "empty":
            (tmp_path / "disk-2").mkdir()
            (tmp_path / "disk-2/lock").touch()
    found = await findings(tmp_path)
    assert {finding.severity for finding in found} == {"short"}
    assert "disk 2" in {finding.where for finding in found}
    assert [finding for finding in found if finding.where.startswith("segment")]


async def test_three_disks_missing(tmp_path: Path) -> None:
    await filled(tmp_path)
    for index in (0, 1, 2):
        shutil.rmtree(tmp_path / f"disk-{index}")
    lost = [finding for finding in await findings(tmp_path) if finding.severity == "lost"]
    assert any(finding.what == "3 good shards, 4 are needed" for finding in lost)


def rot_payload(file: Path, page: int) -> None:
    flip(file, (page + 1) * 4096 + 2)


def rot_stripe_header(file: Path, page: int) -> None:
    flip(file, page * 4096 + 12)


def rot_segment_header(file: Path, page: int) -> None:
    flip(file, 40)


def cut_short(file: Path, page: int) -> None:
    with file.open("r+b") as opened:
        opened.truncate((page + 1) * 4096 + 500)


def remove(file: Path, page: int) -> None:
    file.unlink()


@pytest.mark.parametrize("damage", [rot_payload, rot_stripe_header, rot_segment_header, cut_short, remove])
async def test_one_shard_file_damaged(tmp_path: Path, damage: Callable[[Path, int], None]) -> None:
    await filled(tmp_path)
    segment, page = await segment_of(tmp_path, b"long")
    file = shards_of(tmp_path, segment)[4]
    damage(file, page)
    [finding] = await findings(tmp_path)
    assert (finding.severity, finding.where) == ("short", f"segment {segment}, shard {file.name[17:]}")


async def test_shards_of_two_files_swapped(tmp_path: Path) -> None:
    await filled(tmp_path)
    segment, _ = await segment_of(tmp_path, b"long")
    one, two = shards_of(tmp_path, segment)[:2]
    kept = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(kept)
    found = await findings(tmp_path)
    assert [(finding.severity, finding.where) for finding in found] == [
        ("short", f"segment {segment}, shard {index}") for index in sorted(file.name[17:] for file in (one, two))
    ]


async def test_stripe_with_too_few_good_shards(tmp_path: Path) -> None:
    await filled(tmp_path)
    segment, page = await segment_of(tmp_path, b"long")
    for file in shards_of(tmp_path, segment)[:3]:
        rot_payload(file, page + STRIPE_PAGES)
    found = await findings(tmp_path)
    assert [finding.where for finding in found if finding.severity == "lost"] == [
        f"segment {segment}, stripe {page + STRIPE_PAGES}"
    ]
    assert len([finding for finding in found if finding.severity == "short"]) == 3


async def test_stripe_of_which_no_header_is_left(tmp_path: Path) -> None:
    await filled(tmp_path)
    segment, page = await segment_of(tmp_path, b"long")
    for file in shards_of(tmp_path, segment):
        rot_stripe_header(file, page)
    lost = [finding for finding in await findings(tmp_path) if finding.severity == "lost"]
    assert [finding.where for finding in lost] == [f"segment {segment}, stripe {page}"]


def copies_with(path: Path, body: bytes) -> list[Path]:
    return [file for file in journal_files(path) if body in file.read_bytes()]


async def test_record_rotten_on_one_disk(tmp_path: Path) -> None:
    await filled(tmp_path)
    body = INLINE[b"inline/7"]
    file = copies_with(tmp_path, body)[1]
    flip(file, file.read_bytes().find(body) + 5)
    found = await findings(tmp_path)
    assert {finding.severity for finding in found} == {"short"}
    assert {finding.where for finding in found} == {
        f"journal/{file.name} on {file.parent.parent}",
        f"journal/{file.name}",
    }


@pytest.mark.parametrize("how", ["gone", "cut", "header"])
async def test_journal_file_short_of_a_copy(tmp_path: Path, how: str) -> None:
    await filled(tmp_path)
    file = copies_with(tmp_path, INLINE[b"inline/7"])[0]
    if how == "gone":
        file.unlink()
    elif how == "cut":
        with file.open("r+b") as opened:
            opened.truncate(file.stat().st_size // 3)
    else:
        flip(file, 16)
    found = await findings(tmp_path)
    assert Finding("short", f"journal/{file.name}", "lies on 2 disks, 3 are needed") in found
    assert {finding.severity for finding in found} == {"short"}


async def test_records_that_are_on_no_disk(tmp_path: Path) -> None:
    await filled(tmp_path)
    body = INLINE[b"inline/7"]
    for file in copies_with(tmp_path, body):
        flip(file, file.read_bytes().find(body) + 5)
    lost = [finding for finding in await findings(tmp_path) if finding.severity == "lost"]
    assert len(lost) == 1
    assert lost[0].where == "journal"
    assert "were durable and are on no disk that is here" in lost[0].what


async def with_an_old_file_back(path: Path) -> list[tuple[int, int]]:
    """A store that was trimmed, to which a disk that was away brings its oldest journal file back; the records
    [from, before) that lie in no file between that one and the others.
    """
    await filled(path)
    old = min(journal_files(path), key=lambda file: (file.name.split("-")[1], file.name))
    brought = old.read_bytes()
    async with ObjectStore.open(path, SMALL) as store:
        await core_of(store).destage_all()
        await put_all(store, {b"inline/after": INLINE[b"inline/7"]})
        assert core_of(store).journal.first_sequence != 1
    assert not old.exists()
    old.write_bytes(brought)
    disks = await load_directories(path, SMALL)
    log_chain = chain(await scan(disks, indexed=False))
    disks.close()
    return list(log_chain.damage)


def lost(found: list[Finding]) -> list[str]:
    return [f"{finding.where}: {finding.what}" for finding in found if finding.severity == "lost"]


async def test_records_that_the_snapshot_holds_are_not_lost(tmp_path: Path) -> None:
    [(low, high)] = await with_an_old_file_back(tmp_path)
    assert high - low > len(INLINE) // 2, "there is a gap behind the old file"
    assert lost(await findings(tmp_path)) == []


async def test_of_a_gap_that_is_longer_than_the_snapshot_the_rest_is_lost(tmp_path: Path) -> None:
    [(low, high)] = await with_an_old_file_back(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        root = core_of(store).disks.slot.snapshot
        assert root is not None
        assert low < root.sequence < high
        # what the snapshot holds ends in the midst of the gap
        await core_of(store).disks.set_snapshot(replace(root, sequence=high - 4))
    assert lost(await findings(tmp_path)) == [
        f"journal: records {high - 3} to {high - 1} were durable and are on no disk that is here"
    ]


async def test_catalog_missing_or_damaged_is_a_note(tmp_path: Path) -> None:
    await filled(tmp_path)
    await segment_of(tmp_path, b"long")
    Path(f"{catalog_of(tmp_path)}-wal").unlink()
    flip(catalog_of(tmp_path), 3 * 4096 + 50)
    [finding] = await findings(tmp_path)
    assert (finding.severity, finding.where) == ("note", str(catalog_of(tmp_path)))
    assert "fail their checksum, the first is page 3; the next start makes it again" in finding.what
    for file in tmp_path.glob("catalog.sqlite*"):
        file.unlink()
    [finding] = await findings(tmp_path)
    assert (finding.severity, finding.what) == ("note", "is missing; the next start makes it again from the disks")


async def test_catalog_that_contradicts_itself(tmp_path: Path) -> None:
    await filled(tmp_path)
    with closing(sqlite3.connect(catalog_of(tmp_path))) as connection:
        connection.execute("update segment set live_bytes=live_bytes+1 where id=(select min(id) from segment)")
        connection.commit()
    Path(f"{catalog_of(tmp_path)}.sums").unlink()
    found = await findings(tmp_path)
    assert any("segments whose live bytes are miscounted" in finding.what for finding in found)


async def test_catalog_ahead_of_the_log(tmp_path: Path) -> None:
    await filled(tmp_path)
    newest = max(file.name for file in journal_files(tmp_path))
    for file in journal_files(tmp_path):
        if file.name == newest:
            file.unlink()
    found = await findings(tmp_path)
    assert any(finding.severity == "note" and "the log at" in finding.what for finding in found)


async def test_snapshot_that_cannot_be_read(tmp_path: Path) -> None:
    """No extent names it, and a lost catalog would need it."""
    await filled(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await store.put("box", b"more", b"")
        await core_of(store).jobs.snapshotter.take()
        root = core_of(store).disks.slot.snapshot
        assert root is not None
        protected = core_of(store).catalog.reading.segment(root.segment)
        assert protected is not None
        assert protected.live_bytes == 0
    files = shards_of(tmp_path, root.segment)
    rot_payload(files[0], root.stripe)
    [finding] = await findings(tmp_path)
    assert (finding.severity, finding.where[:8]) == ("short", "segment ")
    for file in files[1:5]:
        rot_payload(file, root.stripe)
    assert "snapshot of the catalog" in {finding.where for finding in await findings(tmp_path)}
