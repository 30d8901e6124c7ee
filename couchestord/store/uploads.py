"""Multipart uploads, as the store's callers see them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from couchestord.errors import NoSuchBucket, NoSuchUpload
from couchestord.io import requests as rq
from couchestord.io.catalog.read import BucketRow
from couchestord.model import NO_CONDITIONS, Attributes, Body, ByteRange, Conditions, ObjectInfo, PartInfo, UploadInfo
from couchestord.store.completing import checksums_of_object
from couchestord.store.decide.uploads import check_part_number, part_info
from couchestord.store.parts import Parts
from couchestord.store.values import pack_etag

UPLOADS_LISTED_MAX = 1000
PartPage = tuple[list[PartInfo], bool]
UploadPage = tuple[list[UploadInfo], bool]
_NO_ATTRIBUTES = Attributes()


def find_bucket(core: Parts, name: str) -> BucketRow:
    """The bucket as it is now; whatever is asked of a bucket begins here. Raises NoSuchBucket."""
    core.catalog.refresh()
    row = core.catalog.reading.bucket(name)
    if row is None:
        raise NoSuchBucket(f"there is no bucket {name!r}")
    return row


class Uploads:
    """The part of `ObjectStore` that puts objects together from parts."""

    def __init__(self, core: Parts) -> None:
        self._core = core

    async def create_upload(self, bucket: str, key: bytes, *, attributes: Attributes = _NO_ATTRIBUTES) -> UploadInfo:
        """Begin a multipart upload. Raises NoSuchBucket, KeyTooLong, InvalidArgument."""
        info: UploadInfo = await self._core.submit(rq.MakeUpload(bucket, key, attributes))
        return info

    async def put_part(
        self,
        bucket: str,
        key: bytes,
        upload_id: str,
        number: int,
        body: Body,
        *,
        size: int | None = None,
        finish: Callable[[], Mapping[str, str]] | None = None,
    ) -> PartInfo:
        """Store part `number` (1 to 10,000), durable on return. `finish` answers its checksums. Raises NoSuchUpload."""
        check_part_number(number)
        row = self._upload(bucket, key, upload_id)
        async with self._core.intake.take(body, size, row.policy) as taken:
            info: PartInfo = await self._core.submit(
                rq.PutPart(
                    bucket,
                    key,
                    upload_id,
                    number,
                    taken.size,
                    pack_etag(taken.md5),
                    finish() if finish else {},
                    taken.extents,
                    taken.inline,
                    taken.inline_sum,
                    taken.policy,
                    taken.content,
                )
            )
        return info

    async def copy_part(
        self,
        bucket: str,
        key: bytes,
        upload_id: str,
        number: int,
        source_bucket: str,
        source_key: bytes,
        *,
        byte_range: ByteRange | None = None,
        source_version_id: str | None = None,
        source_conditions: Conditions = NO_CONDITIONS,
    ) -> PartInfo:
        """A part by reference: a range of another object, which must lie within it. Raises InvalidRange; as `get`."""
        first, last = (byte_range.first, byte_range.last) if byte_range else (None, None)
        info: PartInfo = await self._core.submit(
            rq.CopyPart(
                bucket,
                key,
                upload_id,
                number,
                source_bucket,
                source_key,
                source_version_id,
                first,
                last,
                source_conditions,
            )
        )
        return info

    async def complete_upload(
        self,
        bucket: str,
        key: bytes,
        upload_id: str,
        parts: Sequence[tuple[int, str]],
        *,
        conditions: Conditions = NO_CONDITIONS,
        checksums: Mapping[str, str] = {},
    ) -> ObjectInfo:
        """Make the object of the parts (number, etag), all or nothing. For a day a repeated call answers the same.

        `checksums`: what those of the object must be. Raises NoSuchUpload, InvalidPart, InvalidPartOrder, BadDigest,
        EntityTooSmall, EntityTooLarge, PreconditionFailed.
        """
        found = await checksums_of_object(self._core.catalog.accounts, upload_id, parts, checksums)
        request = rq.CompleteUpload(bucket, key, upload_id, tuple(parts), conditions, found)
        info: ObjectInfo = await self._core.submit(request)
        return info

    async def abort_upload(self, bucket: str, key: bytes, upload_id: str) -> None:
        """Forget an upload and its parts. Raises NoSuchUpload."""
        await self._core.submit(rq.AbortUpload(bucket, key, upload_id))

    async def _abort_all(self, bucket: str, owner: str | None) -> None:
        """Before a bucket is removed, unless that will be refused. All at once would hold up everybody: nobody has a
        turn while a record is applied, and each upload may have ten thousand parts.
        """
        after = (b"", "")
        while True:
            self._core.catalog.refresh()
            reading = self._core.catalog.reading
            row = reading.bucket(bucket)
            if row is None or owner not in (None, row.owner) or reading.has_keys(row.root):
                return
            rows = self._core.catalog.accounts.uploads(bucket, after, UPLOADS_LISTED_MAX)
            if not rows:
                return
            for upload in rows:
                with suppress(NoSuchUpload):
                    await self.abort_upload(bucket, upload.key, upload.id)
            after = (rows[-1].key, rows[-1].id)

    async def list_parts(
        self, bucket: str, key: bytes, upload_id: str, *, start_after: int = 0, max_parts: int = 1000
    ) -> PartPage:
        """(parts after a number, whether there are more). Raises NoSuchUpload."""
        self._upload(bucket, key, upload_id)
        rows = self._core.catalog.accounts.parts(upload_id, start_after, max_parts + 1)
        return [part_info(row) for row in rows[:max_parts]], len(rows) > max_parts

    async def list_uploads(
        self,
        bucket: str,
        *,
        prefix: bytes = b"",
        start_after: tuple[bytes, str] = (b"", ""),
        max_uploads: int = UPLOADS_LISTED_MAX,
    ) -> UploadPage:
        """(open uploads after (key, upload id), whether there are more), by key, then age. Raises NoSuchBucket."""
        find_bucket(self._core, bucket)
        low = max(start_after, (prefix, ""))
        rows = self._core.catalog.accounts.uploads(bucket, low, max_uploads + 1)
        found = [UploadInfo(row.id, row.bucket, row.key, row.created_ns) for row in rows if row.key.startswith(prefix)]
        return found[:max_uploads], len(found) > max_uploads

    def _upload(self, bucket: str, key: bytes, upload_id: str) -> BucketRow:
        bucket_row = find_bucket(self._core, bucket)
        row = self._core.catalog.accounts.upload(upload_id)
        if row is None or (row.bucket, row.key) != (bucket, key):
            raise NoSuchUpload(f"there is no upload {upload_id!r} of that key; it was completed, aborted, or never was")
        return bucket_row
