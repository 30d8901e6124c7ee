"""Blobs of one store in a backend: put and proved, read and verified.

Everything here may be repeated after a failure or a crash: nothing that is stored is ever changed.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Final

import trio

from couchestord import logs
from couchestord.errors import BlobExists, Corrupt, Unavailable
from couchestord.remote.backend import Backend, all_objects, parts_length
from couchestord.remote.blob import (
    HEAD_BYTES,
    BlobName,
    BlobPacker,
    Held,
    index_bytes,
    parse_key,
    read_index,
    read_range,
    span_of,
)

log = logs.get(__name__)

_NAMES_MAX: Final = 4
_READ_BYTES: Final = 4 << 20
_GAP_BYTES_MAX: Final = 256 << 10
"""Read with what lies before and behind it, though nobody wants it: another request costs more."""
_FIRST_BYTES: Final = 64 << 10
"""Asked for to find an index: most are shorter."""


class Blobs:
    """The blobs of the store `store_id`. Any number of tasks."""

    def __init__(self, backend: Backend, store_id: bytes) -> None:
        self._backend = backend
        self._store_id = store_id

    def name(self, epoch: int, number: int) -> BlobName:
        return BlobName(self._store_id, epoch, number)

    async def put(self, name: BlobName, packer: BlobPacker, *, read_back: bool = True) -> tuple[Held, ...]:
        """Store what was packed, prove that it is there, and say where in it each extent lies.

        On return the backend gave back the index, and with `read_back` every byte, as they were packed. Raises
        BlobExists when another blob has the name: take another; Corrupt when what comes back is not what was put;
        RemoteError. After any error the blob may be there, whole.
        """
        parts, packed = await trio.to_thread.run_sync(packer.pack, name)
        await self._backend.put_new(name.key, parts)
        if await self._backend.size(name.key) != parts_length(parts):
            raise Corrupt(f"{name.key} has another size than what was put")
        if await self.index(name) != packed:
            raise Corrupt(f"{name.key} has another index than what was put")
        if read_back:
            await self.verify(name, packed)
        return packed

    async def begin_and_put(
        self, begin: Callable[[], Awaitable[BlobName]], packer: BlobPacker, *, read_back: bool = True
    ) -> tuple[BlobName, tuple[Held, ...]]:
        """As `put`, under a name that `begin` gives. One that is taken, by a copy of this store, is left alone: another
        is begun, a few times. Raises Unavailable when all of them are taken, and what `begin` raises.
        """
        for _ in range(_NAMES_MAX):
            name = await begin()
            try:
                return name, await self.put(name, packer, read_back=read_back)
            except BlobExists as error:
                log.error("the name of a blob was taken", blob=name.key, reason=str(error))
        raise Unavailable("names of blobs are taken again and again: is a copy of this store running?")

    async def index(self, name: BlobName) -> tuple[Held, ...]:
        """What a blob holds. Raises NoSuchBlob, Corrupt, UnknownFormat, RemoteError."""
        data = await self._backend.get(name.key, 0, _FIRST_BYTES)
        length = index_bytes(name, data[:HEAD_BYTES])
        if length > len(data):
            data += await self._backend.get(name.key, len(data), length - len(data))
        return read_index(name, data)

    async def read(self, name: BlobName, held: Held, start: int, length: int) -> bytes:
        """Bytes of an extent, verified. Raises NoSuchBlob, Corrupt, RemoteError."""
        span = span_of(held, start, length)
        data = await self._backend.get(name.key, span.offset, span.length)
        return read_range(name, held, start, length, data)

    async def verify(self, name: BlobName, index: Sequence[Held]) -> None:
        """Read every byte of a blob of that index, a few MiB at a time. Raises as `read` does."""
        async with aclosing(self.read_all(name, index)) as pieces:
            async for _ in pieces:
                pass

    async def read_all(self, name: BlobName, wanted: Sequence[Held]) -> AsyncGenerator[tuple[Held, bytes]]:
        """All bytes of these extents, which are given in the order in which they lie there, verified: pieces of a few
        MiB at most, each with whose it is. Few requests: near ones are read together. Raises as `read` does.
        """
        for run in _runs(wanted):
            spans = [span_of(*piece) for piece in run]
            offset, end = spans[0].offset, spans[-1].offset + spans[-1].length
            data = memoryview(await self._backend.get(name.key, offset, end - offset))
            for span, (held, start, length) in zip(spans, run, strict=True):
                at = span.offset - offset
                yield held, read_range(name, held, start, length, data[at : at + span.length])

    async def delete(self, name: BlobName) -> None:
        """It is gone on return, if it was there."""
        await self._backend.delete(name.key)

    async def names(self) -> list[BlobName]:
        """All that are there, in order. Other keys in between are nobody's affair."""
        prefix = f"blobs/{self._store_id.hex()}/"
        return sorted([name async for one in all_objects(self._backend, prefix) if (name := parse_key(one.key))])


def _runs(wanted: Sequence[Held]) -> Iterator[list[tuple[Held, int, int]]]:
    """Ranges of extents, (extent, start, length) each, as one request brings them."""
    run: list[tuple[Held, int, int]] = []
    run_bytes = end = 0
    for held in wanted:
        for start in range(0, held.length, _READ_BYTES):
            length = min(_READ_BYTES, held.length - start)
            span = span_of(held, start, length)
            gap_bytes = span.offset - end if run else 0
            if run_bytes + gap_bytes + length > _READ_BYTES or gap_bytes > _GAP_BYTES_MAX:
                yield run
                run, run_bytes, gap_bytes = [], 0, 0
            run.append((held, start, length))
            run_bytes += gap_bytes + length
            end = span.offset + span.length
    if run:
        yield run
