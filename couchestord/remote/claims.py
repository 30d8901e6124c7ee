"""Whether a backend may be trusted with blobs, and whether the store that asks is the only one of its identity."""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import trio

from couchestord.errors import BlobExists, NoSuchBlob, RemoteRefused
from couchestord.remote.backend import Backend, Stored, all_objects, delete_each

_RANDOM_BYTES = 16
_KNOWN_MAX = 14
_CLAIM = re.compile(r"claims/[0-9a-f]{32}/[0-9a-f]{16}")


async def try_backend(backend: Backend, random_bytes: Callable[[int], bytes]) -> None:
    """Put, put again, read, list and delete an object under a random name.

    Raises RemoteRefused when one of them does not do what `Backend` promises, above all when what is stored can be
    replaced; RemoteError when the backend fails.
    """
    key = f"trials/{random_bytes(_RANDOM_BYTES).hex()}"
    first, other = random_bytes(_RANDOM_BYTES), random_bytes(_RANDOM_BYTES)
    await backend.put_new(key, [first])
    try:
        with suppress(BlobExists):
            await backend.put_new(key, [other])
            raise RemoteRefused(
                f"{backend.name} replaces what is stored: it does not know If-None-Match, or ignores it"
            )
        if await backend.get(key, 0, 2 * _RANDOM_BYTES) != first:
            raise RemoteRefused(f"{backend.name} does not give back what it took")
        if [stored async for stored in all_objects(backend, key)] != [Stored(key, len(first))]:
            raise RemoteRefused(f"{backend.name} does not list what it took")
    finally:
        await backend.delete(key)
    with suppress(NoSuchBlob):
        await backend.size(key)
        raise RemoteRefused(f"{backend.name} still has what was deleted")


async def newest_epoch(backend: Backend, store_id: bytes) -> int:
    """The newest that a start of the store has claimed there; 0: none has. Raises RemoteError."""
    stored = all_objects(backend, f"claims/{store_id.hex()}/")
    return max([int(one.key[-16:], 16) async for one in stored if _CLAIM.fullmatch(one.key)], default=0)


class Claim:
    """Says in the bucket that the store runs in this epoch. A copy of the store that does, too, is found by that.

    A claim is put and never changed, and its name is the epoch: of two copies in the same epoch one is told that the
    name is taken, and of two in different ones the older finds the newer when it looks.
    """

    def __init__(self, backend: Backend, store_id: bytes, epoch: int) -> None:
        self._backend = backend
        self._folder = f"claims/{store_id.hex()}"
        self._key = f"{self._folder}/{epoch:016x}"

    async def take(self, random_bytes: Callable[[int], bytes]) -> None:
        """Once a start, before anything else is written or deleted. Claims of older epochs go.

        Raises RemoteRefused when another copy of the store has claimed this epoch, or a newer one; RemoteError.
        """
        try:
            await self._backend.put_new(self._key, [random_bytes(_RANDOM_BYTES)])
        except BlobExists:
            raise self._copied() from None
        await self.check()
        older = [one.key async for one in all_objects(self._backend, f"{self._folder}/") if one.key < self._key]
        # one that stays is in nobody's way: the newest counts
        await delete_each(self._backend, older)

    async def before(self, own: Sequence[bytes]) -> list[bytes]:
        """The bytes of the newest claim of an older epoch, if there is one. Raises RemoteRefused when it is not among
        the store's `own`, if it knows any, or when a newer claim is there; RemoteError.
        """
        there = [one.key async for one in all_objects(self._backend, f"{self._folder}/")]
        if any(key > self._key for key in there):
            raise self._copied()
        older = [key for key in there if key < self._key]
        if not older:
            return []
        found = await self._backend.get(max(older), 0, _RANDOM_BYTES)
        if own and found not in own:
            raise RemoteRefused(f"{self._copied()}. When the other one is gone for good, delete {max(older)} there")
        return [found]

    async def check(self) -> None:
        """Before anything is deleted, here or there. Raises RemoteRefused when a newer claim is there; RemoteError."""
        if [one async for one in all_objects(self._backend, f"{self._folder}/") if one.key > self._key]:
            raise self._copied()

    def _copied(self) -> RemoteRefused:
        return RemoteRefused(f"{self._backend.name} is in use by a copy of this store: stop one, and find out why")


class Memory(Protocol):
    """What a store keeps of claims, over its starts."""

    def claims(self) -> Sequence[bytes]:
        """The bytes of those that are its own; none: it never kept any."""
        ...

    async def keep(self, claims: Sequence[bytes]) -> None:
        """These are, and no others; durable on return. Raises Unavailable."""
        ...


class Gate:
    """Whether the bucket may be written now: it was tried, the start has claimed it, and nobody claimed it after that.

    A start follows upon its own store's claim only. Epochs alone do not tell: those of a node that another one took the
    place of, or of a copy, grow with each of its starts, too, beyond those of the other in the end.

    Nothing is asked before the first `check`, so a bucket that does not answer keeps no store from starting.
    """

    def __init__(
        self, backend: Backend, store_id: bytes, epoch: int, random_bytes: Callable[[int], bytes], memory: Memory
    ) -> None:
        self._backend = backend
        self._claim = Claim(backend, store_id, epoch)
        self._random_bytes = random_bytes
        self._memory = memory
        # a claim whose answer was lost is made again with the same bytes: it is ours
        self._own = random_bytes(_RANDOM_BYTES)
        self._turn = trio.Lock()
        self.is_open = False
        """The bucket was claimed by this start."""

    async def check(self) -> None:
        """Raises RemoteRefused when the bucket cannot be used, or a copy of this store uses it; RemoteError,
        Unavailable.
        """
        async with self._turn:
            if self.is_open:
                await self._claim.check()
                return
            await try_backend(self._backend, self._random_bytes)
            known = self._memory.claims()
            before = await self._claim.before(known)
            # all of them: what this one follows upon, and some that may be there or not
            await self._memory.keep(list(dict.fromkeys([*known[-_KNOWN_MAX:], *before, self._own])))
            await self._claim.take(lambda _count: self._own)
            self.is_open = True
