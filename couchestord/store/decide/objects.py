"""Decisions about objects."""

from dataclasses import replace

from couchestord.errors import InvalidArgument, MethodNotAllowed, NoSuchKey, NoSuchVersion
from couchestord.io import mutations as mu
from couchestord.io import requests as rq
from couchestord.io.catalog.apply import ENTRY_VERSIONED
from couchestord.io.catalog.read import BucketRow, EntryRow
from couchestord.io.keys import check_key
from couchestord.model import Attributes, Conditions, DeleteResult
from couchestord.store.conditions import check_source, check_write
from couchestord.store.decide.context import Context, Decision, Place
from couchestord.store.values import (
    NULL_VERSION,
    decode_attributes,
    encode_attributes,
    is_marker,
    object_info,
    parse_version_id,
)


class ObjectDecisions:
    """PUT, copy and delete."""

    def __init__(self, context: Context) -> None:
        self._it = context

    def put(self, request: rq.PutObject) -> Decision:
        outcome, answer = self.replace(
            self._it.bucket(request.bucket, request.conditions.bucket_owner),
            request.key,
            request.conditions,
            size=request.size,
            etag=request.etag,
            attributes=request.attributes,
            extents=request.extents,
            policy=request.policy,
            content=request.content,
        )
        return Decision(outcome, answer, request.body, request.body_sum)

    def replace(
        self,
        bucket: BucketRow,
        key: bytes,
        conditions: Conditions,
        *,
        size: int,
        etag: bytes,
        attributes: Attributes,
        extents: tuple[mu.Extent, ...] | None = None,
        pieces: tuple[mu.Piece, ...] = (),
        policy: int = 0,
        content: int = 0,
    ) -> tuple[mu.ObjectPut, object]:
        """The entry names a new object: the one way for PUT, copy and complete. Answers (outcome, ObjectInfo)."""
        check_key(key)
        if content:
            self._it.check_blobs(extents or ())
        place = self._it.place(bucket.root, key)
        current = None
        if bucket.versioning or conditions.if_match or conditions.if_none_match:
            current = self._it.live(place)
            check_write(conditions, current, key)
        keep = current is not None and self._keeps(bucket, current)
        versioned = bucket.versioning == "Enabled"
        encoded = encode_attributes(attributes)
        now_ns = self._it.clock.now_ns()
        outcome = mu.ObjectPut(
            directory=place.directory,
            name=place.name,
            id=place.next_id,
            size=size,
            etag=etag,
            modified_ns=now_ns,
            attributes=encoded,
            made=place.made,
            extents=extents,
            pieces=pieces,
            keep_current=keep,
            versioned=versioned,
            drop_null=bucket.versioning == "Suspended",
            policy=policy,
            content=content,
            keep_open=self._it.mounts.shows(bucket.name),
        )
        row = EntryRow(place.next_id, None, size, etag, now_ns, ENTRY_VERSIONED if versioned else 0, encoded)
        return outcome, object_info(bucket, key, row)

    @staticmethod
    def _keeps(bucket: BucketRow, current: EntryRow) -> bool:
        """True when the present object becomes a noncurrent version rather than going."""
        return bucket.versioning == "Enabled" or (
            bucket.versioning == "Suspended" and bool(current.flags & ENTRY_VERSIONED)
        )

    def copy(self, request: rq.CopyObject) -> Decision:
        source_bucket = self._it.bucket(request.source_bucket, request.source_conditions.bucket_owner)
        bucket = self._it.bucket(request.bucket, request.conditions.bucket_owner)
        source = self.source(source_bucket, request.source_key, request.source_version_id, request.source_conditions)
        same = (request.bucket, request.key) == (request.source_bucket, request.source_key)
        if same and request.attributes is None and request.source_version_id is None and not bucket.versioning:
            raise InvalidArgument(
                "this copy onto itself would change nothing: replace the metadata, or copy to another key"
            )
        kept = decode_attributes(source.attributes)
        outcome, answer = self.replace(
            bucket,
            request.key,
            request.conditions,
            size=source.size,
            etag=source.etag,
            # the bytes are the same, and so are their checksums
            attributes=kept if request.attributes is None else replace(request.attributes, checksums=kept.checksums),
            pieces=self.pieces(source, 0, source.size),
        )
        return Decision(outcome, answer)

    def source(self, bucket: BucketRow, key: bytes, version_id: str | None, conditions: Conditions) -> EntryRow:
        """The object that is copied from."""
        _, _, row = self._it.version(bucket, key, version_id)
        if is_marker(row):
            raise MethodNotAllowed("the source is a delete marker")
        check_source(conditions, row)
        return row

    def pieces(self, row: EntryRow, first: int, end: int) -> tuple[mu.Piece, ...]:
        """The pieces of an object's bytes from `first` to before `end`, moved to begin at 0."""
        if row.content is not None:
            return (mu.Piece(0, row.content, first, end - first),) if end > first else ()
        found = []
        for piece in self._it.reader.pieces(row.inode, first, end):
            low = max(first, piece.start)
            high = min(end, piece.start + piece.length)
            if low < high:
                found.append(mu.Piece(low - first, piece.content, piece.content_start + low - piece.start, high - low))
        return tuple(found)

    def delete(self, request: rq.DeleteObject) -> Decision:
        bucket = self._it.bucket(request.bucket, request.conditions.bucket_owner)
        if request.version_id is not None:
            return self._delete_version(bucket, request)
        place = self._it.place(bucket.root, request.key)
        current = self._it.live(place)
        check_write(request.conditions, current, request.key)
        if bucket.versioning:
            if current is None and (place.made or not self._it.reader.versions(place.directory, place.name)):
                check_key(request.key)  # nothing but the marker will be there
            return self._mark_deleted(bucket, place, current)
        if current is None:
            return Decision(None, DeleteResult())
        return Decision(self._deleted(bucket, place.directory, place.name), DeleteResult())

    def _deleted(self, bucket: BucketRow, directory: int, name: bytes) -> mu.ObjectDeleted:
        """With `a/` the directory goes, when nothing else is in it: else there would be a key `a/` still."""
        now_ns, keep = self._it.clock.now_ns(), self._it.mounts.shows(bucket.name)
        return mu.ObjectDeleted(directory, name, modified_ns=now_ns, keep_open=keep, with_directory=not name)

    def _mark_deleted(self, bucket: BucketRow, place: Place, current: EntryRow | None) -> Decision:
        versioned = bucket.versioning == "Enabled"
        outcome = mu.ObjectDeleted(
            directory=place.directory,
            name=place.name,
            keep_current=current is not None and self._keeps(bucket, current),
            marker=place.next_id,
            marker_versioned=versioned,
            drop_null=not versioned,
            modified_ns=self._it.clock.now_ns(),
            made=place.made,
        )
        return Decision(outcome, DeleteResult(f"{place.next_id:016x}" if versioned else NULL_VERSION, True))

    def _delete_version(self, bucket: BucketRow, request: rq.DeleteObject) -> Decision:
        """One that is not there is no error, unless no version can have such an id."""
        parse_version_id(request.version_id or "")
        try:
            directory, name, row = self._it.version(bucket, request.key, request.version_id)
        except (NoSuchVersion, NoSuchKey):
            return Decision(None, DeleteResult(request.version_id))
        check_write(request.conditions, row, request.key)
        answer = DeleteResult(request.version_id, is_marker(row))
        if row.inode == directory or not bucket.versioning:  # there is no other, and a mount may have it open
            return Decision(self._deleted(bucket, directory, name), answer)
        return Decision(mu.VersionDeleted(directory, name, row.inode), answer)
