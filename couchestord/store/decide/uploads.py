"""Decisions about multipart uploads."""

import hashlib
from dataclasses import replace

import msgspec

from couchestord.errors import (
    EntityTooLarge,
    EntityTooSmall,
    InvalidArgument,
    InvalidPart,
    InvalidPartOrder,
    InvalidRange,
    InvalidRequest,
    NoSuchUpload,
)
from couchestord.io import mutations as mu
from couchestord.io import requests as rq
from couchestord.io.catalog.accounts import PartRow, UploadRow
from couchestord.io.keys import check_key
from couchestord.model import OBJECT_BYTES_MAX, PART_BYTES_MIN, PART_NUMBER_MAX, ObjectInfo, PartInfo, UploadInfo
from couchestord.store.decide.context import Context, Decision
from couchestord.store.decide.objects import ObjectDecisions
from couchestord.store.values import (
    decode_attributes,
    decode_mapping,
    encode_attributes,
    encode_mapping,
    etag_text,
    pack_etag,
)


class UploadDecisions:
    """Create, parts, complete, abort."""

    def __init__(self, context: Context, objects: ObjectDecisions) -> None:
        self._it = context
        self._objects = objects

    def make(self, request: rq.MakeUpload) -> Decision:
        self._it.bucket(request.bucket)
        check_key(request.key)
        now_ns = self._it.clock.now_ns()
        # begins with the time, and of one tick of the clock with the record, so that ids of one key sort by age
        upload = f"{now_ns:016x}{self._it.applier.sequence:016x}{self._it.clock.random_bytes(8).hex()}"
        outcome = mu.UploadMade(upload, request.bucket, request.key, now_ns, encode_attributes(request.attributes))
        return Decision(outcome, UploadInfo(upload, request.bucket, request.key, now_ns))

    def _upload(self, bucket: str, key: bytes, upload: str) -> UploadRow:
        self._it.bucket(bucket)
        row = self._it.accounts.upload(upload)
        if row is None or (row.bucket, row.key) != (bucket, key):
            raise NoSuchUpload(f"there is no upload {upload!r} of that key; it was completed, aborted, or never was")
        return row

    def put_part(self, request: rq.PutPart) -> Decision:
        check_part_number(request.number)
        upload = self._upload(request.bucket, request.key, request.upload)
        algorithm = decode_attributes(upload.attributes).checksums.get("algorithm")
        if algorithm and request.checksums and algorithm not in request.checksums:
            raise InvalidRequest(f"the parts of this upload come with a checksum {algorithm.upper()} or none")
        if request.content:
            self._it.check_blobs(request.extents)
        now_ns = self._it.clock.now_ns()
        outcome = mu.PartPut(
            request.upload,
            request.number,
            request.content or self._it.applier.next_id,
            request.size,
            request.etag,
            now_ns,
            encode_mapping(request.checksums),
            request.extents,
            policy=request.policy,
        )
        answer = PartInfo(request.number, request.size, etag_text(request.etag), now_ns, request.checksums)
        return Decision(outcome, answer, request.body, request.body_sum)

    def copy_part(self, request: rq.CopyPart) -> Decision:
        check_part_number(request.number)
        self._upload(request.bucket, request.key, request.upload)
        source = self._objects.source(
            self._it.bucket(request.source_bucket),
            request.source_key,
            request.source_version_id,
            request.source_conditions,
        )
        first = request.first or 0
        end = source.size if request.last is None else request.last + 1
        if (first >= end or end > source.size) and (source.size or request.first is not None):
            raise InvalidRange(f"the range is not within the source of {source.size} bytes", source.size)
        pieces = self._objects.pieces(source, first, end)
        now_ns = self._it.clock.now_ns()
        # no bytes are read, so the etag cannot be an MD5 of them: it names the range of the source's content
        etag = hashlib.md5(source.etag + msgspec.msgpack.encode((source.inode, first, end)), usedforsecurity=False)
        whole = (first, end) == (0, source.size) and len(source.etag) == 16
        packed = source.etag if whole else etag.digest()
        outcome = mu.PartPut(
            request.upload, request.number, self._it.applier.next_id, end - first, packed, now_ns, b"", (), pieces
        )
        return Decision(outcome, PartInfo(request.number, end - first, etag_text(packed), now_ns))

    def complete(self, request: rq.CompleteUpload) -> Decision:
        bucket = self._it.bucket(request.bucket, request.conditions.bucket_owner)
        finished = self._it.accounts.finished(request.upload)
        if finished is not None and (finished.bucket, finished.key) == (request.bucket, request.key):
            return Decision(None, decode_result(finished.result))
        upload = self._upload(request.bucket, request.key, request.upload)
        chosen = self._choose(request)
        pieces: list[mu.Piece] = []
        size = 0
        for part in chosen:
            for piece in mu.decode_pieces(part.pieces):
                if piece.length:
                    pieces.append(mu.Piece(size + piece.offset, piece.content, piece.content_offset, piece.length))
            size += part.size
        if size > OBJECT_BYTES_MAX:
            raise EntityTooLarge(f"the parts add up to {size} bytes, at most {OBJECT_BYTES_MAX} are allowed")
        md5 = hashlib.md5(b"".join(part.etag[:16] for part in chosen), usedforsecurity=False).digest()
        outcome, answer = self._objects.replace(
            bucket,
            request.key,
            request.conditions,
            size=size,
            etag=pack_etag(md5, len(chosen)),
            attributes=replace(decode_attributes(upload.attributes), checksums=request.checksums),
            pieces=tuple(pieces),
        )
        assert isinstance(answer, ObjectInfo)
        outcome = msgspec.structs.replace(outcome, upload=request.upload, result=encode_result(answer))
        return Decision(outcome, answer)

    def _choose(self, request: rq.CompleteUpload) -> list[PartRow]:
        if not request.parts:
            raise InvalidArgument("the list of parts is empty")
        there = {part.number: part for part in self._it.accounts.parts(request.upload)}
        chosen: list[PartRow] = []
        for position, (number, etag) in enumerate(request.parts):
            if position and number <= request.parts[position - 1][0]:
                raise InvalidPartOrder("the parts are not listed in ascending order")
            part = there.get(number)
            if part is None or etag_text(part.etag) != etag:
                raise InvalidPart(f"part {number} was not uploaded, or has another etag")
            chosen.append(part)
        for part in chosen[:-1]:
            if part.size < PART_BYTES_MIN:
                raise EntityTooSmall(
                    f"part {part.number} has {part.size} bytes; all but the last need {PART_BYTES_MIN}"
                )
        return chosen

    def abort(self, request: rq.AbortUpload) -> Decision:
        self._upload(request.bucket, request.key, request.upload)
        before_ns = request.idle_before_ns
        if before_ns is not None and any(
            part.modified_ns >= before_ns for part in self._it.accounts.parts(request.upload)
        ):
            return Decision(None)
        return Decision(mu.UploadAborted(request.upload))

    def forget(self, request: rq.ForgetResults) -> Decision:
        if not self._it.accounts.finished_before(request.before_ns):
            return Decision(None)
        return Decision(mu.ResultsForgotten(request.before_ns))


def check_part_number(number: int) -> None:
    """Raises InvalidArgument."""
    if not 1 <= number <= PART_NUMBER_MAX:
        raise InvalidArgument(f"part numbers run from 1 to {PART_NUMBER_MAX}")


def part_info(row: PartRow) -> PartInfo:
    """A part's row as callers see it."""
    return PartInfo(row.number, row.size, etag_text(row.etag), row.modified_ns, decode_mapping(row.checksums))


def encode_result(info: ObjectInfo) -> bytes:
    """What a repeated complete is answered."""
    attributes = encode_attributes(info.attributes)
    return msgspec.msgpack.encode(
        (
            info.bucket,
            info.key,
            info.size_bytes,
            info.etag,
            info.modified_ns,
            attributes,
            info.version_id,
            info.parts_count,
        )
    )


def decode_result(encoded: bytes) -> ObjectInfo:
    """As `encode_result` took it."""
    bucket, key, size, etag, modified_ns, attributes, version_id, parts_count = msgspec.msgpack.decode(encoded)
    return ObjectInfo(
        bucket, key, size, etag, modified_ns, decode_attributes(attributes), version_id, parts_count=parts_count
    )
