"""Who shows buckets as file systems, and what stays because somebody has it open."""

import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from file_rig import make, there, write
from small_store import SMALL, body_of, core_of, faults_of, finish, make_store, new_store, read
from trio.testing import MockClock

from couchestord.errors import BucketMounted, StaleInode, Unavailable
from couchestord.io import filerequests as fr
from couchestord.io.catalog.changes import Changes
from couchestord.service import Progress
from couchestord.store import ObjectStore
from couchestord.store.mounts import GRACE_S, ORPHANS_PER_STEP_MAX, Claim, Mounts


async def nothing_kept(_: Changes) -> None:
    """Of a mount whose kernel keeps nothing."""


def claim(bucket: str | None, *, writes: bool = True, held: Sequence[int] = ()) -> Claim:
    """What a mount shows that has these open."""

    async def which_open(inodes: Sequence[int]) -> Sequence[int]:
        return [id_ for id_ in inodes if id_ in held]

    return Claim(bucket, writes, which_open, nothing_kept)


def gone(bucket: str | None) -> Claim:
    """Of a mount that nobody has missed yet."""

    async def which_open(inodes: Sequence[int]) -> Sequence[int]:
        raise Unavailable("the other process is gone")

    return Claim(bucket, True, which_open, nothing_kept)


# -- claims ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), [("a", "a"), (None, "a"), ("a", None), (None, None)])
def test_one_mount_writes_a_bucket(tmp_path: Path, one: str | None, other: str | None) -> None:
    mounts, first = Mounts(tmp_path / "note"), claim(one)
    mounts.add(first)
    with pytest.raises(BucketMounted, match="--read-only"):
        mounts.add(claim(other))
    mounts.add(claim(other, writes=False))
    mounts.remove(first)
    mounts.add(claim(other))


def test_others_may_be_written_and_those_that_only_read_do_not_count(tmp_path: Path) -> None:
    mounts = Mounts(tmp_path / "note")
    mounts.add(claim("a"))
    mounts.add(claim("b"))
    mounts.add(claim("c", writes=False))
    mounts.add(claim("c", writes=False))
    mounts.add(claim("c"))
    with pytest.raises(BucketMounted):
        mounts.add(claim("c"))


def test_what_is_refused_is_not_claimed(tmp_path: Path) -> None:
    mounts, first = Mounts(tmp_path / "note"), claim("a")
    mounts.add(first)
    with pytest.raises(BucketMounted):
        mounts.add(claim(None))
    assert not mounts.shows("b")
    mounts.remove(first, is_over=True)
    assert not mounts.shows("a")


def test_what_is_shown_and_what_may_be_written(tmp_path: Path) -> None:
    mounts = Mounts(tmp_path / "note")
    assert not mounts.shows("a")
    assert not mounts.writes("a")
    reads, writes = claim("a", writes=False), claim("b")
    mounts.add(reads)
    mounts.add(writes)
    assert [(mounts.shows(name), mounts.writes(name)) for name in "abc"] == [
        (True, False),
        (True, True),
        (False, False),
    ]
    every = claim(None, writes=False)
    mounts.add(every)
    assert [(mounts.shows(name), mounts.writes(name)) for name in "abc"] == [(True, False), (True, True), (True, False)]
    for each in (writes, every):
        mounts.remove(each, is_over=True)
    mounts.remove(reads)
    assert [(mounts.shows(name), mounts.writes(name)) for name in "ab"] == [(True, False), (False, False)]
    mounts.forget_gone()
    assert not any(mounts.shows(name) for name in "abc")


def test_what_was_mounted_is_known_to_the_next_start(tmp_path: Path) -> None:
    note = tmp_path / "note"

    def shown() -> list[bool]:
        return [Mounts(note).shows(name) for name in "abc"]

    mounts, one, other = Mounts(note), claim("a"), claim("b", writes=False)
    assert mounts.gone_count == 0
    for each in (one, other):
        mounts.add(each)
    assert shown() == [True, True, False]
    assert stat.S_IMODE(note.stat().st_mode) == 0o600
    mounts.remove(other)  # it may come back
    mounts.remove(one, is_over=True)
    assert shown() == [False, True, False]
    # as it is after kill -9
    mounts = Mounts(note)
    assert mounts.gone_count == 1
    every = claim(None)
    mounts.add(every)
    assert shown() == [True, True, True]
    mounts.remove(every, is_over=True)
    assert shown() == [False, True, False]
    mounts.forget_gone()
    assert shown() == [False, False, False]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[", "7", '["a", 7]'])
def test_a_note_that_says_nothing_may_mean_all(tmp_path: Path, text: str) -> None:
    note = tmp_path / "note"
    note.write_text(text)
    mounts = Mounts(note)
    assert mounts.shows("a")
    mounts.forget_gone()
    assert not note.exists()


def test_nothing_is_mounted_that_cannot_be_noted(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    mounts = Mounts(folder / "note")
    with pytest.raises(Unavailable, match="note"):
        mounts.add(claim("a"))
    assert not mounts.shows("a")
    folder.mkdir()
    one = claim("a")
    for each in (one, claim("b")):
        mounts.add(each)
    # what cannot be shortened says too much
    folder.rename(tmp_path / "away")
    mounts.remove(one, is_over=True)
    assert Mounts(tmp_path / "away" / "note").shows("a")
    (tmp_path / "away").rename(folder)
    mounts.forget_gone()
    assert not Mounts(folder / "note").shows("a")


async def test_open_files_of_all_mounts(tmp_path: Path) -> None:
    mounts = Mounts(tmp_path / "note")
    assert await mounts.which_open([1, 2]) == set()
    for each in (claim("a", held=[1, 9]), claim("c", writes=False, held=[2])):
        mounts.add(each)
    assert await mounts.which_open([1, 2, 3]) == {1, 2}
    mounts.add(gone("b"))
    with pytest.raises(Unavailable):
        await mounts.which_open([1, 2, 3])


# -- orphans ---------------------------------------------------------------------------------------------------------


def orphans(store: ObjectStore) -> list[int]:
    return core_of(store).catalog.files.orphans(0, 1000)


async def make_orphans(store: ObjectStore, count: int) -> list[int]:
    """Files without a name that were kept."""
    root, found = store.files.root("box"), []
    for _ in range(count):
        found.append(await make(store, b"f"))
        await store.files.change(fr.UnlinkNode(root, b"f", keep=True))
    return found


@pytest.mark.parametrize("way", ["unlinked", "deleted", "put over", "a version", "open"])
async def test_a_file_of_many_pieces_goes_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """All at once it would hold up everybody: one of a hundred gigabytes may have three million."""
    for where in ("io.catalog.piecerows", "store.mounts"):
        monkeypatch.setattr(f"couchestord.{where}.PIECES_DROPPED_MAX", 20, raising=False)
    rows: list[int] = []
    async with new_store(tmp_path) as store:
        core, root = core_of(store), store.files.root("box")
        for name in (b"f", b"g"):
            file = await make(store, name)
            await write(store, file, (0, body_of(90_000)))
            await write(store, file, *((at, b"x" * 50) for at in range(0, 80_000, 400)))
        if way == "a version":
            await store.set_versioning("box", "Enabled")
        commit = core.catalog.commit

        def counted() -> None:
            rows.append(core.catalog.changed_rows)
            commit()

        monkeypatch.setattr(core.catalog, "commit", counted)
        for name in (b"f", b"g"):
            match way:
                case "deleted":
                    await store.delete("box", name)
                case "put over":
                    await store.put("box", name, b"")
                case "a version":
                    await store.delete("box", name, version_id="null")
                case _:
                    await store.files.change(fr.UnlinkNode(root, name, keep=way == "open"))
        await finish(core.jobs.orphans)
        assert max(rows) < 100
        assert core.catalog.reading._rows("select count(*) from piece union select count(*) from worn") == [(0,)]
        assert core.catalog.reading._rows("select count(*) from content where length>0") == [(0,)]
        assert orphans(store) == []
    assert faults_of(tmp_path) == []


async def test_of_many_files_of_some_pieces_a_few_go_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for where in ("io.catalog.piecerows", "store.mounts"):
        monkeypatch.setattr(f"couchestord.{where}.PIECES_DROPPED_MAX", 20, raising=False)
    async with new_store(tmp_path) as store:
        core, root = core_of(store), store.files.root("box")
        for _ in range(9):
            file = await make(store, b"f")
            await write(store, file, (0, body_of(90_000)))
            await write(store, file, *((at, b"x" * 50) for at in range(0, 2000, 400)))
            await store.files.change(fr.UnlinkNode(root, b"f", keep=True))
        sequence = core.catalog.committed_sequence
        await finish(core.jobs.orphans)
        assert core.catalog.committed_sequence - sequence == 5, "two of ten pieces each"
        assert core.jobs.orphans.freed_count == 9
        assert orphans(store) == []


async def test_what_nobody_holds_is_freed_and_what_is_held_is_kept(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        core = core_of(store)
        one, two, three = await make_orphans(store, 3)
        await write(store, two, (0, body_of(200_000)))
        mount = claim("box", held=[two])
        core.mounts.add(mount)
        await finish(core.jobs.orphans)
        assert orphans(store) == [two]
        assert core.jobs.orphans.freed_count == 2
        for id_ in (one, three):
            with pytest.raises(StaleInode):
                store.files.node(id_)
        assert await store.files.read(two, 0, 1 << 20) == body_of(200_000)
        core.mounts.remove(mount, is_over=True)
        await finish(core.jobs.orphans)
        assert orphans(store) == []
        with pytest.raises(StaleInode):
            store.files.node(two)
        assert await core.jobs.orphans.work() is Progress.IDLE
    assert faults_of(tmp_path) == []


async def test_many_that_are_held_do_not_hide_others(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        core = core_of(store)
        made = await make_orphans(store, ORPHANS_PER_STEP_MAX + 2)
        held = made[:ORPHANS_PER_STEP_MAX]
        mount = claim(None, held=held)
        core.mounts.add(mount)
        assert await core.jobs.orphans.work() is Progress.BUSY
        assert len(orphans(store)) == len(made)
        assert await core.jobs.orphans.work() is Progress.IDLE
        assert orphans(store) == held
        core.mounts.remove(mount, is_over=True)
        # and it begins again at the first of them
        await finish(core.jobs.orphans)
        await finish(core.jobs.orphans)
        assert orphans(store) == []


def test_after_a_restart_mounts_have_time_to_come_back(tmp_path: Path) -> None:
    clock = MockClock(rate=1.0)

    async def main() -> None:
        await make_store(tmp_path)
        async with ObjectStore.open(tmp_path, SMALL) as store:
            core_of(store).mounts.add(claim("box"))
            made = await make_orphans(store, 3)
            await store.put("box", b"k", b"old")
            made.append(there(store, b"k").id)
        async with ObjectStore.open(tmp_path, SMALL) as store:
            core = core_of(store)
            await store.put("box", b"k", b"new")  # before the mount is back, and before anybody looked
            await finish(core.jobs.orphans)
            assert orphans(store) == made
            core.mounts.add(mount := claim("box", held=made[:1]))
            clock.jump(GRACE_S)
            await finish(core.jobs.orphans)
            assert orphans(store) == made[:1]
            core.mounts.remove(mount, is_over=True)
        async with ObjectStore.open(tmp_path, SMALL) as store:
            await finish(core_of(store).jobs.orphans)
            assert orphans(store) == []

    trio.run(main, clock=clock)
    assert faults_of(tmp_path) == []


def test_a_mount_that_has_lost_its_link_has_time_to_come_back(tmp_path: Path) -> None:
    """As when the daemon stops: mounts go first, and the store has something to finish yet."""
    clock = MockClock(rate=1.0)

    async def main() -> None:
        async with new_store(tmp_path) as store:
            core, mount, lost = core_of(store), claim("box"), gone("other")
            made = await make_orphans(store, 2)
            core.mounts.add(mount)
            core.mounts.add(lost)
            await finish(core.jobs.orphans)  # which is not known to be gone yet
            assert orphans(store) == made
            for each in (mount, lost):
                core.mounts.remove(each)
            await finish(core.jobs.orphans)
            await store.put("box", b"k", b"old")
            core.mounts.add(claim("other"))
            made.append(there(store, b"k").id)
            await store.put("box", b"k", b"new")
            await finish(core.jobs.orphans)
            assert orphans(store) == made
            core.mounts.add(claim("box", writes=False, held=made[1:]))
            clock.jump(GRACE_S)
            await finish(core.jobs.orphans)
            assert orphans(store) == made[1:]
            assert not core.mounts.shows("third")

    trio.run(main, clock=clock)
    assert faults_of(tmp_path) == []


# -- S3 beside mounts ------------------------------------------------------------------------------------------------


async def test_versioning_stays_as_it_is_while_a_mount_may_write(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        mounts, mount = core_of(store).mounts, claim("box")
        mounts.add(mount)
        with pytest.raises(BucketMounted):
            await store.set_versioning("box", "Enabled")
        mounts.remove(mount)
        for each in (claim("other"), claim("box", writes=False)):
            mounts.add(each)
        await store.set_versioning("box", "Enabled")
        # what it is already is no change
        mounts.add(claim("box"))
        await store.set_versioning("box", "Enabled")
        with pytest.raises(BucketMounted):
            await store.set_versioning("box", "Suspended")


async def replace(store: ObjectStore, how: str) -> None:
    if how == "put":
        await store.put("box", b"k", b"new")
    elif how == "copy":
        await store.put("box", b"s", b"new")
        await store.copy("box", b"k", "box", b"s")
    elif how == "complete":
        upload = (await store.create_upload("box", b"k")).upload_id
        part = await store.put_part("box", b"k", upload, 1, b"new")
        await store.complete_upload("box", b"k", upload, [(1, part.etag)])
    else:
        await store.delete("box", b"k", version_id="null" if how == "delete the null version" else None)


@pytest.mark.parametrize("how", ["put", "copy", "complete", "delete", "delete the null version"])
@pytest.mark.parametrize("bucket", ["box", None])
async def test_s3_leaves_what_a_mount_may_have_open(tmp_path: Path, how: str, bucket: str | None) -> None:
    async with new_store(tmp_path) as store:
        await store.put("box", b"k", body_of(200_000))
        old = there(store, b"k").id
        mount = claim(bucket, writes=False, held=[old])
        core_of(store).mounts.add(mount)
        await replace(store, how)
        assert orphans(store) == [old]
        if not how.startswith("delete"):
            assert there(store, b"k").id != old
            assert await read(store, b"k") == b"new"
        await finish(core_of(store).jobs.orphans)
        await store.destage()
        assert await store.files.read(old, 0, 1 << 20) == body_of(200_000)
        core_of(store).mounts.remove(mount, is_over=True)
        await finish(core_of(store).jobs.orphans)
        assert orphans(store) == []
        with pytest.raises(StaleInode):
            await store.files.read(old, 0, 1)
    assert faults_of(tmp_path) == []


@pytest.mark.parametrize("how", ["put", "copy", "complete", "delete", "delete the null version"])
async def test_without_a_mount_nothing_is_left(tmp_path: Path, how: str) -> None:
    async with new_store(tmp_path) as store:
        core_of(store).mounts.add(claim("other"))
        await store.put("box", b"k", body_of(200_000))
        old = there(store, b"k").id
        await replace(store, how)
        assert orphans(store) == []
        with pytest.raises(StaleInode):
            store.files.node(old)


async def test_a_file_with_another_name_is_no_orphan(tmp_path: Path) -> None:
    async with new_store(tmp_path) as store:
        core_of(store).mounts.add(claim("box"))
        id_ = await make(store, b"k")
        await store.files.change(fr.LinkNode(id_, store.files.root("box"), b"l"))
        await store.put("box", b"k", b"new")
        assert orphans(store) == []
        assert (there(store, b"l").id, there(store, b"l").nlink) == (id_, 1)
