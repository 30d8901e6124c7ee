"""Objects: what front ends ask of a store, whichever process they are in."""

from collections.abc import Callable

from couchestord.errors import MethodNotAllowed
from couchestord.io import requests as rq
from couchestord.io.catalog.read import EntryRow
from couchestord.model import (
    DEFAULT_POLICY,
    LIST_KEYS_MAX,
    NO_CONDITIONS,
    Attributes,
    Body,
    BucketInfo,
    ByteRange,
    Conditions,
    DeleteResult,
    ListPage,
    ObjectInfo,
)
from couchestord.store.accounts import Accounts
from couchestord.store.conditions import check_read
from couchestord.store.decide.context import find_version
from couchestord.store.files import Files
from couchestord.store.handed import HandedOver
from couchestord.store.listing import list_page
from couchestord.store.looks import Looks
from couchestord.store.parts import Parts
from couchestord.store.reader import ObjectReader, open_reader
from couchestord.store.uploads import Uploads, find_bucket
from couchestord.store.values import bucket_info, is_marker, key_words, object_info, pack_etag

_NO_ATTRIBUTES = Attributes()


class Objects(Accounts, Uploads):
    """Objects in buckets, users and keys: all that front ends ask of a store.

    Every method that changes something returns once the change is durable: it survives kill -9, power loss and the
    loss of any `m` disks. An error means that nothing happened, but for InternalError, Unavailable and NoSpace raised
    by a commit: then the change may still turn out to have happened later, whole.
    Methods belong to one trio loop and may run side by side. Errors are those of `couchestord.errors`.
    """

    def __init__(self, parts: Parts) -> None:
        Accounts.__init__(self, parts)
        Uploads.__init__(self, parts)
        self.files = Files(parts)
        self.looks = Looks(parts.catalog, parts.reader_parts)
        self.handed_over: HandedOver | None = None
        """For changes that nobody waits for in a task; None where another process makes them."""

    # -- buckets ---------------------------------------------------------------------------------------------------

    async def create_bucket(self, bucket: str, *, owner: str = "", policy: str = DEFAULT_POLICY) -> BucketInfo:
        """A bucket whose objects are kept under a policy. `owner` is a user; empty: nobody.

        Raises InvalidBucketName, BucketAlreadyOwnedByYou, BucketAlreadyExists, NoSuchUser, NoSuchPolicy.
        """
        made: BucketInfo = await self._core.submit(rq.MakeBucket(bucket, owner, policy))
        return made

    async def delete_bucket(self, bucket: str, *, owner: str | None = None) -> None:
        """Raises NoSuchBucket, BucketNotEmpty, AccessDenied unless it is `owner`'s. Open uploads go first, one by one:
        they are gone, too, when somebody makes an object meanwhile.
        """
        await self._abort_all(bucket, owner)
        await self._core.submit(rq.RemoveBucket(bucket, owner))

    async def head_bucket(self, bucket: str) -> BucketInfo:
        """Raises NoSuchBucket."""
        row = find_bucket(self._core, bucket)
        return bucket_info(row, self._core.catalog.accounts.policy(row.policy).name)

    async def list_buckets(self) -> list[BucketInfo]:
        """All buckets, by name."""
        self._core.catalog.refresh()
        names = {policy.id: policy.name for policy in self._core.catalog.accounts.policies()}
        return [bucket_info(row, names[row.policy]) for row in self._core.catalog.reading.buckets()]

    async def set_versioning(self, bucket: str, state: str) -> None:
        """`state` is "Enabled" or "Suspended". Raises NoSuchBucket, InvalidArgument."""
        await self._core.submit(rq.SetVersioning(bucket, state))

    # -- objects ---------------------------------------------------------------------------------------------------

    async def put(
        self,
        bucket: str,
        key: bytes,
        body: Body,
        *,
        size: int | None = None,
        attributes: Attributes = _NO_ATTRIBUTES,
        conditions: Conditions = NO_CONDITIONS,
        finish: Callable[[], Attributes] | None = None,
    ) -> ObjectInfo:
        """Store an object under a key of 1 to 1024 bytes of UTF-8, in place of what the key named.

        `size`, when given, is the announced length. What the body's iterator raises is raised, and nothing is stored:
        so a front end refuses a bad checksum. `finish` is called once the body was consumed and answers the attributes
        to store instead of `attributes`. Raises NoSuchBucket, PreconditionFailed, IncompleteBody, EntityTooLarge,
        NoSpace, Unavailable, ...
        """
        row = find_bucket(self._core, bucket)
        async with self._core.intake.take(body, size, row.policy) as taken:
            info: ObjectInfo = await self._core.submit(
                rq.PutObject(
                    bucket,
                    key,
                    taken.size,
                    pack_etag(taken.md5),
                    finish() if finish else attributes,
                    conditions,
                    taken.extents,
                    taken.inline,
                    taken.inline_sum,
                    taken.policy,
                    taken.content,
                )
            )
        return info

    async def get(
        self,
        bucket: str,
        key: bytes,
        *,
        byte_range: ByteRange | None = None,
        version_id: str | None = None,
        conditions: Conditions = NO_CONDITIONS,
    ) -> ObjectReader:
        """A reader of one whole version as it is now, whatever is written later.

        Raises NoSuchKey, NoSuchVersion, MethodNotAllowed for a delete marker, InvalidRange, NotModified,
        PreconditionFailed; DataLost here or while reading.
        """
        row, info = self._find(bucket, key, version_id, conditions)
        return open_reader(self._core.catalog.reading, self._core.reader_parts, info, row, byte_range)

    async def head(
        self,
        bucket: str,
        key: bytes,
        *,
        version_id: str | None = None,
        conditions: Conditions = NO_CONDITIONS,
    ) -> ObjectInfo:
        """What `get` would say of the object. Raises as `get` does."""
        return self._find(bucket, key, version_id, conditions)[1]

    def _find(
        self, bucket: str, key: bytes, version_id: str | None, conditions: Conditions
    ) -> tuple[EntryRow, ObjectInfo]:
        bucket_row = find_bucket(self._core, bucket)
        _, _, row = find_version(self._core.catalog.reading, bucket_row, key, version_id)
        if is_marker(row):
            raise MethodNotAllowed(f"version {version_id} of {key_words(key)} is a delete marker")
        check_read(conditions, row)
        return row, object_info(bucket_row, key, row)

    async def delete(
        self, bucket: str, key: bytes, *, version_id: str | None = None, conditions: Conditions = NO_CONDITIONS
    ) -> DeleteResult:
        """Delete an object, or one version of it. A key that is not there is no error. Works on a full disk.

        In a versioned bucket a delete without version puts a delete marker. Raises NoSuchBucket, PreconditionFailed,
        NoSuchVersion for what is no version id, and as `put` for a key that only the marker would be under.
        """
        result: DeleteResult = await self._core.submit(rq.DeleteObject(bucket, key, version_id, conditions))
        return result

    async def list(
        self,
        bucket: str,
        *,
        prefix: bytes = b"",
        delimiter: bytes = b"",
        start_after: bytes = b"",
        max_keys: int = LIST_KEYS_MAX,
    ) -> ListPage:
        """At most `max_keys` (up to 1000) keys and common prefixes after `start_after`, in bytewise order."""
        row = find_bucket(self._core, bucket)
        with self._core.catalog.snapshot() as reader:
            return list_page(
                reader, row.root, prefix=prefix, delimiter=delimiter, start_after=start_after, max_keys=max_keys
            )

    async def copy(
        self,
        bucket: str,
        key: bytes,
        source_bucket: str,
        source_key: bytes,
        *,
        source_version_id: str | None = None,
        attributes: Attributes | None = None,
        conditions: Conditions = NO_CONDITIONS,
        source_conditions: Conditions = NO_CONDITIONS,
    ) -> ObjectInfo:
        """Copy by reference, in constant time; the bytes stay under the policy they were written under.

        `attributes` None: the source's, whose checksums the copy has in any case. Raises as `get` and `put` do."""
        info: ObjectInfo = await self._core.submit(
            rq.CopyObject(
                bucket, key, source_bucket, source_key, source_version_id, attributes, conditions, source_conditions
            )
        )
        return info
