"""The kernel may hold what it is told to forget."""

import os

import trio

from couchestord.frontends.posix.notices import Notices
from couchestord.io.catalog.changes import Changes


async def test_who_waits_for_the_kernel_can_be_cancelled() -> None:
    """The call that the kernel waits for may wait for what comes then."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    while True:
        try:
            os.write(writing, bytes(1 << 16))
        except BlockingIOError:
            break
    os.set_blocking(writing, True)
    notices = Notices(writing, None)
    with trio.fail_after(30), trio.move_on_after(0.1) as scope:
        await notices.show(Changes(bodies=frozenset([17])))
    assert scope.cancelled_caught
    with trio.fail_after(30), trio.move_on_after(0.1) as scope:
        await notices.take_written([17])
    assert scope.cancelled_caught
    os.set_blocking(reading, False)
    with trio.fail_after(30):
        while notices._threads.borrowed_tokens:
            try:
                os.read(reading, 1 << 20)
            except BlockingIOError:
                await trio.sleep(0.01)
    os.close(reading)
    os.close(writing)
