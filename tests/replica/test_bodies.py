import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
from bucket_rig import set_tight
from file_rig import make, write
from memory_backend import MemoryBackend
from publish_rig import QUICK
from replica_rig import pair
from small_store import body_of, read, shard_files, stream

from couchestord.errors import Unavailable
from couchestord.replica import messages as ms
from couchestord.replica.bodies import coming_bodies
from couchestord.store.options import L3Options

LONG = 700_001


async def test_body_whose_descriptor_got_lost_does_not_end_those_behind_it() -> None:
    """As when the process that takes them has no more to give."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, socket.socket() as carried:
        ours.send(ms.pack(ms.LongBody(1, 0)))
        socket.send_fds(ours, [ms.pack(ms.LongBody(2, 7))], [carried.fileno()])
        with trio.fail_after(10):
            async with aclosing(coming_bodies(theirs)) as coming:
                head, sock = await anext(coming)
                sock.close()
                assert head == ms.LongBody(2, 7)
                ours.close()
                with pytest.raises(StopAsyncIteration):
                    await anext(coming)


async def test_space_of_a_body_is_held_until_it_has_a_name_or_was_given_up(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        pool = both.store.core.pool
        intake = both.replica._core.intake
        async with intake.take(stream(body_of(LONG)), LONG) as taken:
            assert taken.size == LONG
            assert pool.pinned_count == 1
            assert shard_files(tmp_path)
        with trio.fail_after(10):
            while pool.pinned_count:
                await trio.sleep(0.01)


async def test_of_a_body_that_is_to_leave_nothing_for_the_record_nothing_is_left(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        for body in (body_of(1000), body_of(LONG)):
            async with both.replica.files.take(body, len(body), 0, inlined=False) as taken:
                assert (taken.size, taken.inline) == (len(body), b"")
                assert all(extent.segment for extent in taken.extents)
            async with both.replica.files.take(body, len(body), 0) as taken:
                assert taken.inline


async def test_what_a_mount_writes_past_full_disks_is_read_again(tmp_path: Path) -> None:
    backend, long = MemoryBackend(keys_per_page=100), body_of(LONG)
    l3 = L3Options(lambda _clock: backend, "tiered", publish=QUICK)
    async with pair(tmp_path, backend=backend, l3=l3) as both:
        set_tight(both.store)
        id_ = await make(both.replica, b"f")
        await write(both.replica, id_, (0, long))
        assert not shard_files(tmp_path)
        assert await both.replica.files.read(id_, 0, LONG) == long
        assert await read(both.store, b"f") == long


async def test_body_is_given_up_when_its_sender_is_cancelled(tmp_path: Path) -> None:
    sent = trio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield body_of(1 << 20)
        sent.set()
        await trio.sleep_forever()

    async with pair(tmp_path) as both:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: both.replica.put("box", b"k", endless()))
            await sent.wait()
            nursery.cancel_scope.cancel()
        pool = both.store.core.pool
        with trio.fail_after(10):
            while pool.pinned_count:
                await trio.sleep(0.01)
        await both.replica.put("box", b"k", body_of(LONG))
        assert await read(both.store, b"k") == body_of(LONG)


async def test_without_descriptors_a_body_is_refused_as_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> None:
        raise OSError(24, "Too many open files")

    async with pair(tmp_path) as both:
        with monkeypatch.context() as patched:
            patched.setattr(socket, "socketpair", none_left)
            with pytest.raises(Unavailable, match="Too many"):
                await both.replica.put("box", b"k", body_of(LONG))
        await both.replica.put("box", b"k", body_of(LONG))
