"""Small bodies of which no replica is left: the journal is trimmed behind them all the same, and writes go on."""

from dataclasses import replace
from pathlib import Path

import pytest
from small_store import JOURNAL, SMALL, body_of, core_of, flip, journal_files, look, new_store, read

from couchestord.ec import losing
from couchestord.errors import DataLost, JournalFull
from couchestord.store.door import ObjectStore
from couchestord.store.fsck import Finding, check_store

SMALL_JOURNAL = replace(JOURNAL, size_bytes=2 << 20, file_bytes=256 << 10)
BODY_BYTES = 100_000


def rot(path: Path, store: ObjectStore, record: int) -> None:
    """The body of a record rots in all replicas."""
    journal = core_of(store).journal
    name, replicas = journal.replicas(record)
    offset, size = journal._find(record).place(record)
    for index in replicas:
        flip(path / f"disk-{index}" / name, offset + size - 1)


async def overfill(store: ObjectStore) -> None:
    for number in range(3 * SMALL_JOURNAL.size_bytes // BODY_BYTES):
        await store.put("box", b"other%d" % number, body_of(BODY_BYTES))
        if number % 2:
            await store.destage()


async def test_a_body_that_rotted_everywhere_ends_no_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(SMALL, journal=SMALL_JOURNAL)
    async with new_store(tmp_path, journal=SMALL_JOURNAL) as store:
        await store.put("box", b"key", body_of(1000))
        [extent] = (await store.describe("box", b"key"))["extents"]
        rot(tmp_path, store, extent["journal_record"])
        with pytest.raises(JournalFull):
            await overfill(store)
        monkeypatch.setattr(losing, "KEPT_S", 0.0)
        core_of(store).disks.fail(0, "away for a while")
        await store.destage()
        with pytest.raises(JournalFull):
            await overfill(store)
        await look(store)
        await store.destage()
        await overfill(store)
        with pytest.raises(DataLost, match="box/b'key': nowhere"):
            await read(store, b"key")
        assert (await store.describe("box", b"key"))["extents"][0]["lost"]
        status = await store.status()
        assert status["jobs"]["destage"]["lost_extents"] == 1
        [reason] = [reason for reason in status["health"]["reasons"] if "lost" in reason]
        assert reason == "bytes of some objects are lost: fsck names them, delete them or write them again"
    lost = [finding for finding in await check_store(tmp_path, options) if finding.severity == "lost"]
    assert lost == [Finding("lost", "box/key", "its bytes are nowhere")]
    async with ObjectStore.open(tmp_path, options) as store:
        await store.put("box", b"key", b"again")
        assert await read(store, b"key") == b"again"
        assert not core_of(store).catalog.reading.has_lost()


async def test_bodies_that_the_log_lost_end_no_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog names records in front of a gap in the log."""
    options = replace(SMALL, journal=SMALL_JOURNAL)
    async with new_store(tmp_path, journal=SMALL_JOURNAL) as store:
        await store.put("box", b"key", body_of(1000))
    for file in journal_files(tmp_path):
        file.unlink()
    monkeypatch.setattr(losing, "KEPT_S", 0.0)
    async with ObjectStore.open(tmp_path, options) as store:
        with pytest.raises(DataLost, match="box/b'key': journal record"):
            await read(store, b"key")
        await overfill(store)
        with pytest.raises(DataLost, match="box/b'key': nowhere"):
            await read(store, b"key")
