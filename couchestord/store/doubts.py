"""Requests that were asked for before, by somebody who never heard the answer: were they done?"""

from contextlib import aclosing

from couchestord.errors import StaleInode, Unavailable
from couchestord.io import fileoutcomes as fo
from couchestord.io import filerequests as fr
from couchestord.io import mutations as mu
from couchestord.io.catalog.files import FileReader, NodeRow
from couchestord.io.journal import Journal


async def find_done(journal: Journal, request: fr.Once, committed: int) -> mu.AnyOutcome | None:
    """What came of it, None when it was not done. Everything before it was committed, up to the record `committed`.

    The log is read from where it was first asked for. Raises Unavailable when it does not reach back so far.
    """
    assert request.asked_after is not None
    first = request.asked_after + 1
    if first > committed:
        return None
    if not journal.holds(first):
        raise Unavailable("nobody knows any more whether this was done: look before you try again")
    async with aclosing(journal.records(first)) as records:
        async for _, meta, _, _ in records:
            outcome = mu.decode(meta)
            if request.token and getattr(outcome, "token", 0) == request.token:
                return outcome
    return None


def answer_again(files: FileReader, outcome: mu.AnyOutcome) -> NodeRow | None:
    """What the request was answered that this came of, as it is now. Raises StaleInode."""
    if not isinstance(outcome, fo.NodeMade | fo.Linked):
        return None
    id_ = outcome.id if isinstance(outcome, fo.NodeMade) else outcome.inode
    node = files.node(id_)
    if node is None:
        raise StaleInode(f"file or directory {id_} was made, and is gone")
    return node
