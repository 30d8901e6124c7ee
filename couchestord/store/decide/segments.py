"""Decisions about segments and where extents lie."""

from couchestord.io import mutations as mu
from couchestord.io import requests as rq
from couchestord.io.catalog.read import SegmentRow
from couchestord.io.catalog.segments import STATE_OPEN, STATE_SEALED
from couchestord.store.decide.context import Context, Decision


class SegmentDecisions:
    """Asked for by the background jobs and by writers of large objects."""

    def __init__(self, context: Context) -> None:
        self._it = context

    def make(self, request: rq.MakeSegment) -> Decision:
        id_, epoch = self._it.applier.next_id, self._it.epoch()
        missing = sum(1 << index for index, disk in enumerate(request.disks) if disk < 0)
        row = SegmentRow(
            id_, epoch, STATE_OPEN, request.k, request.m, request.stripe_bytes, request.disks, missing, 0, -1,
            request.policy,
        )  # fmt: skip
        outcome = mu.SegmentMade(id_, epoch, request.k, request.m, request.stripe_bytes, request.disks, request.policy)
        return Decision(outcome, row)

    def seal(self, request: rq.SealSegment) -> Decision:
        row = self._it.reader.segment(request.id)
        if row is None or (
            row.state == STATE_SEALED and row.stripes_end == request.stripes_end and not request.missing
        ):
            return Decision(None)
        return Decision(mu.SegmentSealed(request.id, request.stripes_end, request.missing))

    def drop(self, request: rq.DropSegment) -> Decision:
        row = self._it.reader.segment(request.id)
        if row is None or row.state != STATE_SEALED or row.live_bytes:
            return Decision(None, False)
        return Decision(mu.SegmentDropped(request.id), True)

    def lose_shards(self, request: rq.LoseShards) -> Decision:
        row = self._it.reader.segment(request.id)
        if row is None or row.missing | request.missing == row.missing:
            return Decision(None)
        return Decision(mu.ShardsLost(request.id, request.missing))

    def place_shard(self, request: rq.PlaceShard) -> Decision:
        if self._it.reader.segment(request.id) is None:
            return Decision(None, False)
        return Decision(mu.ShardPlaced(request.id, request.index, request.disk), True)

    def move_extents(self, request: rq.MoveExtents) -> Decision:
        moves = []
        for move in request.moves:
            row = self._it.reader.extent(move.extent)
            if row is None or (row.segment, row.stripe, row.stripe_start) != move.old:
                continue
            if self._may_lie(move.extent, move.new):
                moves.append(mu.Move(move.extent, *move.new))
        targets = {move.segment for move in moves if move.segment > mu.LOST}
        if any(self._it.reader.segment(segment) is None for segment in targets):
            # the segment was dropped while its bytes were being written: whoever asked begins again
            return Decision(None, 0)
        return Decision(mu.ExtentsMoved(tuple(moves)) if moves else None, len(moves))

    def _may_lie(self, extent: int, place: tuple[int, int, int]) -> bool:
        """In a blob where its copy is, and nowhere only without one. Of stripes nothing is asked here."""
        copy = self._it.copies.copy(extent) if place[0] <= mu.LOST else None
        if place[0] == mu.IN_BLOB:
            return copy is not None and (copy.blob, copy.start) == place[1:]
        return copy is None
