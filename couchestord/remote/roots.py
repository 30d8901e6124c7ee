"""Roots, pieces and runs of the log of one store in a backend: put, found, read and verified, and removed.

A root is put behind all that it needs, so one that is there was whole. Whoever reads verifies nevertheless, and takes
an older one when a piece is gone or rotten.
"""

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from functools import partial
from itertools import zip_longest
from typing import Final, NamedTuple, TypeVar

import trio

from couchestord import logs
from couchestord.errors import Corrupt, NoSuchBlob, RemoteError, RemoteUnavailable, UnknownFormat
from couchestord.remote.backend import Backend, Buffer, all_objects, delete_each
from couchestord.remote.root import (
    Entry,
    Root,
    RootName,
    Run,
    RunName,
    digest_of,
    pack_root,
    pack_run,
    parse_piece_key,
    parse_root_key,
    parse_run_key,
    piece_key,
    unpack_root,
    unpack_run,
)

log = logs.get(__name__)
_T = TypeVar("_T", Root, Run, bytes)
ROOTS_KEPT: Final = 2
OBJECT_BYTES_MAX: Final = 16 << 20
"""Of a root, a piece or a run: nothing that is put comes near. A run has 4 MiB of records and one more, a root 2 MiB at
most, as the table of a snapshot has to fit into one stripe.
"""


async def store_ids(backend: Backend) -> list[bytes]:
    """Stores of which a root is there. Raises RemoteError."""
    return sorted({name.store_id async for one in all_objects(backend, "roots/") if (name := parse_root_key(one.key))})


class Collected(NamedTuple):
    removed_count: int
    """Objects that went."""
    kept_from: int
    """No root that is left is of an older sequence."""
    failure: RemoteError | None
    """Why some are still there."""


class Roots:
    """What the store `store_id` says of itself. One task at a time."""

    def __init__(self, backend: Backend, store_id: bytes) -> None:
        self._backend = backend
        self._store_id = store_id

    # -- put -------------------------------------------------------------------------------------------------------

    async def put_piece(self, piece: Buffer, there: Collection[bytes]) -> bytes:
        """Its digest. Put and read back, unless it is among those that are `there`. Raises RemoteError, Corrupt."""
        digest = await trio.to_thread.run_sync(digest_of, piece)
        if digest not in there:
            key = piece_key(self._store_id, digest)
            await self._backend.put_new(key, [piece])
            try:
                await self.read_piece(digest)
            except Corrupt:
                await self._backend.delete(key)  # the next attempt must not find it there
                raise
        return digest

    async def put_root(self, root: Root) -> None:
        """After all that it needs. The same root may be put again. Raises RemoteError, Corrupt."""
        await self._backend.put_new(root.name.key, [pack_root(root)])
        if await self.read_root(root.name) != root:
            raise Corrupt(f"{root.name.key} is another than what was put")

    async def put_run(self, run: Run) -> None:
        """The same run may be put again. Raises RemoteError, Corrupt."""
        await self._backend.put_new(run.name.key, [pack_run(run)])
        if await self._read_run(run.name) != run:
            raise Corrupt(f"{run.name.key} is another than what was put")

    # -- find and read ---------------------------------------------------------------------------------------------

    async def names(self) -> list[RootName]:
        """The roots that are there, the newest first."""
        stored = all_objects(self._backend, f"roots/{self._store_id.hex()}/")
        return sorted([name async for one in stored if (name := parse_root_key(one.key))], reverse=True)

    async def pieces(self) -> set[bytes]:
        """Digests of the pieces that are there."""
        stored = all_objects(self._backend, f"pieces/{self._store_id.hex()}/")
        return {digest async for one in stored if (digest := parse_piece_key(one.key))}

    async def runs(self) -> list[RunName]:
        """The runs of the log that are there, by epoch and sequence."""
        stored = all_objects(self._backend, f"log/{self._store_id.hex()}/")
        return sorted([name async for one in stored if (name := parse_run_key(one.key))])

    async def read_root(self, name: RootName) -> Root:
        """Raises NoSuchBlob, Corrupt, UnknownFormat, RemoteError."""
        return await self._read(name.key, partial(unpack_root, name))

    async def read_piece(self, digest: bytes) -> bytes:
        """Verified. Raises NoSuchBlob, Corrupt, RemoteError."""
        key = piece_key(self._store_id, digest)

        def verified(piece: bytes) -> bytes:
            if digest_of(piece) != digest:
                raise Corrupt(f"{key} fails its checksum")
            return piece

        return await self._read(key, verified)

    async def entries(self, root: Root) -> AsyncGenerator[tuple[int, Entry, int], None]:
        """(sequence, record, time of its upload in ns) of the log behind a root, up to where it ends: at a gap, or at a
        run that is damaged. Raises UnknownFormat, RemoteError.
        """
        at = root.sequence + 1
        names = [name for name in await self.runs() if name.epoch == root.epoch]
        # where another begins at or before the next record, this one has nothing new
        useful = [name for name, after in zip_longest(names, names[1:]) if after is None or after.first > at]
        for name in useful:
            try:
                run = await self._read_run(name)
            except (Corrupt, NoSuchBlob) as error:
                log.warning("the log in the backend ends early", run=name.key, reason=str(error))
                return
            if run.first > at:
                log.warning("the log in the backend has a gap", missing=at, run=name.key)
                return
            for sequence, entry in enumerate(run.entries, start=run.first):
                if sequence == at:
                    yield sequence, entry, run.made_ns
                    at += 1

    async def _read_run(self, name: RunName) -> Run:
        return await self._read(name.key, partial(unpack_run, name))

    async def _read(self, key: str, unpack: Callable[[bytes], _T]) -> _T:
        """What an object says. Who hears that it is gone or damaged takes an older catalog, or a shorter log: so no
        single answer is believed.

        Raises NoSuchBlob when it is not listed either, Corrupt when it was read twice, and what `unpack` raises.
        """
        try:
            return await trio.to_thread.run_sync(unpack, await self._get(key))
        except Corrupt as error:
            log.warning("an object in the backend is read again", key=key, reason=str(error))
            return await trio.to_thread.run_sync(unpack, await self._get(key))

    async def _get(self, key: str) -> bytes:
        try:
            data = await self._backend.get(key, 0, OBJECT_BYTES_MAX + 1)
        except NoSuchBlob:
            if any([one.key == key async for one in all_objects(self._backend, key)]):
                why = f"{self._backend.name} lists {key} and does not find it"
                raise RemoteUnavailable(f"{why}: ask again later, or delete it to do without") from None
            raise
        if len(data) > OBJECT_BYTES_MAX:
            raise Corrupt(f"{key} has more than {OBJECT_BYTES_MAX} bytes: it is none of ours")
        return data

    # -- remove ----------------------------------------------------------------------------------------------------

    async def collect(self, newest: RootName) -> Collected | None:
        """Remove what that root and the one before it do not need. The caller has put the root, and checked its claim.

        None, and nothing goes, while a root there is of a newer program. One that cannot be deleted keeps no other from
        that. Raises Corrupt when the root is not the newest that is whole; RemoteError.
        """
        names = await self.names()
        try:
            kept = await self._whole(names)
        except UnknownFormat as error:
            log.warning("old metadata stays", reason=str(error))
            return None
        if not kept or kept[0].name != newest:
            raise Corrupt(f"{newest.key} is not whole any more, or not the newest")
        needed = {digest for root in kept for digest in root.pieces}
        gone = [name.key for name in names if name not in {root.name for root in kept}]
        gone += [name.key for name in _needless(await self.runs(), kept)]
        gone += [piece_key(self._store_id, digest) for digest in sorted(await self.pieces() - needed)]
        # roots first: none is left that names what is not there
        removed, failure = await delete_each(self._backend, gone)
        return Collected(len(removed), min(name.sequence for name in names if name.key not in removed), failure)

    async def _whole(self, names: Sequence[RootName]) -> list[Root]:
        """The newest roots that can be read and whose pieces are all there."""
        there = await self.pieces()
        kept: list[Root] = []
        for name in names:
            try:
                root = await self.read_root(name)
            except (Corrupt, NoSuchBlob) as error:
                log.error("a root is of no use", root=name.key, reason=str(error))
                continue
            if there.issuperset(root.pieces) and len(kept) < ROOTS_KEPT:
                kept.append(root)
        return kept


def _needless(runs: Sequence[RunName], kept: Sequence[Root]) -> list[RunName]:
    """Runs of the log that no root needs."""
    newest = kept[0].epoch
    oldest: dict[int, int] = {}
    for root in kept:
        oldest[root.epoch] = min(root.sequence, oldest.get(root.epoch, root.sequence))
    gone = []
    for name, after in zip_longest(runs, runs[1:]):
        if name.epoch > newest:
            continue  # its root comes
        if name.epoch not in oldest:
            gone.append(name)
        elif after is not None and after.epoch == name.epoch and after.first <= oldest[name.epoch] + 1:
            gone.append(name)  # all of it comes before its root
    return gone
