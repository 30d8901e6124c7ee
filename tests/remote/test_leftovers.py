"""Blobs that were begun and not confirmed: deleted when nobody can need them, and else never."""

import pytest
from upload_rig import STORE, Crash, UploadRig, crash_at

from couchestord.errors import RemoteUnavailable
from couchestord.remote.blob import BlobPacker
from couchestord.remote.leftovers import Leftovers
from couchestord.service import Progress


async def run(job: Leftovers) -> None:
    for _ in range(50):
        if await job.work() is Progress.IDLE:
            return
    raise AssertionError("it never ends")


async def rig_with_leftover(seed: int = 1) -> UploadRig:
    """A blob of three extents is in the bucket; the process ended before it was confirmed."""
    rig = UploadRig(seed)
    for length in (30_000, 100, 5):
        rig.make(length)
    uploader = await rig.start()

    def crash(event: str) -> None:
        if event == "before confirm":
            raise Crash

    rig.at = crash
    with pytest.raises(Crash):
        await uploader.work()
    rig.at = lambda _event: None
    await rig.start()
    assert len(rig.begun) == len(await rig.blobs.names()) == 1
    return rig


async def test_what_is_here_in_full_needs_no_blob() -> None:
    rig = await rig_with_leftover()
    rig.delete(17)
    job = rig.leftovers()
    await run(job)
    assert await rig.blobs.names() == []
    assert rig.begun == []
    assert job.deleted_count == 1


async def test_one_that_never_came_is_forgotten() -> None:
    rig = await rig_with_leftover()
    await rig.blobs.delete(rig.begun[0])
    await run(rig.leftovers())
    assert rig.begun == []


@pytest.mark.parametrize("what", ["unreadable", "another", "longer", "bad index", "bad bytes"])
async def test_what_may_be_the_last_copy_stays(what: str) -> None:
    rig = await rig_with_leftover()
    (name,) = rig.begun
    blob = rig.backend.objects[name.key]
    if what == "unreadable":
        rig.unreadable.add(18)
    elif what == "another":
        rig.extents[17] = bytes(100)  # an id that was lost with the end of the log, and given again
    elif what == "longer":
        rig.extents[18] += b"x"
    else:
        at = 60 if what == "bad index" else len(blob) - 9
        rig.backend.objects[name.key] = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
    job = rig.leftovers()
    await run(job)
    assert await rig.blobs.names() == rig.begun == [name]
    assert job.kept == {name}


async def test_confirmed_blobs_and_those_of_this_start_are_not_judged() -> None:
    rig = UploadRig()
    rig.make(10)
    uploader = await rig.start()
    await uploader.work()
    await rig.blobs.put(await rig.begin(), _packer())
    await run(rig.leftovers())
    assert len(await rig.blobs.names()) == 2
    await rig.start()
    await run(rig.leftovers())
    await rig.check()
    assert await rig.blobs.names() == [rig.copies[16][0]]


def _packer() -> BlobPacker:
    packer = BlobPacker(1000)
    packer.add(999, b"gone since")
    return packer


async def test_a_bucket_that_is_anothers_by_now_is_left_alone() -> None:
    rig = await rig_with_leftover()
    job = rig.leftovers()
    rig.backend.objects[f"claims/{STORE.hex()}/{99:016x}"] = b"x"
    await run(job)
    assert len(await rig.blobs.names()) == len(rig.begun) == 1


async def test_a_backend_that_fails_is_asked_later() -> None:
    rig = await rig_with_leftover()
    job = rig.leftovers()

    def fail(event: str) -> None:
        if event == "before delete":
            raise RemoteUnavailable(event)

    rig.at = fail
    assert await job.work() is Progress.IDLE
    assert len(rig.begun) == 1
    rig.at = lambda _event: None
    for _ in range(2):  # all others come first
        await run(job)
    assert rig.begun == []


async def test_cut_off_at_any_step_it_is_done_again() -> None:
    for number in range(1, 99):
        rig = await rig_with_leftover()
        rig.at = crash_at(number)
        try:
            await run(rig.leftovers())
            assert number > 8
            return
        except Crash:
            rig.at = lambda _event: None
        await rig.start()
        await run(rig.leftovers())
        assert rig.begun == []
        assert await rig.blobs.names() == []
    raise AssertionError("it never came through")


async def test_of_many_that_stay_or_cannot_be_judged_the_others_go() -> None:
    """A page of the list is shorter than they are many."""
    rig = UploadRig()
    await rig.start()
    names = [await rig.begin() for _ in range(12)]
    for name in names:
        await rig.blobs.put(name, _packer())
    for name in names[:5]:
        rig.backend.objects[name.key] = b"rot"
    await rig.start()
    job = rig.leftovers()

    def fail(call: str, key: str) -> None:
        if call == "delete" and key == names[5].key:
            raise RemoteUnavailable(key)

    rig.backend.before = fail
    for _ in range(3):
        await run(job)
    assert await rig.blobs.names() == rig.begun == names[:6]
    assert job.kept == set(names[:5])
    rig.backend.before = lambda _call, _key: None
    for _ in range(3):
        await run(job)
    assert rig.begun == names[:5]
