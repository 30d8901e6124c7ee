"""Bodies on their way in: hashed, and laid where they stay, before the writer hears of them.

A short body rides in the journal record. A long one is cut into stripes that are written while the next bytes arrive;
its end rides in the record when it is short, else it becomes a short stripe. So no body is held whole in memory and
none is written twice.
"""

import hashlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import TYPE_CHECKING

import trio

from couchestord.ec.segments import SegmentPool, StripeWriter, no_wait
from couchestord.errors import EntityTooLarge, Error, IncompleteBody
from couchestord.io.checksum import xxh3_64
from couchestord.io.mutations import Extent
from couchestord.model import Body, FillingBody
from couchestord.store.fill import Fill
from couchestord.store.options import INLINE_BYTES_MAX

if TYPE_CHECKING:
    from couchestord.store.overflow import Overflow

HASH_IN_THREAD_BYTES_MIN = 64 << 10
BATCH_STRIPES = 8
"""Stripes written in one call per disk: fewer calls, at the price of so much memory a stream. Twice as many cost more
again: they do not stay in the processor's cache from the socket to the disks.
"""
BATCH_STREAMS_MAX = 16
"""With more streams than these, those that come have a single stripe at a time: a thousand clients may be slow."""
BATCHES_KEPT_MAX = 4
"""Buffers of a batch that are kept while no stream uses them."""
SLOW_CLIENT_S = 1.0
"""A stream that brings no stripe for so long gives its segment to others until it goes on."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A body that is durable but for its inline end. Only a commit gives it a name."""

    size: int
    md5: bytes
    """Empty when nobody wanted it."""
    extents: tuple[Extent, ...]
    inline: bytes = b""
    inline_sum: int = 0
    policy: int = 0
    content: int = 0
    """Id of the first extent, when they lie in blobs."""


class Intake:
    """Takes bodies in. One per store; any task may call."""

    def __init__(self, pool: SegmentPool, size_bytes_max: int) -> None:
        self._pool = pool
        self._size_bytes_max = size_bytes_max
        self._batches = _Batches()
        self.overflow: Callable[[], Overflow | None] = lambda: None
        """Where long bodies go while the disks are too full for them; None: to the disks."""
        self.fill: Fill | None = None
        """New data waits for it."""

    @asynccontextmanager
    async def take(
        self, body: Body, size: int | None, policy: int = 0, *, hashed: bool = True, inlined: bool = True
    ) -> AsyncIterator[Taken]:
        """Consume a body, to be kept under a policy; its space is held until the context ends, so commit inside.
        `hashed` False: nobody wants its MD5, which is half of what a long body costs. `inlined` False: the record has
        no room for any of it.

        Raises IncompleteBody when it is not `size` bytes long, EntityTooLarge, NoSpace, TooFewDisks, and whatever the
        body's iterator raises; then nothing remains but garbage that compaction removes.
        """
        limit = self._size_bytes_max if size is None else size
        if limit > self._size_bytes_max:
            raise EntityTooLarge(f"{size} bytes, at most {self._size_bytes_max} are allowed")
        if inlined and isinstance(body, bytes) and len(body) <= INLINE_BYTES_MAX:
            check_size(len(body), size)
            yield inline(body, policy, hashed=hashed)
            return
        async with aclosing(_Source(body, limit, size)) as source:
            if inlined and (size is None or size <= INLINE_BYTES_MAX):
                begun = await source.look(INLINE_BYTES_MAX + 1)
                if len(begun) <= INLINE_BYTES_MAX:
                    yield inline(begun, policy, hashed=hashed)
                    return
            overflow = self.overflow()
            if overflow is not None:
                async with overflow.take(source) as (size_bytes, md5, extents, content):
                    yield Taken(size_bytes, md5, extents, policy=policy, content=content)
                return
            await_more = self.fill.await_more if self.fill is not None else no_wait
            async with self._pool.writer(policy, await_more=await_more) as writer:
                with self._batches.stream():
                    stream = _Stream(writer, self._batches, self.fill, hashed=hashed, inlined=inlined)
                    taken = await stream.take(source)
                writer.release()
                yield taken


class _Source:
    """A body, read into the buffers of whoever wants it, and held to its length."""

    def __init__(self, body: Body, limit: int, size: int | None) -> None:
        self._filling: FillingBody | None = None
        self._pieces: AsyncIterator[bytes | bytearray] | None = None
        self._ready: deque[memoryview] = deque()
        if isinstance(body, FillingBody):
            self._filling = body
        else:
            self._pieces = aiter(_one(body) if isinstance(body, bytes) else body)
        self._limit = limit
        self._size = size
        self._came = 0

    async def read_into(self, buffer: memoryview) -> int:
        """See `FillingBody`."""
        while not self._ready:
            if self._filling is not None:
                return self._account(await self._filling.read_into(buffer))
            assert self._pieces is not None
            try:
                piece = memoryview(await anext(self._pieces)).cast("B")
            except StopAsyncIteration:
                return self._account(0)
            if piece:
                self._account(len(piece))
                self._ready.append(piece)
        piece = self._ready.popleft()
        count = min(len(buffer), len(piece))
        buffer[:count] = piece[:count]
        if count < len(piece):
            self._ready.appendleft(piece[count:])
        return count

    def _account(self, count: int) -> int:
        """Bytes that came; 0: the end."""
        self._came += count
        if self._came > self._limit:
            raise _too_long(self._limit, self._size)
        if not count:
            check_size(self._came, self._size)
        return count

    async def look(self, length: int) -> bytes:
        """The first `length` bytes, or all when there are fewer; they are read again after it."""
        buffer = memoryview(bytearray(length))
        filled = 0
        while filled < length and (count := await self.read_into(buffer[filled:])):
            filled += count
        begun = bytes(buffer[:filled])
        if begun:
            self._ready.appendleft(memoryview(begun))
        return begun

    async def aclose(self) -> None:
        """Of a body that is left in the middle nothing may stay suspended."""
        if isinstance(self._pieces, AsyncGenerator):
            await self._pieces.aclose()


class _Batches:
    """Buffers of a batch each, for one stream at a time. Fresh memory costs more than the coding of what comes into
    it, so some are kept. It is mapped, not filled: a client that sends little takes little.
    """

    def __init__(self) -> None:
        self._idle: list[mmap] = []
        self._streams_count = 0

    @contextmanager
    def stream(self) -> Iterator[None]:
        """While one stream takes batches."""
        self._streams_count += 1
        try:
            yield
        finally:
            self._streams_count -= 1

    def take(self, stripe_bytes: int) -> mmap:
        """Room for some stripes of that size."""
        size_bytes = stripe_bytes * (BATCH_STRIPES if self._streams_count <= BATCH_STREAMS_MAX else 1)
        # a policy's stripes may be longer than another's: what does not fit makes place for what does
        found = self._idle.pop() if self._idle else None
        if found is not None and len(found) == size_bytes:
            return found
        return mmap(-1, size_bytes, flags=MAP_PRIVATE | MAP_ANONYMOUS)

    def give_back(self, batch: mmap) -> None:
        """Only what nobody reads any more: no task, no thread of a disk."""
        if len(self._idle) < BATCHES_KEPT_MAX:
            self._idle.append(batch)


class _Stream:
    """One long body on its way into stripes, hashed beside when that is wanted.

    While its client is slow the segment is synced and given back, so that a few slow clients do not hold every segment
    that may be open.
    """

    def __init__(
        self, writer: StripeWriter, batches: _Batches, fill: Fill | None, *, hashed: bool, inlined: bool
    ) -> None:
        self._writer = writer
        self._fill = fill
        self._stripe_bytes = writer.policy.stripe_bytes
        self._batches = batches
        self._md5 = hashlib.md5(usedforsecurity=False) if hashed else None
        self._inline_bytes_max = INLINE_BYTES_MAX if inlined else 0
        self._size = 0
        self._lock = trio.Lock()
        self._laid_at: float | None = None

    async def take(self, source: _Source) -> Taken:
        """All of a body; durable on return."""
        failure: Exception | None = None
        taken: Taken | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            try:
                taken = await self._consume(source)
            except Exception as error:
                # raised outside of the nursery, which would wrap it
                failure = error
            nursery.cancel_scope.cancel()
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # which holds this frame, and so itself, and with it all that a batch takes
        assert taken is not None
        return taken

    async def _consume(self, source: _Source) -> Taken:
        batch, filled = self._batches.take(self._stripe_bytes), 0
        while count := await source.read_into(memoryview(batch)[filled:]):
            filled += count
            if filled == len(batch):
                batch = await self._lay(batch, filled)
                filled = 0
        end_bytes = filled % self._stripe_bytes
        if end_bytes > self._inline_bytes_max:
            end_bytes = 0
        end = bytes(memoryview(batch)[filled - end_bytes : filled])
        if filled > end_bytes:
            batch = await self._lay(batch, filled - end_bytes)
        self._batches.give_back(batch)
        self._size += len(end)
        md5 = b""
        if self._md5 is not None:
            self._md5.update(end)
            md5 = self._md5.digest()
        async with self._lock:
            await self._writer.sync()
        runs = tuple(self._writer.runs)
        extents = (*runs, Extent(len(end))) if end else runs
        return Taken(self._size, md5, extents, end, xxh3_64(end), self._writer.policy.id)

    async def _lay(self, batch: mmap, length: int) -> mmap:
        """Write what lies at the start of a batch, in stripes that are full but for the last, and hash it beside.

        Returns the batch to go on with: another one when a disk that hangs may read this one for ever.
        """
        if self._fill is not None:
            await self._fill.await_room()
        self._size += length
        view, size = memoryview(batch)[:length], self._stripe_bytes
        stripes = [view[at : at + size] for at in range(0, length, size)]
        failure: Exception | None = None
        async with self._lock:
            async with trio.open_nursery() as nursery:
                if self._md5 is not None:
                    nursery.start_soon(_hash, self._md5, view)
                try:
                    await self._writer.append_many(stripes)
                except Exception as error:
                    failure = error
            self._laid_at = trio.current_time()
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # see `take`
        return batch if self._writer.buffers_are_free else self._batches.take(self._stripe_bytes)

    async def _watch(self) -> None:
        """Give the segment back when nothing came for a while."""
        while True:
            await trio.sleep(SLOW_CLIENT_S)
            async with self._lock:
                if self._laid_at is not None and trio.current_time() - self._laid_at >= SLOW_CLIENT_S:
                    try:
                        await self._writer.sync()
                    except Error:
                        return  # the stream meets it itself, at its own sync or append
                    self._writer.release()
                    self._laid_at = None


def inline(body: bytes, policy: int, *, hashed: bool = True) -> Taken:
    """A short body, which rides in its record."""
    md5 = hashlib.md5(body, usedforsecurity=False).digest() if hashed else b""
    return Taken(len(body), md5, (Extent(len(body)),) if body else (), body, xxh3_64(body), policy)


async def _hash(md5: "hashlib._Hash", data: memoryview) -> None:
    if len(data) < HASH_IN_THREAD_BYTES_MIN:
        md5.update(data)
    else:
        await trio.to_thread.run_sync(md5.update, data)


async def _one(piece: bytes) -> AsyncGenerator[bytes, None]:
    yield piece


def check_size(found: int, size: int | None) -> None:
    """Raises IncompleteBody for a body of `found` bytes when another size was announced."""
    if size is not None and found != size:
        raise IncompleteBody(f"the body has {found} bytes, {size} were announced")


def _too_long(limit: int, size: int | None) -> Exception:
    if size is not None:
        return IncompleteBody(f"the body has more than the announced {size} bytes")
    return EntityTooLarge(f"the body has more than {limit} bytes")
