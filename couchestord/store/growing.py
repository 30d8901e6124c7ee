"""Which requests need room, and when they are refused for the lack of it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from couchestord.errors import Error
from couchestord.io import filerequests as fr
from couchestord.io import requests as rq

_GROWING: Final = (rq.PutObject, rq.PutPart, rq.CopyObject, rq.CopyPart, rq.MakeUpload, rq.MakeBucket)
_FREEING: Final = (
    rq.MakeSegment,
    rq.SealSegment,
    rq.DropSegment,
    rq.LoseShards,
    rq.PlaceShard,
    rq.MoveExtents,
    rq.SaveJob,
    rq.BeginBlob,
    rq.ConfirmBlob,
    rq.DropBlob,
    rq.ForgetBlob,
    rq.LoseCopies,
    fr.JoinPieces,
)
"""What background jobs and a start must be able to write, or a journal that is full stays full."""


STUCK_FROM: Final = 0.5
"""So full the journal may become with bodies that there are no disks for: the rest is for what leaves it again."""


def grows(request: object) -> bool:
    """Whether a request needs room that it does not give back. A file that is only cut needs none."""
    return isinstance(request, _GROWING) or (isinstance(request, fr.PublishFile) and bool(request.contents))


def _is_written(request: object) -> bool:
    """Whether its bytes lie in stripes or in a bucket already: only its record needs room."""
    match request:
        case rq.PutObject() | rq.PutPart():
            return bool(request.content) or (bool(request.extents) and not request.body)
        case fr.PublishFile():
            return not request.body
    return False


def _policies_in_journal(request: object) -> set[int]:
    """Those under which bytes ride in its record."""
    match request:
        case rq.PutObject() | rq.PutPart():
            return {request.policy} if request.body else set()
        case fr.PublishFile():
            return {each.policy for each in request.contents if any(not extent.segment for extent in each.extents)}
    return set()


@dataclass(frozen=True, slots=True)
class Room:
    """Why a group may not grow, None while it may."""

    for_new_data: Error | None
    for_others: Error | None
    on_disks: Error | None = None
    """For new data that is yet to be written to the disks."""
    stuck: Mapping[int, Error] = field(default_factory=dict)
    """For bodies under these policies, which would stay in the journal."""

    def check(self, request: object) -> None:
        """Raises why there is no room for a request."""
        refusal = self.for_others
        if grows(request):
            refusal = self.for_new_data or (None if _is_written(request) else self.on_disks)
            if self.stuck and refusal is None:
                refusal = next((self.stuck[each] for each in _policies_in_journal(request) & self.stuck.keys()), None)
        if refusal is not None and not isinstance(request, _FREEING):
            raise type(refusal)(str(refusal))
