"""What the jobs that keep the bucket ask of the catalog, and tell it."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from couchestord.ec.segments import Submit
from couchestord.io import requests as rq
from couchestord.io.catalog.copies import CopyReader
from couchestord.remote.blob import BlobName, Held, size_of
from couchestord.remote.uploader import Waiting

CLAIMS_JOB: Final = "claims"
_CONFIRMED_PER_RECORD = 256
"""Extents: a record of more would hold up those who wait for the writer."""
_LEFT_MAX = 1024


class CatalogLedger:
    """`Ledger` of `remote.uploader` and `BegunBlobs` of `remote.leftovers`, over the catalog and the store's writer."""

    def __init__(self, catalog: CopyReader, submit: Submit, store_id: bytes, epoch: int) -> None:
        """`epoch`: the one that this start has claimed in the bucket."""
        self._catalog = catalog
        self._submit = submit
        self._store_id = store_id
        self._epoch = epoch

    def newest(self) -> int:
        return self._catalog.newest_extent()

    def waiting(self, after: int, limit: int) -> Sequence[Waiting]:
        return [Waiting(*row) for row in self._catalog.waiting(after, limit)]

    async def begin(self, ids: int = 0) -> BlobName:
        """`ids`: so many behind the number of the blob are the caller's, too."""
        return BlobName(self._store_id, self._epoch, await self._submit(rq.BeginBlob(self._epoch, ids)))

    async def note(self, name: BlobName, index: Sequence[Held]) -> None:
        """A blob is proved, whose extents no record names yet."""
        await self._submit(rq.ConfirmBlob(name.epoch, name.number, size_of(index), ()))

    async def confirm(self, name: BlobName, index: Sequence[Held]) -> int:
        return await self._confirm(name, size_of(index), index, 0)

    async def replace(self, name: BlobName, index: Sequence[Held], moved: Sequence[Held], old: int) -> int:
        """As `confirm`, of some of the extents in the blob: those that had their copy in the blob `old`, too."""
        return await self._confirm(name, size_of(index), moved, old)

    async def _confirm(self, name: BlobName, size: int, index: Sequence[Held], old: int) -> int:
        copied_count = 0
        for at in range(0, len(index), _CONFIRMED_PER_RECORD):
            held = tuple((one.extent, one.offset, one.length) for one in index[at : at + _CONFIRMED_PER_RECORD])
            copied_count += await self._submit(rq.ConfirmBlob(name.epoch, name.number, size, held, old))
        return copied_count

    def left(self, after: int) -> Sequence[BlobName]:
        rows = self._catalog.begun_before(self._epoch, after, _LEFT_MAX)
        return [BlobName(self._store_id, row.epoch, row.id) for row in rows]

    async def drop(self, name: BlobName) -> None:
        await self._submit(rq.ForgetBlob(self._epoch, name.number))


class ClaimsKept:
    """`Memory` of `remote.claims`, as the state of a job."""

    def __init__(self, jobs: Callable[[], Mapping[str, bytes]], submit: Submit) -> None:
        """`jobs` answers the states of all jobs, as the catalog has them."""
        self._jobs = jobs
        self._submit = submit

    def claims(self) -> Sequence[bytes]:
        return [bytes.fromhex(claim) for claim in json.loads(self._jobs().get(CLAIMS_JOB) or "[]")]

    async def keep(self, claims: Sequence[bytes]) -> None:
        await self._submit(rq.SaveJob(CLAIMS_JOB, json.dumps([claim.hex() for claim in claims]).encode()))
