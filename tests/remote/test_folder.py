"""What is a folder's own: what lies in it, what syncs, and what happens when it fails."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest
import trio

import couchestord.remote.folder
from couchestord.clock import SystemClock
from couchestord.errors import RemoteDenied, RemoteRefused, RemoteUnavailable
from couchestord.remote.folder import FolderBackend


def backend_in(folder: Path, **settings: float) -> FolderBackend:
    folder.mkdir(exist_ok=True)
    return FolderBackend(folder, SystemClock().random_bytes, deadline_s=settings.get("deadline_s", 30.0))


async def test_files_are_private_and_nothing_else_is_left(tmp_path: Path) -> None:
    backend = backend_in(tmp_path / "bucket")
    await backend.put_new("a/b", [b"x"])
    found = {path.relative_to(tmp_path / "bucket"): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*/**/*")}
    assert found == {Path(".new"): 0o700, Path("a"): 0o700, Path("a/b"): 0o600}
    (tmp_path / "bucket" / ".new" / "what-a-crash-left").touch()
    assert [stored.key for stored in (await backend.list("")).objects] == ["a/b"]


async def test_what_a_kill_left_goes_once_nobody_can_be_at_it(tmp_path: Path) -> None:
    folder = tmp_path / "bucket"
    backend = backend_in(folder)
    new = folder / ".new"
    new.mkdir()
    for name, age_s in (("of-a-kill", 7200), ("of-a-store-that-runs", 1800)):
        (new / name).write_bytes(b"x" * 100)
        os.utime(new / name, (0.0, time.time() - age_s))
    (new / "no-file").mkdir()
    os.utime(new / "no-file", (0.0, 0.0))
    await backend.list("")
    assert len(list(new.iterdir())) == 3, "who only reads leaves it alone"
    await backend.put_new("a", [b"x"])
    assert {path.name for path in new.iterdir()} == {"of-a-store-that-runs", "no-file"}
    assert await backend.get("a", 0, 1) == b"x"


async def test_a_folder_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    """A file system that is mounted later keeps no daemon from starting."""
    folder = tmp_path / "later"
    backend = FolderBackend(folder, SystemClock().random_bytes)
    with pytest.raises(RemoteUnavailable):
        await backend.put_new("a", [b"x"])
    folder.write_bytes(b"a file")
    with pytest.raises(RemoteUnavailable):
        await backend.list("")
    folder.unlink()
    folder.mkdir()
    await backend.put_new("a", [b"x"])
    assert await backend.get("a", 0, 1) == b"x"


async def test_all_is_synced_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file, then every folder on the way to it."""
    synced: list[str] = []
    sizes: list[int] = []
    sync = os.fsync

    def noted(number: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{number}"))
        sizes.append(os.fstat(number).st_size)
        sync(number)

    backend = backend_in(tmp_path / "bucket")
    monkeypatch.setattr(os, "fsync", noted)
    await backend.put_new("a/b/c", [b"x", b"yz"])
    root = str(tmp_path / "bucket")
    file = next(index for index, name in enumerate(synced) if name.startswith(f"{root}/.new/"))
    assert {root, f"{root}/a", f"{root}/a/b"} <= set(synced)
    assert synced[-1] == f"{root}/a/b"
    assert file < len(synced) - 1
    assert sizes[file] == 3
    synced.clear()
    await backend.delete("a/b/c")
    assert synced == [f"{root}/a/b"]


async def test_a_file_that_cannot_be_synced_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def fail(number: int) -> None:
        if "/.new/" in os.readlink(f"/proc/self/fd/{number}"):
            raise OSError(errno.EIO, "planted")
        sync(number)

    backend = backend_in(tmp_path / "bucket")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RemoteUnavailable, match="planted"):
        await backend.put_new("a", [b"x"])
    monkeypatch.undo()
    assert (await backend.list("")).objects == ()
    assert list((tmp_path / "bucket" / ".new").iterdir()) == []


async def test_a_mount_that_is_gone_does_not_pass_for_lost_objects(tmp_path: Path) -> None:
    folder = tmp_path / "bucket"
    backend = backend_in(folder)
    await backend.put_new("a", [b"x"])
    folder.rename(tmp_path / "away")
    with pytest.raises(RemoteUnavailable):
        await backend.size("a")
    folder.mkdir()
    with pytest.raises(RemoteUnavailable):
        await backend.get("a", 0, 1)
    with pytest.raises(RemoteUnavailable):
        await backend.put_new("b", [b"x"])
    with pytest.raises(RemoteUnavailable):
        await backend.list("")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("call", ["list", "get", "delete", "put_new"])
async def test_a_mount_that_goes_during_a_call_does_not_either(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bucket"
    backend = backend_in(folder)
    await backend.put_new("a", [b"x"])
    work = getattr(couchestord.remote.folder, f"_{call}")

    def unmount(*arguments: object) -> object:
        folder.rename(tmp_path / "away")
        folder.mkdir()
        return work(*arguments)

    monkeypatch.setattr(couchestord.remote.folder, f"_{call}", unmount)
    arguments = {"list": ("",), "get": ("a", 0, 1), "delete": ("a",), "put_new": ("b", [b"x"])}
    with pytest.raises(RemoteUnavailable, match="unmounted"):
        await getattr(backend, call)(*arguments[call])


async def test_what_the_kernel_refuses_is_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "planted")

    backend = backend_in(tmp_path / "bucket")
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(RemoteDenied, match="planted"):
        await backend.put_new("a", [b"x"])


async def test_a_folder_that_hangs_ends_by_deadline_and_takes_few_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    hanging: list[int] = []
    link = os.link

    def hang(*arguments: Path) -> None:
        hanging.append(1)
        release.wait()
        link(*arguments)

    backend = backend_in(tmp_path / "bucket", deadline_s=0.2)
    monkeypatch.setattr(os, "link", hang)
    late: list[str] = []

    async def put(key: str) -> None:
        try:
            await backend.put_new(key, [b"x"])
        except RemoteUnavailable:
            late.append(key)

    try:
        async with trio.open_nursery() as nursery:
            for index in range(10):
                nursery.start_soon(put, f"k{index}")
        assert len(late) == 10
        assert len(hanging) <= 4
    finally:
        release.set()


async def test_a_key_cannot_be_a_folder_too(tmp_path: Path) -> None:
    backend = backend_in(tmp_path / "bucket")
    await backend.put_new("a/b", [b"x"])
    for key in ("a", "a/b/c"):
        with pytest.raises(RemoteRefused):
            await backend.put_new(key, [b"x"])
    assert [stored.key for stored in (await backend.list("")).objects] == ["a/b"]


async def test_a_page_of_which_all_was_deleted_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bucket"
    folder.mkdir()
    backend = FolderBackend(folder, SystemClock().random_bytes, keys_per_page=2)
    for number in range(6):
        await backend.put_new(f"a/{number}", [b"x"])
    gone = {folder / "a" / str(number) for number in range(3)}
    size = couchestord.remote.folder._size

    def size_of_what_is_left(path: Path) -> int:
        if path in gone:
            path.unlink()
        return size(path)

    monkeypatch.setattr(couchestord.remote.folder, "_size", size_of_what_is_left)
    page = await backend.list("a/")
    assert ([stored.key for stored in page.objects], page.more) == (["a/3"], True)
