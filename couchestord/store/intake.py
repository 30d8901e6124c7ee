"""Bodies on their way in: hashed, and laid where they stay, before the writer hears of them.

A short body rides in the journal record. A long one is cut into stripes that are written while the next bytes arrive;
its end rides in the record when it is short, else it becomes a short stripe. So no body is held whole in memory and
none is written twice.
"""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import trio

from couchestord.ec.segments import SegmentPool, StripeWriter
from couchestord.errors import EntityTooLarge, Error, IncompleteBody
from couchestord.io.checksum import xxh3_64
from couchestord.io.mutations import Extent
from couchestord.model import Body
from couchestord.store.options import INLINE_BYTES_MAX

HASH_IN_THREAD_BYTES_MIN = 64 << 10
BATCH_STRIPES = 4
"""Stripes written in one call per disk: fewer calls, at the price of so much memory a stream."""
SLOW_CLIENT_S = 1.0
"""A stream that brings no stripe for so long gives its segment to others until it goes on."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A body that is durable but for its inline end. Only a commit gives it a name."""

    size: int
    md5: bytes
    extents: tuple[Extent, ...]
    inline: bytes = b""
    inline_sum: int = 0


class Intake:
    """Takes bodies in. One per store; any task may call."""

    def __init__(self, pool: SegmentPool, size_bytes_max: int) -> None:
        self._pool = pool
        self._size_bytes_max = size_bytes_max

    @asynccontextmanager
    async def take(self, body: Body, size: int | None) -> AsyncIterator[Taken]:
        """Consume a body; its space is held until the context ends, so commit inside.

        Raises IncompleteBody when it is not `size` bytes long, EntityTooLarge, NoSpace, TooFewDisks, and whatever the
        body's iterator raises; then nothing remains but garbage that compaction removes.
        """
        limit = self._size_bytes_max if size is None else size
        if limit > self._size_bytes_max:
            raise EntityTooLarge(f"{size} bytes, at most {self._size_bytes_max} are allowed")
        if isinstance(body, bytes) and len(body) <= INLINE_BYTES_MAX:
            _check_size(len(body), size)
            yield _inline(body)
            return
        buffer = bytearray()
        async with aclosing(_limited(body, limit, size)) as pieces:
            async for piece in pieces:
                buffer += piece
                if len(buffer) > INLINE_BYTES_MAX:
                    break
            else:
                _check_size(len(buffer), size)
                yield _inline(bytes(buffer))
                return
            async with self._pool.writer() as writer:
                taken = await _Stream(writer, self._pool.options.stripe_bytes).take(buffer, pieces)
                _check_size(taken.size, size)
                writer.release()
                yield taken


class _Stream:
    """One long body on its way into stripes, hashed beside.

    While its client is slow the segment is synced and given back, so that a few slow clients do not hold every segment
    that may be open.
    """

    def __init__(self, writer: StripeWriter, stripe_bytes: int) -> None:
        self._writer = writer
        self._stripe_bytes = stripe_bytes
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._size = 0
        self._buffer = bytearray()
        self._lock = trio.Lock()
        self._laid_at: float | None = None

    async def take(self, buffer: bytearray, pieces: AsyncIterator[bytes | memoryview]) -> Taken:
        """The bytes that came already, and the rest; durable on return."""
        self._buffer = buffer
        failure: Exception | None = None
        taken: Taken | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            try:
                taken = await self._consume(pieces)
            except Exception as error:
                # raised outside of the nursery, which would wrap it
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        assert taken is not None
        return taken

    async def _consume(self, pieces: AsyncIterator[bytes | memoryview]) -> Taken:
        batch_bytes = self._stripe_bytes * BATCH_STRIPES
        async for piece in pieces:
            self._buffer += piece
            if len(self._buffer) >= batch_bytes:
                await self._lay_full_stripes()
        await self._lay_full_stripes()
        end = b""
        if len(self._buffer) > INLINE_BYTES_MAX:
            await self._lay(self._buffer)
        else:
            end = bytes(self._buffer)
            self._size += len(end)
            self._md5.update(end)
        async with self._lock:
            await self._writer.sync()
        runs = tuple(self._writer.runs)
        return Taken(self._size, self._md5.digest(), (*runs, Extent(len(end))) if end else runs, end, xxh3_64(end))

    async def _lay_full_stripes(self) -> None:
        whole, batch_bytes = self._buffer, self._stripe_bytes * BATCH_STRIPES
        full_bytes = len(whole) - len(whole) % self._stripe_bytes
        if full_bytes:
            # a new buffer for what is left: a disk that hangs may read the old one for ever
            self._buffer = whole[full_bytes:]
            for at in range(0, full_bytes, batch_bytes):
                await self._lay(memoryview(whole)[at : min(at + batch_bytes, full_bytes)])

    async def _lay(self, data: bytearray | memoryview) -> None:
        """Write some stripes, all but the last full, and hash them beside."""
        self._size += len(data)
        view, size = memoryview(data), self._stripe_bytes
        stripes = [view[at : at + size] for at in range(0, len(view), size)]
        failure: Exception | None = None
        async with self._lock:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_hash, self._md5, data)
                try:
                    await self._writer.append_many(stripes)
                except Exception as error:
                    failure = error
            self._laid_at = trio.current_time()
        if failure is not None:
            raise failure

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


async def _limited(body: Body, limit: int, size: int | None) -> AsyncGenerator[bytes | memoryview, None]:
    total = 0
    async with aclosing(_pieces(body)) as pieces:
        async for piece in pieces:
            total += len(piece)
            if total > limit:
                raise _too_long(limit, size)
            yield piece


def _inline(body: bytes) -> Taken:
    md5 = hashlib.md5(body, usedforsecurity=False).digest()
    return Taken(len(body), md5, (Extent(len(body)),) if body else (), body, xxh3_64(body))


async def _hash(md5: "hashlib._Hash", data: bytearray | memoryview) -> None:
    if len(data) < HASH_IN_THREAD_BYTES_MIN:
        md5.update(data)
    else:
        await trio.to_thread.run_sync(md5.update, data)


async def _pieces(body: Body) -> AsyncGenerator[bytes | memoryview, None]:
    if isinstance(body, bytes):
        view = memoryview(body)
        for at in range(0, len(view), 1 << 20):
            yield view[at : at + (1 << 20)]
        return
    iterator = aiter(body)
    try:
        async for piece in iterator:
            yield piece
    finally:
        # of a body that is left in the middle nothing may stay suspended
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()


def _check_size(found: int, size: int | None) -> None:
    if size is not None and found != size:
        raise IncompleteBody(f"the body has {found} bytes, {size} were announced")


def _too_long(limit: int, size: int | None) -> Exception:
    if size is not None:
        return IncompleteBody(f"the body has more than the announced {size} bytes")
    return EntityTooLarge(f"the body has more than {limit} bytes")
