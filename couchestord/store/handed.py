"""Small changes that are handed over: nobody waits in a task for their commit."""

from couchestord.io import requests as rq
from couchestord.model import Attributes, Conditions
from couchestord.store.core import Core
from couchestord.store.intake import inline
from couchestord.store.options import INLINE_BYTES_MAX
from couchestord.store.uploads import find_bucket
from couchestord.store.values import pack_etag
from couchestord.store.waiting import Answered


class HandedOver:
    """What `ObjectStore.put` and `delete` do, without waiting. Belongs to the store's task context.

    Each answers True when the change was taken: `answered` is then called once, on the loop, with the outcome that the
    other method would have, as durable. False: not now, call the other method. What can be refused at once is raised.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    def owner(self, bucket: str) -> str:
        """Whom a bucket belongs to. Raises NoSuchBucket."""
        return find_bucket(self._core, bucket).owner

    def put(
        self,
        bucket: str,
        key: bytes,
        body: bytes,
        attributes: Attributes,
        conditions: Conditions,
        answered: Answered,
    ) -> bool:
        """As `ObjectStore.put`, answered with an ObjectInfo."""
        if len(body) > INLINE_BYTES_MAX:
            return False
        taken = inline(body, find_bucket(self._core, bucket).policy)
        etag, policy = pack_etag(taken.md5), taken.policy
        request = rq.PutObject(
            bucket, key, taken.size, etag, attributes, conditions, taken.extents, body, taken.inline_sum, policy
        )
        return self._core.writer.hand_in(request, answered)

    def delete(self, bucket: str, key: bytes, conditions: Conditions, answered: Answered) -> bool:
        """As `ObjectStore.delete` without a version, answered with a DeleteResult."""
        return self._core.writer.hand_in(rq.DeleteObject(bucket, key, None, conditions), answered)
