"""Decisions about blobs, and about what has a copy in one."""

from couchestord.errors import Unavailable
from couchestord.io import mutations as mu
from couchestord.io import requests as rq
from couchestord.io.catalog.blobrows import STATE_BEGUN, STATE_CONFIRMED, STATE_DROPPED
from couchestord.store.decide.context import Context, Decision


class BlobDecisions:
    """Asked for by the jobs that keep a bucket."""

    def __init__(self, context: Context) -> None:
        self._it = context

    def begin(self, request: rq.BeginBlob) -> Decision:
        number = self._it.applier.next_id
        return Decision(mu.BlobBegun(number, request.epoch, 1 + request.ids), number)

    def confirm(self, request: rq.ConfirmBlob) -> Decision:
        blob = self._it.copies.blob(request.id)
        if blob is None or blob.state == STATE_DROPPED or blob.epoch != request.epoch:
            raise Unavailable(f"blob {request.id} of epoch {request.epoch} was not begun, or was dropped")
        copies = []
        for extent, start, length in request.held:
            row, copy = self._it.reader.extent(extent), self._it.copies.copy(extent)
            if row is not None and row.length == length and (copy is None or copy.blob == request.replaces):
                copies.append(mu.Copied(extent, start))
        return Decision(mu.BlobConfirmed(request.id, request.size, tuple(copies)), len(copies))

    def drop(self, request: rq.DropBlob) -> Decision:
        blob = self._it.copies.blob(request.id)
        if blob is None or blob.state != STATE_CONFIRMED or blob.live_bytes:
            return Decision(None, False)
        return Decision(mu.BlobDropped(request.id), True)

    def forget(self, request: rq.ForgetBlob) -> Decision:
        blob = self._it.copies.blob(request.id)
        if blob is None or blob.state == STATE_CONFIRMED:
            return Decision(None, False)
        if blob.state == STATE_BEGUN and blob.epoch >= request.epoch:
            return Decision(None, False)
        return Decision(mu.BlobForgotten(request.id), True)

    def lose_copies(self, request: rq.LoseCopies) -> Decision:
        lost = []
        for extent in request.extents:
            row, copy = self._it.reader.extent(extent), self._it.copies.copy(extent)
            # a place in the bucket is not forgotten: there is no other
            if row is not None and copy is not None and copy.blob == request.blob and row.segment != mu.IN_BLOB:
                lost.append(extent)
        return Decision(mu.CopiesLost(tuple(lost)) if lost else None, len(lost))
