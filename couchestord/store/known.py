"""Which disk the catalog believes in, in each place where one was away."""

import json
from collections.abc import Callable, Mapping
from typing import Final

import trio

from couchestord.ec.segments import Submit
from couchestord.io.requests import SaveJob

JOB: Final = "disks"
_DOUBTED: Final = "?"
"""Before the id of a disk that is away, or was and is not compared yet; alone where none was named before."""


class KnownDisks:
    """Ids of the disks that were compared with the catalog last, by index, kept in the log as the state of a job.

    A shard that the catalog has on disk 3 lies on the disk 3 that it was compared with. Another one in that place,
    empty or an old one, lacks it, whatever epoch its superblock says: so before a disk takes another's place nobody is
    known there, and a disk is known once all that it lacks is recorded. One that was away lacks what was written
    meanwhile, which its superblock does not say either once it is back: so it is doubted before. What is cut off in
    between is compared at the next start. Places whose disk was never away are not named.
    """

    def __init__(self, jobs: Callable[[], Mapping[str, bytes]], submit: Submit) -> None:
        """`jobs` answers the states of all jobs, as the catalog has them."""
        self._jobs = jobs
        self._submit = submit
        self._turn = trio.Lock()

    def is_stranger(self, index: int, disk_id: bytes) -> bool:
        """Whether what lies on that disk is not known before it is compared."""
        return self._ids().get(str(index), disk_id.hex()) != disk_id.hex()

    def is_another(self, index: int, disk_id: bytes) -> bool:
        """Whether another disk had that place when it was compared last."""
        known = self._ids().get(str(index), _DOUBTED)
        return known != _DOUBTED and known.removeprefix(_DOUBTED) != disk_id.hex()

    async def doubt(self, index: int) -> None:
        """The disk in that place is away, or is back, and what it lacks is not recorded. Durable on return; raises what
        the store's writer raises.
        """
        await self._save(index, None)

    async def forget(self, index: int) -> None:
        """Another disk is going to take that place; durable on return. Raises what the store's writer raises."""
        await self._save(index, "")

    async def compared(self, index: int, disk_id: bytes) -> None:
        """What that disk lacks is recorded. Durable on return; raises what the store's writer raises."""
        await self._save(index, disk_id.hex())

    async def _save(self, index: int, value: str | None) -> None:
        """None: what it was, doubted."""
        async with self._turn:
            ids = self._ids()
            known = ids.get(str(index))
            if value is None:
                is_doubted = known is not None and (not known or known.startswith(_DOUBTED))
                value = known if is_doubted else _DOUBTED + (known or "")
            if value != known:
                await self._submit(SaveJob(JOB, json.dumps(ids | {str(index): value}).encode()))

    def _ids(self) -> dict[str, str]:
        state = self._jobs().get(JOB)
        found: dict[str, str] = json.loads(state) if state else {}
        return found
