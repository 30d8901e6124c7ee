import gc
import os
import shutil
import sqlite3
import threading
import weakref
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio.testing
from small_store import SMALL, STRIPE_BYTES, body_of, core_of, fingerprints, flip, make_store, put_all, read

from couchestord.cache import CacheConfig
from couchestord.errors import (
    AccessDenied,
    ConfigError,
    DiskLocked,
    ForeignDisk,
    NoSuchKey,
    NotAStore,
    StoreExists,
    TooFewDisks,
    UnknownFormat,
)
from couchestord.store.door import ObjectStore
from couchestord.store.opening import disk_folders, folders_there, load_directories

BODIES = {b"small": b"few bytes", b"long": body_of(6 * STRIPE_BYTES)}


async def opens(path: Path) -> None:
    async with ObjectStore.open(path, SMALL):
        pass


def test_folders_of_disks(tmp_path: Path) -> None:
    assert disk_folders(tmp_path, SMALL) == [tmp_path / f"disk-{index}" for index in range(6)]
    for name in ("disk-7", "disk-10", "disk-x", "disk-", "other"):
        (tmp_path / name).mkdir()
    assert [path.name for path in disk_folders(tmp_path, SMALL)][6:] == ["disk-7", "disk-10"]
    with pytest.raises(ConfigError, match="cannot look at"):
        disk_folders(tmp_path / ("a" * 300), SMALL)
    named = (tmp_path / "a", tmp_path / "b")
    assert disk_folders(tmp_path, replace(SMALL, disks=named)) == list(named)


async def test_store_whose_making_was_cut_off_says_so_and_is_made_again(tmp_path: Path) -> None:
    await ObjectStore.create(tmp_path, SMALL)
    for index in range(3, 6):
        (tmp_path / f"disk-{index}" / "superblock").unlink()
    with pytest.raises(TooFewDisks, match=f"couchestord init --data {tmp_path}"):
        await opens(tmp_path)
    await make_store(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await put_all(store, BODIES)
        assert store.health().state == "healthy"
    with pytest.raises(StoreExists):
        await ObjectStore.create(tmp_path, SMALL)


async def test_folders_named_by_hand(tmp_path: Path) -> None:
    options = replace(SMALL, disks=tuple(tmp_path / "mnt" / letter for letter in "abcdef"))
    await make_store(tmp_path / "data", options)
    async with ObjectStore.open(tmp_path / "data", options) as store:
        await put_all(store, BODIES)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted(
        path.name for path in (tmp_path / "data").glob("catalog.sqlite*")
    )
    # the order does not matter: each disk says which one it is
    async with ObjectStore.open(tmp_path / "data", replace(options, disks=options.disks[::-1])) as store:
        for key, body in BODIES.items():
            assert await read(store, key) == body


async def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(NotAStore, match="couchestord init"):
            await opens(path)
    assert list(tmp_path.iterdir()) == []


async def test_empty_folders_are_no_store(tmp_path: Path) -> None:
    for index in range(6):
        (tmp_path / f"disk-{index}").mkdir()
    with pytest.raises(NotAStore):
        await opens(tmp_path)
    assert not list(tmp_path.glob("disk-*/superblock"))


async def test_store_is_not_made_over_another(tmp_path: Path) -> None:
    await make_store(tmp_path)
    for index in range(5):
        shutil.rmtree(tmp_path / f"disk-{index}")
    before = fingerprints([tmp_path / "disk-5"])
    with pytest.raises(StoreExists):
        await ObjectStore.create(tmp_path, SMALL)
    assert fingerprints([tmp_path / "disk-5"]) == before
    assert not list(tmp_path.glob("disk-[0-4]/superblock"))


async def test_a_disk_that_hangs_whoever_looks_at_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_store(tmp_path)
    hung, real = tmp_path / "disk-3", os.stat
    thawed = threading.Event()

    def stat(path: str | Path, *arguments: Any, **how: Any) -> os.stat_result:
        if str(path).startswith(str(hung)):
            thawed.wait(30)  # longer than anything here waits
        return real(path, *arguments, **how)

    monkeypatch.setattr(os, "stat", stat)
    try:
        folders = disk_folders(tmp_path, SMALL)
        assert await folders_there([*folders, tmp_path / "none"], tmp_path, 0.5) == folders, "it may be one"
        disks = await load_directories(tmp_path, replace(SMALL, disk_deadline_s=2.0))
        disks.close()
        assert list(disks.failures) == [3]
    finally:
        thawed.set()


async def test_folders_and_files_are_the_owners_alone(tmp_path: Path) -> None:
    await make_store(tmp_path / "data")
    async with ObjectStore.open(tmp_path / "data", SMALL) as store:
        await put_all(store, BODIES)
        await store.destage()
        for path in (tmp_path / "data", *(tmp_path / "data").rglob("*")):
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


async def test_second_opener_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    await make_store(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        for _ in range(2):
            with pytest.raises(DiskLocked):
                await opens(tmp_path)
        await put_all(store, BODIES)
        assert await read(store, b"long") == BODIES[b"long"]
    await opens(tmp_path)


@pytest.mark.parametrize("gone", [(0,), (5,), (1, 4)])
async def test_starts_with_up_to_m_disks_missing(tmp_path: Path, gone: tuple[int, ...]) -> None:
    await make_store(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await put_all(store, BODIES)
    for index in gone:
        shutil.rmtree(tmp_path / f"disk-{index}")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert set(core_of(store).disks.failures) == set(gone)
        assert store.health().state == "degraded"
        for key, body in BODIES.items():
            assert await read(store, key) == body
        await put_all(store, {b"more/" + key: body for key, body in BODIES.items()})
        assert await read(store, b"more/long") == BODIES[b"long"]
    for index in gone:
        assert not (tmp_path / f"disk-{index}").exists()


async def test_too_many_disks_missing(tmp_path: Path) -> None:
    await make_store(tmp_path)
    for index in range(3):
        (tmp_path / f"disk-{index}").rename(tmp_path / f"away-{index}")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert store.health().state == "unhealthy"
        with pytest.raises(TooFewDisks):
            await store.put("box", b"long", BODIES[b"long"])
        with pytest.raises(TooFewDisks, match="3 of 6 disks were missing at the start"):
            await store.put("box", b"small", b"on three disks")
    for index in range(3):
        (tmp_path / f"away-{index}").rename(tmp_path / f"disk-{index}")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await store.put("box", b"small", b"on six disks")
        assert [entry.key for entry in (await store.list("box")).entries] == [b"small"]


async def test_disk_with_a_damaged_superblock_counts_as_missing(tmp_path: Path) -> None:
    await make_store(tmp_path)
    flip(tmp_path / "disk-3/superblock", 20)
    before = fingerprints([tmp_path / "disk-3"])
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert set(core_of(store).disks.failures) == {3}
        await put_all(store, BODIES)
    assert fingerprints([tmp_path / "disk-3"]) == before


async def test_disks_of_two_stores_are_refused(tmp_path: Path) -> None:
    await make_store(tmp_path / "one")
    await make_store(tmp_path / "two")
    shutil.rmtree(tmp_path / "one/disk-2")
    shutil.copytree(tmp_path / "two/disk-2", tmp_path / "one/disk-2")
    before = fingerprints([tmp_path / "one/disk-2"])
    with pytest.raises(ForeignDisk):
        await opens(tmp_path / "one")
    assert fingerprints([tmp_path / "one/disk-2"]) == before
    shutil.rmtree(tmp_path / "one/disk-2")
    await opens(tmp_path / "one")


async def test_one_disk_twice_is_refused(tmp_path: Path) -> None:
    await make_store(tmp_path)
    shutil.copytree(tmp_path / "disk-2", tmp_path / "disk-6")
    with pytest.raises(ForeignDisk, match="one is a copy"):
        await opens(tmp_path)
    shutil.rmtree(tmp_path / "disk-6")
    await opens(tmp_path)


async def test_root_leaves_nothing_in_the_store_of_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner's daemon could not read it, and would give the disks up."""
    await make_store(tmp_path)
    if os.geteuid() == 0:
        os.chown(tmp_path / "disk-0/superblock", 65534, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    before = fingerprints([tmp_path / "disk-0"])
    with pytest.raises(AccessDenied, match="run this as that user"):
        await opens(tmp_path)
    assert fingerprints([tmp_path / "disk-0"]) == before


async def test_disks_that_changed_places_are_known(tmp_path: Path) -> None:
    await make_store(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        await put_all(store, BODIES)
    (tmp_path / "disk-0").rename(tmp_path / "aside")
    (tmp_path / "disk-5").rename(tmp_path / "disk-0")
    (tmp_path / "aside").rename(tmp_path / "disk-5")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        for key, body in BODIES.items():
            assert await read(store, key) == body


async def test_locks_are_given_back_when_the_start_fails(tmp_path: Path) -> None:
    await make_store(tmp_path)
    shutil.copytree(tmp_path / "disk-2", tmp_path / "disk-6")
    for _ in range(3):
        with pytest.raises(ForeignDisk):
            await opens(tmp_path)


async def test_catalog_of_a_newer_program_is_left_untouched(tmp_path: Path) -> None:
    await make_store(tmp_path)
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite")) as connection:
        connection.execute("update state set schema_version=999")
        connection.commit()
    for path in tmp_path.glob("catalog.sqlite.sums"):
        path.unlink()
    before = fingerprints([tmp_path])
    with pytest.raises(UnknownFormat, match="Use a newer couchestord"):
        await opens(tmp_path)
    assert {path: total for path, total in fingerprints([tmp_path]).items() if path.suffix == ".sqlite"} == {
        path: total for path, total in before.items() if path.suffix == ".sqlite"
    }


@pytest.mark.parametrize("services", [False, True])
async def test_closed_store_is_freed(tmp_path: Path, services: bool) -> None:
    """With its disks and its caches, while the loop that it ran in goes on."""
    path = await make_store(tmp_path / "data")
    cache = CacheConfig(l2_path=tmp_path / "l2", l2_bytes=8 << 20, l2_shared_device=True)

    async def use() -> dict[str, weakref.ref[object]]:
        async with ObjectStore.open(path, replace(SMALL, cache=cache, services=services)) as store:
            await put_all(store, BODIES)
            await store.destage()
            for key, body in BODIES.items():
                assert await read(store, key) == body
            with pytest.raises(NoSuchKey):
                await read(store, b"none")
            core = core_of(store)
            parts = (store, core.catalog, core.writer, core.cache, core.disks, core.disks.get(0))
            return {type(part).__name__: weakref.ref(part) for part in parts}

    parts = await use()
    await trio.testing.wait_all_tasks_blocked()
    gc.collect()
    assert [name for name, part in parts.items() if part() is not None] == []
