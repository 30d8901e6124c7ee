import gc
import socket
import struct
import weakref
from contextlib import suppress

import pytest
import trio
import trio.testing

from couchestord.errors import InternalError
from couchestord.replica import channel
from couchestord.replica.channel import Channel


async def test_messages_arrive_in_order_however_they_are_cut() -> None:
    ours, theirs = socket.socketpair()
    found: list[bytes] = []
    end = Channel(ours, lambda data: found.append(bytes(data)))
    sent = [b"", b"a", b"b" * 300_000, b"c" * 70_000]
    stream = b"".join(struct.pack("<I", len(each)) + each for each in sent)
    theirs.setblocking(False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end.run)
        for at in range(0, len(stream), 7_001):
            theirs.send(stream[at : at + 7_001])
            await trio.testing.wait_all_tasks_blocked()
        theirs.close()
    assert found == sent


async def test_what_the_other_side_does_not_take_waits() -> None:
    ours, theirs = socket.socketpair()
    got: list[int] = []
    sender, taker = Channel(ours, lambda _: None), Channel(theirs, lambda data: got.append(len(data)))
    sizes = [200_000] * 60
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.run)
        for size in sizes:
            sender.send(b"x" * size)
        with trio.move_on_after(0.01) as waited:
            await sender.wait_for_room()
        assert waited.cancelled_caught, "12 MB wait to be sent"
        nursery.start_soon(taker.run)
        await sender.wait_for_room()
        while len(got) < len(sizes):
            await trio.sleep(0.001)
        sender.close()
    assert got == sizes


async def test_all_who_wait_for_room_go_on_once_there_is_some() -> None:
    ours, theirs = socket.socketpair()
    sender, taker = Channel(ours, lambda _: None), Channel(theirs, lambda _: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.run)
        for _ in range(60):
            sender.send(b"x" * 200_000)
        with trio.fail_after(60):
            async with trio.open_nursery() as waiting:
                for _ in range(3):
                    waiting.start_soon(sender.wait_for_room)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(taker.run)
        sender.close()


async def test_the_last_message_of_a_turn_takes_the_others_along_at_once() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with theirs:
        end = Channel(ours, lambda _: None)
        end.send(b"a")
        with pytest.raises(BlockingIOError):
            theirs.recv(1 << 10)
        end.send(b"bb", is_last=True)
        assert theirs.recv(1 << 10) == struct.pack("<I", 1) + b"a" + struct.pack("<I", 2) + b"bb"
        assert not end.unsent_bytes
        # one that does not fit waits for the other side, as any does
        end.send(b"c" * (8 << 20), is_last=True)
        assert end.unsent_bytes
        end.close()


async def test_length_that_cannot_be_ends_the_channel() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.send(struct.pack("<I", channel.MESSAGE_BYTES_MAX + 1))
        with pytest.raises(InternalError):
            await Channel(ours, lambda _: None).run()
    assert ours.fileno() == -1


async def test_channel_that_ended_with_an_error_holds_nothing() -> None:
    ours, theirs = socket.socketpair()

    class Held:
        def refuse(self, data: memoryview) -> None:
            raise ValueError(data.nbytes)

    held = Held()
    is_there = weakref.ref(held)
    gc.disable()
    try:
        with theirs:
            theirs.send(struct.pack("<I", 1) + b"a")
            with suppress(ValueError):
                await Channel(ours, held.refuse).run()
        del held
        assert is_there() is None, "nobody but a search for cycles finds it"
    finally:
        gc.enable()


async def test_sending_to_nobody_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    end = Channel(ours, lambda _: None)
    end.send(b"x")
    await end.run()
    end.send(b"x")
    await end.wait_for_room()
