"""Uploads: what has a copy has a right one, wherever the process ends, whatever fails, whoever deletes meanwhile."""

import itertools
from dataclasses import replace

import pytest
import trio
import trio.testing
from backends import OpenBackend
from upload_rig import QUICK, STORE, Crash, UploadRig, crash_at

from couchestord.errors import BlobExists, RemoteDenied, RemoteUnavailable
from couchestord.remote import uploader as uploader_module
from couchestord.remote.claims import try_backend
from couchestord.remote.uploader import Uploader
from couchestord.service import Progress


async def run(uploader: Uploader, steps_max: int = 200) -> None:
    """Until nothing is left to do."""
    for _ in range(steps_max):
        if await uploader.work() is Progress.IDLE and not uploader.trouble:
            return
    raise AssertionError(f"it never ends: {uploader.trouble}")


async def test_what_lies_in_stripes_goes_into_blobs_oldest_first() -> None:
    rig = UploadRig()
    extents = [rig.make(length) for length in (40_000, 40_000, 40_000, 1, 250_000, 60_000)]
    rig.make(10, destaged=False)
    uploader = await rig.start()
    await run(uploader)
    await rig.check()
    assert list(rig.copies) == extents
    names = [rig.copies[extent][0] for extent in extents]
    assert [len(list(group)) for _, group in itertools.groupby(names)] == [2, 2, 1, 1], "a blob is as long as it may be"
    assert names == sorted(names)
    assert await rig.blobs.names() == rig.begun
    assert uploader.copied_extents_count == 6
    assert uploader.copied_bytes == 430_001


async def test_blobs_in_every_backend(open_backend: OpenBackend) -> None:
    """Some MiB of extents of all lengths, over two starts; a blob that lost its row is found by its name."""
    async with open_backend() as backend:
        rig = UploadRig(bucket=backend)
        await try_backend(backend, rig.random.randbytes)
        options = replace(QUICK, blob_bytes=2 << 20)
        for _ in range(2):
            for length in (3 << 20, 1, 500_000, *(rig.random.randrange(1, 20_000) for _ in range(200))):
                rig.make(length)
            await run(await rig.start(options))
        assert set(rig.copies) == set(rig.extents)
        await rig.check()
        assert await rig.blobs.names() == rig.begun
        for name in rig.begun:
            await rig.blobs.delete(name)
        assert await rig.blobs.names() == []


async def test_nothing_is_uploaded_twice() -> None:
    rig = UploadRig()
    rig.make(1000)
    uploader = await rig.start()
    await run(uploader)
    rig.make(2000)
    await run(uploader)
    await run(await rig.start())
    assert [held.length for name in rig.begun for held in await rig.blobs.index(name)] == [1000, 2000]


async def test_wherever_the_process_ends_no_copy_is_wrong_and_the_next_one_goes_on() -> None:
    for number in range(1, 999):
        rig = UploadRig()
        for length in (40_000, 40_000, 40_000, 5, 90_000):
            rig.make(length)
        uploader = await rig.start()
        rig.at = crash_at(number)
        try:
            await run(uploader)
            assert number > 30
            return
        except Crash:
            rig.at = lambda _event: None
        await rig.check()
        rig.make(77)
        await run(await rig.start())
        await rig.check()
        assert set(rig.copies) == set(rig.extents)
    raise AssertionError("it never came through")


@pytest.mark.parametrize("seed", range(20))
async def test_failures_and_deletes_at_any_time(seed: int) -> None:
    rig = UploadRig(seed)
    for _ in range(30):
        rig.make(rig.random.randrange(1, 60_000))
    uploader = await rig.start()
    left = [150]

    def at(event: str) -> None:
        chance = rig.random.random()
        left[0] -= 1
        if left[0] < 0:
            return
        if chance < 0.1 and rig.extents:
            rig.delete(rig.random.choice(sorted(rig.extents)))
        elif chance < 0.2:
            rig.make(rig.random.randrange(1, 60_000))
        elif chance < 0.3 and ("put_new" in event or "get" in event or "list" in event):
            raise RemoteUnavailable(event)

    rig.at = at
    await run(uploader)
    await rig.check()
    assert set(rig.copies) == set(rig.extents)


async def test_a_blob_counts_only_once_it_was_read_back() -> None:
    rig = UploadRig()
    extent = rig.make(50_000)
    uploader = await rig.start()

    def spoil(event: str) -> None:
        if event == "after put_new":
            ((key, kept),) = [it for it in rig.backend.objects.items() if it[0].startswith("blobs/")]
            rig.backend.objects[key] = kept[:-9] + bytes([kept[-9] ^ 1]) + kept[-8:]

    rig.at = spoil
    assert await uploader.work() is Progress.IDLE
    assert "checksum" in uploader.trouble
    assert rig.copies == {}
    rig.at = lambda _event: None
    await run(uploader)
    await rig.check()
    assert list(rig.copies) == [extent]
    assert len(rig.begun) == 2, "the name of the bad one is not used again"


async def test_bytes_need_not_be_read_back_when_that_is_not_wanted() -> None:
    rig = UploadRig()
    rig.make(50_000)
    await run(await rig.start(replace(QUICK, read_back=False)))
    await rig.check()
    assert [call for call, key in rig.backend.calls if "blobs" in key].count("get") == 1 + 1, "index, and our check"


async def test_a_name_that_is_taken_is_left_alone() -> None:
    rig = UploadRig()
    extent = rig.make(1000)
    uploader = await rig.start()
    taken = rig.blobs.name(rig.epoch, rig.next_id).key
    rig.backend.objects[taken] = b"of the other half of this store"
    await run(uploader)
    await rig.check()
    assert rig.backend.objects[taken] == b"of the other half of this store"
    assert rig.copies[extent][0] == rig.begun[1]


async def test_names_that_are_always_taken_put_it_off() -> None:
    rig = UploadRig()
    rig.make(1000)
    uploader = await rig.start()

    def at(event: str) -> None:
        if event == "before put_new":
            raise BlobExists("taken")

    rig.at = at
    assert await uploader.work() is Progress.IDLE
    assert "taken again" in uploader.trouble
    assert len(rig.begun) == 4
    assert rig.copies == {}


async def test_a_copy_of_the_store_ends_uploads() -> None:
    rig = UploadRig()
    rig.make(1000)
    uploader = await rig.start()
    rig.backend.objects[f"claims/{STORE.hex()}/{99:016x}"] = b"x"
    assert await uploader.work() is Progress.IDLE
    assert "copy of this store" in uploader.trouble
    assert rig.begun == []


async def test_what_cannot_be_read_keeps_nothing_else_back() -> None:
    rig = UploadRig()
    bad, good, worse = (rig.make(1000) for _ in range(3))
    rig.unreadable |= {bad, worse}
    uploader = await rig.start()
    assert await uploader.work() is Progress.BUSY
    assert set(rig.copies) == {good}
    assert uploader.unreadable_extents_count == 2
    assert await uploader.work() is Progress.IDLE, "they are not tried again at once"
    assert uploader.unreadable_extents_count == 2
    assert await uploader.work() is Progress.IDLE
    assert "could be read" in uploader.trouble
    rig.unreadable.clear()
    await run(uploader)
    assert set(rig.copies) == set(rig.extents)


def test_beside_one_that_cannot_be_read_others_linger_as_ever() -> None:
    async def main() -> None:
        rig = UploadRig()
        uploader = await rig.start(replace(QUICK, linger_s=600.0))
        rig.unreadable.add(rig.make(1000))
        for _ in range(360):
            rig.make(10)
            while await uploader.work() is Progress.BUSY:
                pass
            await trio.sleep(10)
        assert len(rig.begun) <= 2 * 3600 / 600
        rig.unreadable.clear()
        await trio.sleep(1200)
        for _ in range(3):
            await uploader.work()
        assert set(rig.copies) == set(rig.extents)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_however_many_cannot_be_read_what_comes_behind_them_is_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploader_module, "_SKIPPED_MAX", 4)
    rig = UploadRig()
    rig.unreadable |= {rig.make(10) for _ in range(50)}
    good = rig.make(1000)
    uploader = await rig.start(replace(QUICK, extents_max=10))
    for _ in range(10):
        await uploader.work()
    assert set(rig.copies) == {good}
    rig.unreadable.clear()
    for _ in range(10):
        await uploader.work()
    assert set(rig.copies) == set(rig.extents)


async def test_extents_linger_until_they_fill_a_blob() -> None:
    rig = UploadRig()
    rig.make(60_000)
    uploader = await rig.start(replace(QUICK, linger_s=3600.0))
    assert await uploader.work() is Progress.IDLE
    rig.make(30_000)
    assert await uploader.work() is Progress.IDLE
    assert rig.begun == []
    rig.make(30_000)
    assert await uploader.work() is Progress.BUSY
    assert len(rig.copies) == 2
    assert await uploader.work() is Progress.IDLE


async def test_many_small_extents_fill_a_blob_by_their_number() -> None:
    rig = UploadRig()
    for _ in range(25):
        rig.make(1)
    uploader = await rig.start(replace(QUICK, linger_s=3600.0, extents_max=10))
    await run(uploader)
    assert len(rig.copies) == 20


async def test_failures_are_told_and_tried_again_later(caplog: pytest.LogCaptureFixture) -> None:
    rig = UploadRig()
    rig.make(1000)
    uploader = await rig.start(replace(QUICK, retry_s=3600.0))

    def deny(event: str) -> None:
        if event == "before put_new":
            raise RemoteDenied("403 AccessDenied")

    rig.at = deny
    assert await uploader.work() is Progress.IDLE
    rig.at = lambda _event: None
    assert await uploader.work() is Progress.IDLE, "not before its time"
    assert rig.copies == {}
    assert uploader.trouble == "403 AccessDenied"
    assert "AccessDenied" in caplog.text


def test_the_age_is_that_of_the_oldest_extent() -> None:
    """Ids tell: an extent is as old as the first look that found one as new as it."""

    async def watch() -> None:
        rig = UploadRig()
        uploader = await rig.start(replace(QUICK, linger_s=1e9))
        assert uploader.age_s() == 0.0
        first = rig.make(10)
        await uploader.work()
        await trio.sleep(100)
        second = rig.make(10)
        await uploader.work()
        await trio.sleep(50)
        assert uploader.age_s() == pytest.approx(150)
        rig.delete(first)
        await uploader.work()
        assert uploader.age_s() == pytest.approx(50)
        for _ in range(600):
            await trio.sleep(3)
            rig.make(10)
            await uploader.work()
        assert uploader.age_s() == pytest.approx(1850)
        rig.delete(second)
        assert 1780 < uploader.age_s() <= 1800
        for extent in list(rig.extents):
            rig.delete(extent)
        assert uploader.age_s() == 0.0

    trio.run(watch, clock=trio.testing.MockClock(autojump_threshold=0))
