"""Objects: put, get, head, copy, delete one, delete many."""

from dataclasses import replace

import trio

from couchestord.errors import EntityTooLarge, Error, InvalidArgument, InvalidRange, InvalidRequest
from couchestord.frontends.http import Response
from couchestord.frontends.s3 import fields
from couchestord.frontends.s3.body import VerifiedBody
from couchestord.frontends.s3.call import Call
from couchestord.frontends.s3.errors import message, s3_code
from couchestord.frontends.s3.fields import xml_response
from couchestord.frontends.s3.routes import Query, parse_copy_source
from couchestord.frontends.s3.xml import DeletedKey, document, element, key_text, read_delete
from couchestord.model import Attributes, ByteRange, Conditions, DeleteResult, ObjectInfo
from couchestord.store import ObjectReader

_DELETED_KEYS_MAX = 1000
_DELETES_AT_ONCE = 64


# -- writing ---------------------------------------------------------------------------------------------------------


def checked_key(call: Call) -> bytes:
    """The key of something that is to be made. Raises InvalidArgument when it is no UTF-8."""
    try:
        call.key.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidArgument("a key must be UTF-8") from None
    return call.key


def verified_checksums(body: VerifiedBody) -> dict[str, str]:
    """What is stored of a body's checksum, once the body was read to its end."""
    values = body.checksums.values()
    return {**values, "type": "FULL_OBJECT"} if values else {}


async def put_object(call: Call) -> Response:
    fields.refuse_unsupported(call.headers)
    key, conditions = checked_key(call), call.write_conditions()
    attributes = fields.attributes_of(call.headers)
    body = call.body()
    if body.length_bytes > call.options.put_bytes_max:
        raise EntityTooLarge(f"a single PUT takes at most {call.options.put_bytes_max} bytes; use a multipart upload")

    def finish() -> Attributes:
        return Attributes(attributes.headers, attributes.metadata, verified_checksums(body))

    if body.length_bytes <= call.options.joined_bytes_max:
        data = await body.read(call.options.joined_bytes_max)
        info = await call.store.put(call.bucket, key, data, size=len(data), attributes=finish(), conditions=conditions)
    else:
        info = await call.store.put(
            call.bucket, key, body, size=body.length_bytes, conditions=conditions, finish=finish
        )
    return put_response(info)


def put_response(info: ObjectInfo) -> Response:
    headers = [fields.etag_header(info.etag)]
    if info.version_id is not None:
        headers += fields.version_headers(info.version_id)
    if info.attributes.checksums:
        headers += fields.checksum_headers(info.attributes.checksums)
    return Response(200, headers)


async def copy_object(call: Call) -> Response:
    fields.refuse_unsupported(call.headers)
    if call.request.content_length != 0:
        await call.body().read(0)
    bucket, key, version_id = parse_copy_source(call.headers[b"x-amz-copy-source"])
    await call.check_bucket(bucket, of_source=True)
    directive = call.headers.get(b"x-amz-metadata-directive", b"COPY").upper()
    if directive not in (b"COPY", b"REPLACE"):
        raise InvalidArgument("x-amz-metadata-directive must be COPY or REPLACE")
    attributes = fields.attributes_of(call.headers) if directive == b"REPLACE" else None
    if attributes is None and version_id is None and (bucket, key) == (call.bucket, call.key):
        raise InvalidRequest("a copy onto itself must replace the metadata")
    if b"x-amz-checksum-algorithm" in call.headers:
        raise InvalidRequest("x-amz-checksum-algorithm is not supported for copies")
    info = await call.store.copy(
        call.bucket,
        checked_key(call),
        bucket,
        key,
        source_version_id=version_id,
        attributes=attributes,
        conditions=call.write_conditions(),
        source_conditions=replace(
            fields.read_conditions(call.headers, b"x-amz-copy-source-"), bucket_owner=call.owner_needed(of_source=True)
        ),
    )
    headers = fields.version_headers(info.version_id)
    if version_id is not None:
        headers.append((b"x-amz-copy-source-version-id", version_id.encode("ascii", "replace")))
    return xml_response(document("CopyObjectResult", copy_result(info.etag, info.modified_ns)), headers=tuple(headers))


def copy_result(etag: str, modified_ns: int) -> list[str]:
    return [f"<LastModified>{fields.iso_time(modified_ns)}</LastModified>", element("ETag", f'"{etag}"')]


# -- reading ---------------------------------------------------------------------------------------------------------


class Pieces:
    """The pieces of a reader. Closes the reader, wherever it stopped."""

    def __init__(self, reader: ObjectReader) -> None:
        self._reader = reader
        self._rest = reader.lend()
        self._first: bytes | memoryview | None = None

    async def open(self) -> None:
        """Reads, and so verifies, the first piece: what is lost from the start on gets an error instead of a head."""
        self._first = await anext(self._rest)

    def __aiter__(self) -> "Pieces":
        return self

    async def __anext__(self) -> bytes | memoryview:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._rest)

    async def aclose(self) -> None:
        await self._reader.aclose()


def _version_id(call: Call) -> str | None:
    """Raises InvalidArgument for an empty one: a client that has lost the id must not be given, nor delete, the live
    object.
    """
    query = call.target.query
    if not query.fields or "versionId" not in query:
        return None
    found = query.text("versionId")
    if not found:
        raise InvalidArgument("versionId cannot be empty")
    return found


def _wants_checksums(headers: fields.Headers) -> bool:
    return headers.get(b"x-amz-checksum-mode", b"").upper() == b"ENABLED"


async def _open(call: Call, byte_range: ByteRange | None) -> ObjectReader:
    return await call.store.get(
        call.bucket,
        call.key,
        byte_range=byte_range,
        version_id=_version_id(call),
        conditions=fields.read_conditions(call.headers),
    )


async def _open_range(call: Call) -> tuple[ObjectReader, bool]:
    """The reader, and whether it reads a range. With If-Range, the whole object when the client has another version."""
    byte_range = fields.byte_range(call.headers.get(b"range"))
    if_range = call.headers.get(b"if-range")
    if byte_range is None or if_range is None:
        return await _open(call, byte_range), byte_range is not None
    try:
        reader = await _open(call, byte_range)
    except InvalidRange:
        return await _open(call, None), False
    known = (f'"{reader.info.etag}"'.encode(), reader.info.etag.encode(), fields.http_time(reader.info.modified_ns))
    if if_range.strip() in known:
        return reader, True
    await reader.aclose()
    return await _open(call, None), False


async def get_object(call: Call) -> Response:
    reader, ranged = await _open_range(call)
    try:
        status, headers = read_head(reader, call.headers, call.target.query, ranged=ranged)
        if reader.length <= call.options.joined_bytes_max:
            return Response(status, headers, await reader.read())
        pieces = Pieces(reader)
        await pieces.open()
        return Response(status, headers, pieces, reader.length)
    except BaseException:
        with trio.CancelScope(shield=True):
            await reader.aclose()
        raise


def read_head(
    reader: ObjectReader, headers: fields.Headers, query: Query, *, ranged: bool
) -> tuple[int, list[fields.Header]]:
    """Status and headers of the response to a GET with those headers. `ranged`: it asked for what the reader reads."""
    found = fields.object_headers(reader.info, query, checksums=_wants_checksums(headers) and not ranged)
    if not ranged:
        return 200, found
    last = reader.first + reader.length - 1
    found.append((b"Content-Range", b"bytes %d-%d/%d" % (reader.first, last, reader.info.size_bytes)))
    return 206, found


async def head_object(call: Call) -> Response:
    info = await call.store.head(
        call.bucket, call.key, version_id=_version_id(call), conditions=fields.read_conditions(call.headers)
    )
    asked = fields.byte_range(call.headers.get(b"range"))
    headers = fields.object_headers(info, call.target.query, checksums=_wants_checksums(call.headers) and asked is None)
    if asked is None:
        return Response(200, headers, length_bytes=info.size_bytes)
    first, last = _resolve(asked, info.size_bytes)
    headers.append((b"Content-Range", b"bytes %d-%d/%d" % (first, last, info.size_bytes)))
    return Response(206, headers, length_bytes=last - first + 1)


def _resolve(asked: ByteRange, size: int) -> tuple[int, int]:
    if asked.first is None:
        first, last = max(0, size - (asked.last or 0)), size - 1
    else:
        first, last = asked.first, size - 1 if asked.last is None else min(asked.last, size - 1)
    if first >= size:
        raise InvalidRange("the range starts after the end of the object", size)
    return first, last


# -- deleting --------------------------------------------------------------------------------------------------------


async def delete_object(call: Call) -> Response:
    fields.refuse_unsupported(call.headers)
    result = await call.store.delete(
        call.bucket, call.key, version_id=_version_id(call), conditions=call.write_conditions()
    )
    return delete_response(result)


def delete_response(result: DeleteResult) -> Response:
    return Response(204, fields.version_headers(result.version_id, delete_marker=result.delete_marker))


async def delete_objects(call: Call) -> Response:
    """Each key succeeds or fails for itself; many are under way together, so that they share commits."""
    fields.refuse_unsupported(call.headers)
    keys, quiet = await call.read_xml(call.body(), call.options.xml_bytes_max, read_delete, _DELETED_KEYS_MAX)
    await call.store.head_bucket(call.bucket)
    rows = [""] * len(keys)
    waiting = iter(enumerate(keys))

    async def work() -> None:
        for index, key in waiting:
            rows[index] = await _delete_row(call, key, quiet=quiet)

    async with trio.open_nursery() as nursery:
        for _ in range(min(_DELETES_AT_ONCE, len(keys))):
            nursery.start_soon(work)
    return xml_response(document("DeleteResult", rows))


async def _delete_row(call: Call, key: DeletedKey, *, quiet: bool) -> str:
    named = f"<Key>{key_text(key.key, url=False)}</Key>"
    if key.version_id is not None:
        named += element("VersionId", key.version_id)
    try:
        conditions = Conditions(() if key.etag is None else (key.etag,), bucket_owner=call.owner_needed())
        result = await call.store.delete(call.bucket, key.key, version_id=key.version_id, conditions=conditions)
    except Error as error:
        code = s3_code(error)[0]
        return f"<Error>{named}<Code>{code}</Code>{element('Message', message(error))}</Error>"
    if quiet:
        return ""
    if result.delete_marker:
        named += "<DeleteMarker>true</DeleteMarker>"
        named += element("DeleteMarkerVersionId", result.version_id or "null")
    return f"<Deleted>{named}</Deleted>"
