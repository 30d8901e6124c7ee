"""Bugs to be planted: each takes one promise out of the store. The model must notice every one of them."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
from simdisk import SimDisk

from couchestord.ec.compact import Compactor
from couchestord.ec.opensegment import OpenSegment
from couchestord.ec.segments import SegmentPool
from couchestord.io import journal
from couchestord.io.catalog.apply import Applier
from couchestord.io.catalog.segments import STATE_OPEN
from couchestord.io.disk import Buffer, Disk
from couchestord.io.disks import Disks
from couchestord.io.fanout import call_all
from couchestord.io.recovery import Chain, FoundFile, chain
from couchestord.model import Policy
from couchestord.store.maintenance import Snapshotter
from couchestord.store.writer import Writer

Patch = pytest.MonkeyPatch


def _sync_only(patch: Patch, is_synced: Callable[[int, Sequence[int]], bool]) -> None:
    async def write(disks: Disks, indexes: Sequence[int], path: str, offset: int, buffers: Sequence[Buffer]) -> bool:
        async def one(index: int, disk: Disk) -> None:
            await disk.write_at(path, offset, buffers, sync=is_synced(index, indexes))

        return await call_all(disks, indexes, one)

    patch.setattr(journal, "write_all", write)


def skip_one_replicas_sync(patch: Patch) -> None:
    _sync_only(patch, lambda index, indexes: index != indexes[0])


def skip_directory_sync(patch: Patch) -> None:
    async def sync_dir(disk: SimDisk, folder: str) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(SimDisk, "sync_dir", sync_dir)


def ack_before_sync(patch: Patch) -> None:
    _sync_only(patch, lambda _index, _indexes: False)


def trim_too_early(patch: Patch) -> None:
    """The snapshot is enough: bodies that lie in the journal only are not looked for."""
    patch.setattr(Snapshotter, "trim_point", lambda self: self.sequence + 1)


def reuse_a_sequence(patch: Patch) -> None:
    """A start goes on in the epoch of the run before."""

    async def take_epoch(disks: Disks) -> int:
        async with disks._slots:
            return (await disks._store_slot(epoch=max(1, disks.slot.epoch))).epoch

    patch.setattr(Disks, "take_epoch", take_epoch)


def answer_412_before_the_commit(patch: Patch) -> None:
    original = Writer._decide

    def decide(writer: Writer, group: list[Any]) -> list[Any]:
        entries = original(writer, group)
        for waiting in list(group):
            if waiting.result is not None and hasattr(waiting.result, "error"):
                group.remove(waiting)
                waiting.answered(waiting.result)
        return entries

    patch.setattr(Writer, "_decide", decide)


def decode_unverified(patch: Patch) -> None:
    patch.setattr("couchestord.ec.shardfile.verify_blocks", lambda *_: None)
    patch.setattr("couchestord.ec.resident.verify_blocks", lambda *_: None)


def reopen_a_segment(patch: Patch) -> None:
    """What a run before left open is not sealed, and is the first to be written to again."""

    async def leave_open(*_: Any) -> None:
        return

    async def take(pool: SegmentPool, policy: Policy, *, new: bool = False) -> OpenSegment:
        for row in reopened["core"].reading.segments():
            if row.state == STATE_OPEN and row.id not in used and row.policy == policy.id and not new:
                used.add(row.id)
                await pool._turns.acquire()
                return OpenSegment(row, pool._disks)
        segment = await original(pool, policy, new=new)
        used.add(segment.row.id)
        return segment

    def init(snapshotter: Snapshotter, disks: Disks, catalog: Any, *args: Any) -> None:
        reopened["core"] = catalog
        used.clear()
        original_init(snapshotter, disks, catalog, *args)

    used: set[int] = set()
    reopened: dict[str, Any] = {}
    original, original_init = SegmentPool.take, Snapshotter.__init__
    patch.setattr(Snapshotter, "__init__", init)
    patch.setattr("couchestord.store.core.seal_left_open", leave_open)
    patch.setattr(SegmentPool, "take", take)


def ignore_an_epoch(patch: Patch) -> None:
    """What an older epoch holds past the point from which a newer one made it void counts, the newer does not."""

    def chain_of(found: Sequence[FoundFile]) -> Chain:
        def is_outrun(file: FoundFile) -> bool:
            return any(other.epoch < file.epoch and other.end > file.void_from >= other.first for other in found)

        return chain([file for file in found if not is_outrun(file)])

    patch.setattr("couchestord.store.start.chain", chain_of)


def lose_a_delete_on_rebuild(patch: Patch) -> None:
    from couchestord.store import start
    from couchestord.store.replay import replay

    original = Applier._object_deleted
    replaying: list[bool] = []

    def object_deleted(applier: Applier, it: Any) -> None:
        if not replaying:
            original(applier, it)

    async def replay_without(*args: Any) -> int:
        replaying.append(True)
        try:
            return await replay(*args)
        finally:
            replaying.clear()

    patch.setattr(Applier, "_object_deleted", object_deleted)
    patch.setattr(start, "replay", replay_without)


def leave_out_a_shards_sync(patch: Patch) -> None:
    original = OpenSegment._on_shards

    async def on_shards(segment: OpenSegment, indexes: Sequence[int], call: Any) -> Any:
        if call.__name__ == "sync":
            indexes = indexes[: segment.row.k - 1]
        return await original(segment, indexes, call)

    patch.setattr(OpenSegment, "_on_shards", on_shards)


def leave_the_files_of_segments_that_are_gone(patch: Patch) -> None:
    """A start, and the return of a disk, remove nothing."""

    async def sweep(*_: Any) -> int:
        return 0

    patch.setattr(Compactor, "sweep", sweep)


def leave_segments_open(patch: Patch) -> None:
    """A start does not seal what was being written."""

    async def leave_open(*_: Any) -> None:
        return

    patch.setattr("couchestord.store.core.seal_left_open", leave_open)


MUTATIONS: dict[str, Callable[[Patch], None]] = {
    mutation.__name__: mutation
    for mutation in (
        skip_one_replicas_sync,
        skip_directory_sync,
        ack_before_sync,
        trim_too_early,
        reuse_a_sequence,
        answer_412_before_the_commit,
        decode_unverified,
        reopen_a_segment,
        ignore_an_epoch,
        lose_a_delete_on_rebuild,
        leave_out_a_shards_sync,
        leave_the_files_of_segments_that_are_gone,
        leave_segments_open,
    )
}
