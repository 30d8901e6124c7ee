import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from small_store import (
    SMALL,
    STRIPE_BYTES,
    body_of,
    catalog_of,
    core_of,
    faults_of,
    flip,
    journal_files,
    make_store,
    put_all,
    read,
    shard_files,
)

from couchestord.errors import DiskLocked, JournalDamaged, NotAStore, TooFewDisks, Unavailable
from couchestord.io.catalog.catalog import FILE_SUFFIXES, dump
from couchestord.store.door import ObjectStore
from couchestord.store.opening import CATALOG_NAME
from couchestord.store.recover import SET_ASIDE, recover_catalog

BODIES = {b"%d" % number: body_of(20_000, number) for number in range(30)} | {b"long": body_of(20 * STRIPE_BYTES)}


async def filled(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """A store with a snapshot and records behind it; its rows after a start, which seals what was open."""
    await make_store(path)
    async with ObjectStore.open(path, SMALL) as store:
        await put_all(store, BODIES)
        await store.destage()
        await store.put("box", b"more", b"in the journal")
    async with ObjectStore.open(path, SMALL):
        pass
    return dump(catalog_of(path))


def catalog_files(path: Path, end: str = "") -> list[Path]:
    """The files of the catalog that hold anything."""
    names = [Path(f"{catalog_of(path)}{suffix}{end}") for suffix in FILE_SUFFIXES if suffix != "-shm"]
    return [name for name in names if name.exists()]


@pytest.mark.parametrize("gone", [None, 3])
async def test_recovered_catalog_is_equal(tmp_path: Path, gone: int | None) -> None:
    kept = await filled(tmp_path)
    old = {file.name + SET_ASIDE: file.read_bytes() for file in catalog_files(tmp_path)}
    if gone is not None:
        shutil.rmtree(tmp_path / f"disk-{gone}")
    recovered = await recover_catalog(tmp_path, replace(SMALL, services=True))
    assert dump(catalog_of(tmp_path)) == kept
    assert recovered.sequence == kept["state"][0][2]
    assert 0 < recovered.replayed_records < 20
    assert recovered.missing_disks == (0 if gone is None else 1)
    assert recovered.set_aside == f"{catalog_of(tmp_path)}{SET_ASIDE}"
    assert {file.name: file.read_bytes() for file in catalog_files(tmp_path, SET_ASIDE)} == old
    assert dump(Path(recovered.set_aside)) is not None
    assert faults_of(tmp_path) == []
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert core_of(store).started.rebuilt is None
        for key, body in BODIES.items():
            assert await read(store, key) == body


async def test_twice(tmp_path: Path) -> None:
    kept = await filled(tmp_path)
    for _ in range(2):
        await recover_catalog(tmp_path, SMALL)
        assert dump(catalog_of(tmp_path)) == kept


async def test_catalog_that_was_not_there(tmp_path: Path) -> None:
    kept = await filled(tmp_path)
    for file in tmp_path.glob("catalog.sqlite*"):
        file.unlink()
    assert (await recover_catalog(tmp_path, SMALL)).set_aside is None
    assert dump(catalog_of(tmp_path)) == kept


async def test_catalog_that_is_not_trusted(tmp_path: Path) -> None:
    kept = await filled(tmp_path)
    catalog_of(tmp_path).write_bytes(os.urandom(50_000))
    await recover_catalog(tmp_path, SMALL)
    assert dump(catalog_of(tmp_path)) == kept


async def test_put_back_when_it_fails(tmp_path: Path) -> None:
    """Nothing of the failed try stays beside the old catalog: a WAL that is not its own would be replayed into it."""
    kept = await filled(tmp_path)
    for file in shard_files(tmp_path):
        for at in range(4096, file.stat().st_size - 8, 1024):
            flip(file, at, 8)
    bytes_before = {file: file.read_bytes() for file in catalog_files(tmp_path)}
    for _ in range(2):
        with pytest.raises(JournalDamaged):
            await recover_catalog(tmp_path, SMALL)
        assert {file: file.read_bytes() for file in catalog_files(tmp_path)} == bytes_before
        assert catalog_files(tmp_path, SET_ASIDE) == []
    assert dump(catalog_of(tmp_path)) == kept


class Killed(BaseException):
    """What the process would do next it does not."""


async def test_cut_off_and_called_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog that was set aside may be all there is: whatever was begun, another attempt has it back."""
    kept = await filled(tmp_path)
    for file in shard_files(tmp_path):
        for at in range(4096, file.stat().st_size - 8, 1024):
            flip(file, at, 8)
    bytes_before = {file: file.read_bytes() for file in catalog_files(tmp_path)}
    changes_count, is_cut = 0, True
    while is_cut:
        left, is_cut = changes_count, False

        def changing(real: Callable[..., object], path: object, *arguments: object, **how: object) -> object:
            nonlocal left, is_cut
            if CATALOG_NAME in str(path):
                is_cut = is_cut or not left
                if is_cut:
                    raise Killed
                left -= 1
            return real(path, *arguments, **how)

        for name in ("replace", "unlink", "rename"):
            monkeypatch.setattr(os, name, partial(changing, getattr(os, name)))
        with pytest.raises((Killed, JournalDamaged)):
            await recover_catalog(tmp_path, SMALL)
        monkeypatch.undo()
        with pytest.raises(JournalDamaged):
            await recover_catalog(tmp_path, SMALL)
        assert {file: file.read_bytes() for file in catalog_files(tmp_path)} == bytes_before
        changes_count += 1
    assert changes_count > 10
    assert dump(catalog_of(tmp_path)) == kept


async def test_put_back_without_a_wal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old catalog had no WAL, the failed try made one."""
    kept = await filled(tmp_path)
    Path(f"{catalog_of(tmp_path)}-wal").unlink()
    assert dump(catalog_of(tmp_path)) == kept
    for suffix in ("-wal", "-shm"):
        Path(f"{catalog_of(tmp_path)}{suffix}").unlink(missing_ok=True)

    async def fail(*_: object) -> None:
        raise JournalDamaged("after the replay, as the test wants it")

    monkeypatch.setattr("couchestord.store.start._renew_tail", fail)
    with pytest.raises(JournalDamaged, match="after the replay"):
        await recover_catalog(tmp_path, SMALL)
    monkeypatch.undo()
    assert not Path(f"{catalog_of(tmp_path)}-wal").exists()
    assert dump(catalog_of(tmp_path)) == kept
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert core_of(store).started.rebuilt is None
        assert await read(store, b"long") == BODIES[b"long"]


async def test_stale_leftovers_of_an_older_recovery(tmp_path: Path) -> None:
    kept = await filled(tmp_path)
    Path(f"{catalog_of(tmp_path)}-wal").unlink()
    Path(f"{catalog_of(tmp_path)}-wal{SET_ASIDE}").write_bytes(b"of an older one")
    for file in shard_files(tmp_path):
        file.unlink()
    with pytest.raises(JournalDamaged):
        await recover_catalog(tmp_path, SMALL)
    assert not Path(f"{catalog_of(tmp_path)}-wal").exists()
    assert dump(catalog_of(tmp_path)) == kept


async def test_refused_while_a_daemon_runs(tmp_path: Path) -> None:
    await filled(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        names = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
        with pytest.raises(DiskLocked):
            await recover_catalog(tmp_path, SMALL)
        assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == names
        await store.put("box", b"after", b"body")
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert await read(store, b"after") == b"body"
        assert core_of(store).started.rebuilt is None


async def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(NotAStore):
        await recover_catalog(tmp_path, SMALL)
    assert list(tmp_path.iterdir()) == []


async def test_too_few_disks_to_reach_back(tmp_path: Path) -> None:
    kept = await filled(tmp_path)
    away = [tmp_path / f"disk-{index}" for index in (0, 1, 2)]
    for disk in away:
        disk.rename(f"{disk}.away")
    with pytest.raises(TooFewDisks, match="bring them back"):
        await recover_catalog(tmp_path, SMALL)
    for disk in away:
        Path(f"{disk}.away").rename(disk)
    assert journal_files(tmp_path)
    async with ObjectStore.open(tmp_path, SMALL) as store:
        assert core_of(store).started.rebuilt is None
    assert dump(catalog_of(tmp_path))["entry"] == kept["entry"]


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_file_system_that_refuses_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """Read-only, or of another user: whoever asks, the catalog stays as it is."""
    kept = await filled(tmp_path)
    catalog = catalog_of(tmp_path)
    if not is_there:
        for file in catalog_files(tmp_path):
            file.unlink()

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patch:
        for name in ("unlink", "chmod", "replace"):
            patch.setattr(os, name, refuse)
        with pytest.raises(Unavailable, match=f"{tmp_path} cannot be opened: .*Read-only"):
            await recover_catalog(tmp_path, SMALL)
        with pytest.raises(Unavailable, match=f"{tmp_path} cannot be opened: .*Read-only"):
            async with ObjectStore.open(tmp_path, SMALL):
                pass
    async with ObjectStore.open(tmp_path, SMALL):
        pass
    assert dump(catalog) == kept
