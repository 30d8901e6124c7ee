"""Multipart uploads."""

import itertools
from contextlib import suppress
from dataclasses import replace
from typing import Final, cast

from couchestord.errors import (
    EntityTooLarge,
    InvalidArgument,
    InvalidPart,
    InvalidPartOrder,
    InvalidRange,
    InvalidRequest,
    NoSuchUpload,
    NotModified,
    NotSupported,
    PreconditionFailed,
)
from couchestord.frontends.http import Response
from couchestord.frontends.s3 import fields
from couchestord.frontends.s3.buckets import owner_xml
from couchestord.frontends.s3.call import Call
from couchestord.frontends.s3.checksums import DIGEST_BYTES, object_checksums, upload_checksums
from couchestord.frontends.s3.fields import xml_response
from couchestord.frontends.s3.listing import wants_url
from couchestord.frontends.s3.objects import Pieces, checked_key, copy_result
from couchestord.frontends.s3.routes import parse_copy_source
from couchestord.frontends.s3.xml import CompletedPart, document, element, escape, key_text, read_complete
from couchestord.model import PART_NUMBER_MAX, Body, PartInfo

_PAGE_MAX = 1000
_IN_XML: Final = {"type": "Type"}
"""Checksum... elements that are not the name of an algorithm in capitals."""


def _upload_id(call: Call) -> str:
    return call.target.query.text("uploadId")


def _part_number(call: Call) -> int:
    text = call.target.query.text("partNumber")
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= PART_NUMBER_MAX):
        raise InvalidArgument(f"partNumber must be from 1 to {PART_NUMBER_MAX}")
    return int(text)


async def create_upload(call: Call) -> Response:
    fields.refuse_unsupported(call.headers)
    if call.request.content_length != 0:
        await call.body().read(0)
    checksums = upload_checksums(call.headers)
    attributes = replace(fields.attributes_of(call.headers), checksums=checksums)
    upload = await call.store.create_upload(call.bucket, checked_key(call), attributes=attributes)
    headers = [(f"x-amz-checksum-{name}".encode(), value.upper().encode()) for name, value in checksums.items()]
    return xml_response(
        document(
            "InitiateMultipartUploadResult",
            [
                element("Bucket", call.bucket),
                f"<Key>{key_text(call.key, url=False)}</Key>",
                element("UploadId", upload.upload_id),
            ],
        ),
        headers=tuple(headers),
    )


async def upload_part(call: Call) -> Response:
    fields.refuse_unsupported(call.headers)
    number, body = _part_number(call), call.body()
    if body.length_bytes > call.options.put_bytes_max:
        raise EntityTooLarge(f"a part has at most {call.options.put_bytes_max} bytes")
    part = await call.store.put_part(
        call.bucket,
        call.key,
        _upload_id(call),
        number,
        body if body.length_bytes > call.options.joined_bytes_max else await body.read(call.options.joined_bytes_max),
        size=body.length_bytes,
        finish=body.checksums.values,
    )
    return Response(200, [fields.etag_header(part.etag), *fields.checksum_headers(part.checksums)])


async def upload_part_copy(call: Call) -> Response:
    """Reads the source and writes it as a part: no bytes pass the client."""
    fields.refuse_unsupported(call.headers)
    number = _part_number(call)
    bucket, key, version_id = parse_copy_source(call.headers[b"x-amz-copy-source"])
    await call.check_bucket(bucket, of_source=True)
    given = call.headers.get(b"x-amz-copy-source-range")
    wanted = None if given is None else fields.copy_range(given)
    try:
        reader = await call.store.get(
            bucket,
            key,
            byte_range=wanted,
            version_id=version_id,
            conditions=fields.read_conditions(call.headers, b"x-amz-copy-source-"),
        )
    except NotModified as error:
        raise PreconditionFailed(str(error)) from None
    pieces = Pieces(reader)
    try:
        if wanted is not None and wanted.last != reader.first + reader.length - 1:
            # who reads gets what there is; a part would be shorter than its client believes
            raise InvalidRange("the range goes beyond the end of the source", reader.info.size_bytes)
        if reader.length > call.options.put_bytes_max:
            raise EntityTooLarge(f"a part has at most {call.options.put_bytes_max} bytes")
        part = await call.store.put_part(
            call.bucket, call.key, _upload_id(call), number, cast("Body", pieces), size=reader.length
        )
    finally:
        await pieces.aclose()
    return xml_response(document("CopyPartResult", copy_result(part.etag, part.modified_ns)))


async def complete_upload(call: Call) -> Response:
    fields.refuse_unsupported(call.headers)
    body = call.body(checksums=False)
    parts = await call.read_xml(body, call.options.complete_bytes_max, read_complete, PART_NUMBER_MAX)
    numbers = [part.number for part in parts]
    if any(later <= earlier for earlier, later in itertools.pairwise(numbers)):
        raise InvalidPartOrder("the parts must be in ascending order, each once")
    conditions = call.write_conditions()
    upload_id = _upload_id(call)
    if any(part.checksums for part in parts):
        with suppress(NoSuchUpload):  # it may have been completed, and then it is answered as before
            await _check_parts(call, upload_id, parts)
    info = await call.store.complete_upload(
        call.bucket,
        call.key,
        upload_id,
        [(part.number, part.etag) for part in parts],
        conditions=conditions,
        checksums=object_checksums(call.headers),
    )
    host = fields.text(call.headers.get(b"host", b""))
    return xml_response(
        document(
            "CompleteMultipartUploadResult",
            [
                f"<Location>http://{escape(host)}/{call.bucket}/{key_text(call.key, url=True)}</Location>",
                element("Bucket", call.bucket),
                f"<Key>{key_text(call.key, url=False)}</Key>",
                element("ETag", f'"{info.etag}"'),
                *(element("Checksum" + _IN_XML.get(n, n.upper()), v) for n, v in info.attributes.checksums.items()),
            ],
        ),
        headers=tuple(fields.version_headers(info.version_id)),
    )


async def _check_parts(call: Call, upload_id: str, wanted: list[CompletedPart]) -> None:
    """The checksums that a complete names must be those that the parts came with."""
    stored = {part.number: part for part in await _all_parts(call, upload_id)}
    for part in wanted:
        found = stored.get(part.number)
        for algorithm, value in part.checksums:
            if algorithm not in DIGEST_BYTES:
                raise InvalidRequest(f"the checksum algorithm {algorithm!r} is not known")
            if found is not None and found.checksums.get(algorithm) != value:
                raise InvalidPart(f"part {part.number} came with another checksum")


async def _all_parts(call: Call, upload_id: str) -> list[PartInfo]:
    found: list[PartInfo] = []
    truncated = True
    while truncated:
        start = found[-1].number if found else 0
        page, truncated = await call.store.list_parts(
            call.bucket, call.key, upload_id, start_after=start, max_parts=_PAGE_MAX
        )
        if not page:
            break
        found += page
    return found


async def abort_upload(call: Call) -> Response:
    fields.refuse_unsupported(call.headers)
    await call.store.abort_upload(call.bucket, call.key, _upload_id(call))
    return Response(204)


async def list_parts(call: Call) -> Response:
    query = call.target.query
    marker = query.number("part-number-marker", 0, PART_NUMBER_MAX)
    max_parts = query.number("max-parts", _PAGE_MAX, _PAGE_MAX)
    parts, truncated = await call.store.list_parts(
        call.bucket, call.key, _upload_id(call), start_after=marker, max_parts=max(1, max_parts)
    )
    if max_parts == 0:
        parts, truncated = [], False
    rows = [
        f"<Part><PartNumber>{part.number}</PartNumber><LastModified>{fields.iso_time(part.modified_ns)}</LastModified>"
        f"<ETag>&quot;{part.etag}&quot;</ETag><Size>{part.size_bytes}</Size>{_part_checksums(part)}</Part>"
        for part in parts
    ]
    return xml_response(
        document(
            "ListPartsResult",
            [
                element("Bucket", call.bucket),
                f"<Key>{key_text(call.key, url=wants_url(query))}</Key>",
                element("UploadId", _upload_id(call)),
                owner_xml(call.user.name).replace("Owner>", "Initiator>"),
                owner_xml(call.user.name),
                f"<StorageClass>STANDARD</StorageClass><PartNumberMarker>{marker}</PartNumberMarker>",
                f"<NextPartNumberMarker>{parts[-1].number if parts else marker}</NextPartNumberMarker>",
                f"<MaxParts>{max_parts}</MaxParts><IsTruncated>{'true' if truncated else 'false'}</IsTruncated>",
                *rows,
            ],
        )
    )


def _part_checksums(part: PartInfo) -> str:
    return "".join(
        element("Checksum" + algorithm.upper(), value)
        for algorithm, value in part.checksums.items()
        if algorithm in DIGEST_BYTES
    )


async def list_uploads(call: Call) -> Response:
    query = call.target.query
    if query.raw("delimiter"):
        raise NotSupported("this server lists uploads without a delimiter")
    url = wants_url(query)
    key_marker, id_marker = query.raw("key-marker") or b"", query.text("upload-id-marker")
    max_uploads = query.number("max-uploads", _PAGE_MAX, _PAGE_MAX)
    # Without an upload id the marker stands after all uploads of its key.
    start_after = (key_marker, id_marker or ("\U0010ffff" if key_marker else ""))
    uploads, truncated = await call.store.list_uploads(
        call.bucket, prefix=query.raw("prefix") or b"", start_after=start_after, max_uploads=max(1, max_uploads)
    )
    if max_uploads == 0:
        uploads, truncated = [], False
    owner = owner_xml(call.user.name)
    rows = [
        f"<Upload><Key>{key_text(upload.key, url=url)}</Key>{element('UploadId', upload.upload_id)}"
        f"{owner.replace('Owner>', 'Initiator>')}{owner}<StorageClass>STANDARD</StorageClass>"
        f"<Initiated>{fields.iso_time(upload.initiated_ns)}</Initiated></Upload>"
        for upload in uploads
    ]
    parts = [
        element("Bucket", call.bucket),
        f"<KeyMarker>{key_text(key_marker, url=url)}</KeyMarker>",
        element("UploadIdMarker", id_marker),
        f"<Prefix>{key_text(query.raw('prefix') or b'', url=url)}</Prefix>",
        f"<MaxUploads>{max_uploads}</MaxUploads><IsTruncated>{'true' if truncated else 'false'}</IsTruncated>",
    ]
    if url:
        parts.append("<EncodingType>url</EncodingType>")
    if truncated and uploads:
        parts.append(f"<NextKeyMarker>{key_text(uploads[-1].key, url=url)}</NextKeyMarker>")
        parts.append(element("NextUploadIdMarker", uploads[-1].upload_id))
    return xml_response(document("ListMultipartUploadsResult", [*parts, *rows]))
