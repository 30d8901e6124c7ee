"""What a process that reads has of the store's process."""

import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

import outcome as outcomes
import trio

from couchestord.errors import Unavailable
from couchestord.io.catalog.changes import Changes
from couchestord.io.sharedpage import SharedPage
from couchestord.replica import messages as ms
from couchestord.replica.bodies import BodySender
from couchestord.replica.channel import Channel

Command = ms.EvictCaches | ms.WarmCaches | ms.WhichOpen | ms.Show
_GONE: Final = "the store's process is gone; a write may have happened: look before you try again"


class Link:
    """What a reader's process has of the store's: a channel for requests, and a way for long bodies."""

    def __init__(self, requests: socket.socket, bodies: socket.socket, page: SharedPage, number: int) -> None:
        """Of reader `number` in `page`."""
        self.page = page
        self.number = number
        self.channel = Channel(requests, self._receive)
        self.bodies = BodySender(bodies)
        self._waiting: dict[int, trio.lowlevel.Task] = {}
        self._last_id = 0
        self._closed = False
        self.closing = trio.Event()
        """The store is about to close, or its process is gone."""
        self.good_disks: list[tuple[int, str, bytes]] = []
        self.disks_changed = trio.Event()
        self.obey: Callable[[Command], None] = self.refuse
        """What the store's process asks of this one goes there."""

        self.which_open: Callable[[list[int]], list[int]] = lambda _: []
        """Files that this process has open, among some."""

        self.show: Callable[[Changes], Awaitable[None]] = _nobody_looks
        """Has those forget what is otherwise now who keep what they have looked up here."""

    def refuse(self, command: Command) -> None:
        """Nobody is there to obey."""
        self.tell(ms.refuse(command.id, Unavailable("this process reads nothing now")))

    async def run(self) -> None:
        """Until the other process is gone."""
        try:
            await self.channel.run()
        finally:
            self._closed = True
            self.closing.set()
            self.bodies.close()
            waiting, self._waiting = self._waiting, {}
            for task in waiting.values():
                trio.lowlevel.reschedule(task, outcomes.Error(Unavailable(_GONE)))

    @property
    def is_gone(self) -> bool:
        return self._closed

    async def open(self) -> ms.Opened:
        """Waits for an open store; may be cancelled. Raises Unavailable when its process goes."""
        self.closing = trio.Event()
        # before anybody hears of it: when this process ends, its word is cleared once and for all
        self.page.see(self.number, self.page.version)
        opened: ms.Opened = await self.ask(lambda id_: ms.Hello(id_, os.getpid()), ms.Opened, can_cancel=True)
        self.good_disks = opened.disks
        return opened

    async def claim_mount(self, bucket: str | None, *, writes: bool) -> None:
        """This process shows a bucket as a file system, or with None all, until it is gone. Raises BucketMounted."""
        await self.ask(lambda id_: ms.ClaimMount(id_, bucket, writes), None)

    async def end_mount(self) -> None:
        """What this process has shown is over: it has no files open. Raises Unavailable."""
        await self.ask(ms.EndMount, None, can_cancel=True)

    async def submit(self, request: object) -> Any:
        """Hand a request to the writer; see `Writer.submit`."""
        await self.channel.wait_for_room()
        kind = type(request)
        packed = ms.raw(request)
        return await self.ask(lambda id_: ms.Submit(id_, kind.__name__, packed), ms.ANSWERS[kind])

    async def ask(self, message: Callable[[int], ms.FromReader], kind: Any, *, can_cancel: bool = False) -> Any:
        """Sends what `message` makes of an id, and waits for the answer, of type `kind`. What was asked for may happen
        though the caller is cancelled: only with `can_cancel` it may be. Raises what it is refused with; Unavailable
        when the other process goes.
        """
        if self._closed:
            raise Unavailable("the store's process is gone; try again soon")
        self._last_id += 1
        id_ = self._last_id

        def abort(_raise_cancel: Any) -> trio.lowlevel.Abort:
            if not can_cancel:
                return trio.lowlevel.Abort.FAILED
            self._waiting.pop(id_)
            return trio.lowlevel.Abort.SUCCEEDED

        self._waiting[id_] = trio.lowlevel.current_task()
        # where many ask, others of them do so in this turn, too
        self.channel.send(ms.pack(message(id_)), is_last=len(self._waiting) == 1)
        return ms.unpack_value(await trio.lowlevel.wait_task_rescheduled(abort), kind)

    def tell(self, message: ms.FromReader) -> None:
        """Sends a message that has no answer."""
        self.channel.send(ms.pack(message))

    def _receive(self, data: memoryview) -> None:
        message = ms.unpack_from_store(data)
        match message:
            case ms.Answer():
                # the bytes of the message are used again
                self._wake(message.id, outcomes.Value(message.value.copy()))
            case ms.Refusal():
                self._wake(message.id, outcomes.Error(ms.error_of(message)))
            case ms.Closing():
                self.closing.set()
            case ms.GoodDisks():
                self.good_disks = message.disks
                self.disks_changed.set()
            case _:
                self.obey(message)

    def _wake(self, id_: int, found: outcomes.Outcome[Any]) -> None:
        task = self._waiting.pop(id_, None)
        if task is not None:
            trio.lowlevel.reschedule(task, found)


async def _nobody_looks(_: Changes) -> None:
    """There is nobody to be told."""
