"""Files that are open, and what was written to them and is not published yet."""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from couchestord import logs
from couchestord.clock import Clock
from couchestord.errors import Error, IsADirectory, NoSpace, StaleInode
from couchestord.frontends.posix.drafts import Draft, Spilled
from couchestord.frontends.posix.publishing import publish, publish_early, spill
from couchestord.frontends.posix.reading import read
from couchestord.store.files import Files

log = logs.get(__name__)
DIRTY_S_MAX: Final = 30.0
"""So long bytes that the kernel has handed over wait to be published at most ..."""
IDLE_S_MAX: Final = 5.0
"""... and so long when none came since. It keeps them for about 30 s before."""
DIRTY_BYTES_MAX: Final = 64 << 20
"""With more of one file in memory, it is spilled while it is written on; with twice as much, who writes waits for that.
"""
DIRTY_PIECES_MAX: Final = 2048
"""The same of pieces, wherever they lie: one record has them all, and all writers of the store wait while it is
applied, some 15 us for each. With what was spilled in more of them, a file is published.
"""
ALL_DIRTY_BYTES_MAX: Final = 256 << 20
"""With more of all files together in memory, whichever is written is spilled at once: memory is bounded."""
_LOOK_S: Final = 1.0
_ASKED_MAX: Final = 16
"""So many answers are kept to."""


@dataclass(slots=True)
class _Open:
    """A file that somebody has open."""

    handles: int = 0
    writers: int = 0
    """Handles that may write."""
    cuts: int = 0
    """Under way, with nothing else to publish."""
    draft: Draft | None = None
    failure: str = ""
    """Why it could not be published when that was tried last."""
    dirty_since_s: float = 0.0
    written_s: float = 0.0
    turn: trio.Lock = field(default_factory=trio.Lock)
    """Of publishing."""

    @property
    def is_told(self) -> bool:
        """Whoever wrote knows that what the draft holds could not be published."""
        return bool(self.failure) and self.draft is not None and self.draft.is_asked_for


class OpenFiles:
    """One mount's. Belongs to one trio loop."""

    def __init__(self, store: Callable[[], Files], clock: Clock) -> None:
        """`store` answers the open store, or raises Unavailable."""
        self._store = store
        self._clock = clock
        self._open: dict[int, _Open] = {}
        self._handles: dict[int, int] = {}
        self._writers: set[int] = set()
        self._last_handle = 0
        self._let_go_of: deque[frozenset[int]] = deque(maxlen=_ASKED_MAX)
        """Files that nobody had open when that was asked: the store may be freeing them."""
        self._much_waits = trio.Event()
        self._dirty_bytes = 0
        """At least what all drafts hold; counted anew when one was published."""
        self.forget: Callable[[int], Awaitable[None]] = _nobody_keeps
        """Is told of each file that was closed and could not be published: what was written to it is not there."""
        self._forgetting: dict[int, trio.Event] = {}
        self._spills_begun = 0

    async def run(self) -> None:
        """Publishes what has waited for long, and what is much, until cancelled."""
        while True:
            with trio.move_on_after(_LOOK_S):
                await self._much_waits.wait()
            self._much_waits = trio.Event()
            if not await self._publish_due():
                await trio.sleep(_LOOK_S)

    async def _publish_due(self) -> bool:
        """False when some of it could not be."""
        now_s, is_well = trio.current_time(), True
        for id_, opened in list(self._open.items()):
            is_due = partial(_is_due, opened, now_s)
            if is_due():
                try:
                    await (self._publish if _is_old(opened, now_s) else self._relieve)(id_, opened, is_due)
                except Exception as error:
                    # whatever it is, it must not end the mount: drafts are there only
                    log.warning(
                        "a file cannot be published yet", file=id_, reason=str(error), exc_info=_unforeseen(error)
                    )
                    is_well = False
        return is_well

    async def finish(self) -> None:
        """Publishes all that was written, at the end, and no file waits for another; what cannot be, or is not before
        this is cancelled, is logged.
        """
        async with trio.open_nursery() as nursery:
            for id_, opened in self._open.items():
                if opened.draft is not None and (opened.draft.is_dirty or opened.draft.is_publishing):
                    nursery.start_soon(self._finish, id_, opened)

    async def _finish(self, id_: int, opened: _Open) -> None:
        what = "a file that is open could not be published at the end"
        try:
            await self._publish(id_, opened)
        except Exception as error:
            log.error(what, file=id_, reason=str(error), exc_info=_unforeseen(error))
        except trio.Cancelled:
            log.error(what, file=id_, reason="it took too long")
            raise

    def which_open(self, inodes: Sequence[int]) -> list[int]:
        """Those of these files without a name that somebody has open; the others are not opened any more."""
        if self._spills_begun:
            return list(inodes)  # one of them may be what was just made
        held = {each.draft.spilled.inode for each in self._open.values() if each.draft and each.draft.spilled}
        held.update(self._open)
        self._let_go_of.append(frozenset(inodes).difference(held))
        return [id_ for id_ in inodes if id_ in held]

    def written(self) -> list[int]:
        """Files that somebody may write to."""
        return [id_ for id_, opened in self._open.items() if opened.writers]

    def _next_handle(self) -> int:
        self._last_handle += 1
        return self._last_handle

    def open(self, ino: int, *, writes: bool = False, truncate: bool = False) -> int:
        """A handle, which may be written through; with `truncate` the file is empty then. Raises StaleInode,
        IsADirectory.
        """
        node = self._store().node(ino)
        if node.is_directory:
            raise IsADirectory("that is a directory")
        # one that has lost its name since the kernel looked it up can be opened, as on any disk
        if not node.nlink:
            self._check_kept(ino)
        return self._hand_out(ino, writes=writes, truncate=truncate)

    def _check_kept(self, ino: int) -> None:
        if any(ino in each for each in self._let_go_of):
            raise StaleInode(f"file {ino} is being freed")

    def _hand_out(self, ino: int, *, writes: bool, truncate: bool = False) -> int:
        """As `open`, of a file that is there."""
        opened = self._open.setdefault(ino, _Open())
        opened.handles += 1
        if truncate:
            self._draft(ino, opened).truncate(0, self._clock.now_ns())
        handle = self._next_handle()
        self._handles[handle] = ino
        if writes:
            self._writers.add(handle)
            opened.writers += 1
        return handle

    async def read(self, handle: int, offset: int, length: int) -> bytes | memoryview:
        """See `reading.read`."""
        id_ = self._handles[handle]
        return await read(self._store(), id_, self._open[id_].draft, offset, length)

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        """All of it, into the draft. Who writes faster than is published waits; raises then what publishing does, and
        has written nothing.
        """
        id_ = self._handles[handle]
        opened = self._open[id_]
        draft = self._draft(id_, opened)
        is_too_much = partial(self._is_too_much, draft)
        if is_too_much():
            # before it is taken in: what is refused takes no memory
            await self._relieve(id_, opened, is_too_much)
        before_bytes = draft.dirty_bytes
        draft.write(offset, data, self._clock.now_ns())
        self._dirty_bytes += draft.dirty_bytes - before_bytes
        if _load(draft) > 1:
            self._much_waits.set()
        if self._dirty_bytes > ALL_DIRTY_BYTES_MAX:
            with suppress(Error):  # who writes next, or syncs, is told
                await self._relieve(id_, opened, is_too_much)
        return len(data)

    def _is_too_much(self, draft: Draft) -> bool:
        return _load(draft) > 2 or self._dirty_bytes > ALL_DIRTY_BYTES_MAX

    def _draft(self, id_: int, opened: _Open) -> Draft:
        """That of an open file, which is about to be changed."""
        if opened.draft is None:
            opened.draft = Draft(self._store().node(id_).size)
        opened.written_s = trio.current_time()
        # what was spilled waits to be published, too
        if not opened.draft.is_dirty and opened.draft.spilled is None:
            opened.dirty_since_s = opened.written_s
        return opened.draft

    async def _truncate(self, id_: int, size: int, modified_ns: int | None = None) -> None:
        """Who writes a file publishes its new length with the bytes; else that is done now. `modified_ns` None: now."""
        opened = self._open.setdefault(id_, _Open())
        opened.handles += 1
        try:
            draft = self._draft(id_, opened)
            is_alone = opened.cuts > 0 or not (opened.writers or draft.is_dirty or draft.is_publishing)
            draft.truncate(size, modified_ns or self._clock.now_ns())
            opened.cuts += is_alone
            try:
                if not opened.writers:
                    await self._publish(id_, opened)
            except Error:
                if is_alone and opened.cuts == 1 and not opened.writers:
                    opened.draft = None  # nobody does later what was refused
                raise
            finally:
                opened.cuts -= is_alone
        finally:
            self._let_go(id_, opened)

    def _let_go(self, id_: int, opened: _Open) -> None:
        opened.handles -= 1
        if not opened.handles and self._open.get(id_) is opened:
            del self._open[id_]

    def is_dirty(self, handle: int) -> bool:
        """Whether there is something to sync, or it is being synced, of what may have been written through it."""
        draft = self._open[self._handles[handle]].draft if handle in self._writers else None
        return draft is not None and (draft.is_dirty or draft.is_publishing)

    async def sync(self, handle: int) -> None:
        """What was written is durable, and visible to S3, on return."""
        id_ = self._handles[handle]
        opened = self._open[id_]
        if opened.draft is not None:
            opened.draft.is_asked_for = True
        await self._publish(id_, opened)

    def is_owed(self, handle: int) -> bool:
        """Whether something is to be synced yet, as `is_dirty` says, and nobody knows that it could not be. Who knows
        may have made room since, and does not expect the bytes any more.
        """
        return self.is_dirty(handle) and not self._open[self._handles[handle]].is_told

    async def close(self, handle: int) -> None:
        """The handle is given back. Raises nothing that is foreseen: whoever wants to know has synced before."""
        id_ = self._handles.pop(handle)
        opened = self._open[id_]
        is_writer = handle in self._writers
        self._writers.discard(handle)
        opened.writers -= is_writer
        try:
            # it is not tried again when nobody has it open
            is_told = opened.handles == 1 and opened.is_told
            if not is_told and (opened.handles == 1 or (is_writer and not opened.writers)):
                await self._publish(id_, opened)
        except Error:
            pass  # it is said below, or others have the file open
        finally:
            self._let_go(id_, opened)
            if id_ not in self._open and opened.draft is not None and opened.draft.is_dirty:
                log.error("what was written to a file that was closed is given up", file=id_, reason=opened.failure)
                opened.draft = None  # who goes through what was open would publish it yet
                self._forgetting[id_] = trio.Event()
                try:
                    await self.forget(id_)
                finally:
                    self._forgetting.pop(id_).set()

    async def wait_forgotten(self, ino: int) -> None:
        """While something may be shown of a file that was given up. Before it is opened anew."""
        while (forgetting := self._forgetting.get(ino)) is not None:
            await forgetting.wait()

    async def _publish(self, id_: int, opened: _Open, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """All that was written to a file, once nobody else is at it, and if it is wanted then."""
        async with opened.turn:
            if opened.draft is not None and opened.draft.is_dirty and is_wanted():
                begun_s = trio.current_time()
                try:
                    await publish(self._store(), id_, opened.draft)
                    opened.failure, opened.dirty_since_s = "", begun_s
                except BaseException as error:
                    opened.failure = str(error) or repr(error)
                    raise
                finally:
                    self._count_dirty()

    async def _relieve(self, id_: int, opened: _Open, is_wanted: Callable[[], bool]) -> None:
        """What a file has in memory goes into the store, unseen where it is in few pieces."""
        async with opened.turn:
            draft = opened.draft
            may_spill = draft is not None and draft.all_pieces_count <= DIRTY_PIECES_MAX
            if draft is not None and draft.is_dirty and is_wanted() and may_spill:
                try:
                    if draft.spilled is None:
                        draft.spilled = await self._make_spill()
                    await spill(self._store(), id_, draft, draft.spilled)
                except NoSpace:
                    if not await publish_early(self._store(), id_, draft):
                        raise
                finally:
                    self._count_dirty()
        if not may_spill:
            await self._publish(id_, opened, is_wanted)

    async def _make_spill(self) -> Spilled:
        self._spills_begun += 1
        try:
            return Spilled(await self._store().make_spill())
        finally:
            self._spills_begun -= 1

    def _count_dirty(self) -> None:
        self._dirty_bytes = sum(each.draft.dirty_bytes for each in self._open.values() if each.draft)


async def _nobody_keeps(_: int) -> None:
    """No kernel is above."""


def _unforeseen(error: Exception) -> Exception | None:
    """For the log: where it comes from."""
    return None if isinstance(error, Error) else error


def _is_due(opened: _Open, now_s: float) -> bool:
    draft = opened.draft
    if draft is None or not draft.is_dirty:
        return False
    return _is_old(opened, now_s) or _load(draft) > 1


def _is_old(opened: _Open, now_s: float) -> bool:
    return now_s >= min(opened.dirty_since_s + DIRTY_S_MAX, opened.written_s + IDLE_S_MAX)


def _load(draft: Draft) -> float:
    """Above 1 it is to be published, above 2 who writes waits for that."""
    return max(draft.dirty_bytes / DIRTY_BYTES_MAX, draft.pieces_count / DIRTY_PIECES_MAX)
