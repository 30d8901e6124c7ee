"""The S3 front end as one handler: authenticate, route, authorise, dispatch, answer errors."""

import logging
from collections.abc import Mapping
from typing import Final

import trio

from couchestord.clock import Clock
from couchestord.errors import (
    AccessDenied,
    AuthorizationHeaderMalformed,
    DataLost,
    InvalidRange,
    InvalidRequest,
    KeyTooLong,
    NoSuchKey,
    NotModified,
)
from couchestord.frontends.http import Begin, Request, RequestBody, Response, never_begun
from couchestord.frontends.s3 import buckets, listing, multipart, objects
from couchestord.frontends.s3.call import Call, Handler, S3Options
from couchestord.frontends.s3.errors import message, s3_code
from couchestord.frontends.s3.fields import Header, etag_header
from couchestord.frontends.s3.quick import Observer, QuickAnswers
from couchestord.frontends.s3.routes import Operation, parse_target, route
from couchestord.frontends.s3.sigv4 import Verifier
from couchestord.frontends.s3.writes import BegunWrites
from couchestord.frontends.s3.xml import element, error_document
from couchestord.model import KEY_LENGTH_BYTES_MAX
from couchestord.store import Objects

_log = logging.getLogger(__name__)

HANDLERS: Final[Mapping[Operation, Handler]] = {
    Operation.LIST_BUCKETS: buckets.list_buckets,
    Operation.CREATE_BUCKET: buckets.create_bucket,
    Operation.HEAD_BUCKET: buckets.head_bucket,
    Operation.DELETE_BUCKET: buckets.delete_bucket,
    Operation.GET_BUCKET_LOCATION: buckets.get_location,
    Operation.GET_BUCKET_VERSIONING: buckets.get_versioning,
    Operation.LIST_OBJECTS: listing.list_objects_v1,
    Operation.LIST_OBJECTS_V2: listing.list_objects_v2,
    Operation.LIST_UPLOADS: multipart.list_uploads,
    Operation.DELETE_OBJECTS: objects.delete_objects,
    Operation.PUT_OBJECT: objects.put_object,
    Operation.COPY_OBJECT: objects.copy_object,
    Operation.GET_OBJECT: objects.get_object,
    Operation.HEAD_OBJECT: objects.head_object,
    Operation.DELETE_OBJECT: objects.delete_object,
    Operation.CREATE_UPLOAD: multipart.create_upload,
    Operation.UPLOAD_PART: multipart.upload_part,
    Operation.UPLOAD_PART_COPY: multipart.upload_part_copy,
    Operation.COMPLETE_UPLOAD: multipart.complete_upload,
    Operation.ABORT_UPLOAD: multipart.abort_upload,
    Operation.LIST_PARTS: multipart.list_parts,
}
_WITHOUT_BUCKET: Final = frozenset({Operation.LIST_BUCKETS, Operation.CREATE_BUCKET})
_ONCE: Final = frozenset({b"authorization", b"host", b"x-amz-content-sha256", b"x-amz-date", b"content-md5"})
_MAKING: Final = frozenset({b"PUT", b"POST"})
"""Methods of what makes objects. What a mount has made may have a longer key, and is served and deleted."""
_UNROUTED: Final = "Unknown"


def _observe_nothing(_operation: str, _status: int, _seconds: float, _bytes_in: int, _bytes_out: int) -> None:
    return None


class S3Server:
    """S3 for one store. `handler`, `quick` and `begin` are what `serve_http` takes."""

    def __init__(
        self,
        store: Objects,
        clock: Clock,
        options: S3Options = S3Options(),  # noqa: B008 - frozen
        observe: Observer = _observe_nothing,
    ) -> None:
        self._store = store
        self._clock = clock
        self._options = options
        self._observe = observe
        self._verifier = Verifier(options.region, store.find_key, options.skew_s)
        self._request_ids = int.from_bytes(clock.random_bytes(8), "big")
        parts = (self._verifier, clock, options, observe, self._next_request_id, self._refusal)
        self.quick = QuickAnswers(store, *parts).answer
        self.begin: Begin = never_begun
        if store.handed_over is not None:
            self.begin = BegunWrites(store, store.handed_over, *parts).begin

    async def handler(self, request: Request) -> Response:
        """Answers one request. Raises nothing: what goes wrong becomes an S3 error."""
        return await _Answer(self, request, self._next_request_id()).make()

    def _refusal(self, call: Call, operation: Operation, request_id: bytes, error: Exception) -> Response:
        answer = _Answer(self, call.request, request_id)
        answer._operation, answer._call = operation, call
        return answer._refusal(error)

    def _next_request_id(self) -> bytes:
        self._request_ids = (self._request_ids + 1) & 0xFFFF_FFFF_FFFF_FFFF
        return b"%016X" % self._request_ids


class _Answer:
    """How one request is answered."""

    __slots__ = ("_begun", "_body", "_call", "_operation", "_request", "_request_id", "_server", "_status")

    def __init__(self, server: S3Server, request: Request, request_id: bytes) -> None:
        self._begun = trio.current_time()
        self._server = server
        self._request = request
        self._request_id = request_id
        self._body: _CountedBody | None = None
        if request.content_length != 0:
            self._body = body = _CountedBody(request.body)
            self._request = Request(
                request.method, request.target, request.headers, body, request.content_length, request.fields
            )
        self._operation: Operation | None = None
        self._call: Call | None = None
        self._status = 0

    async def make(self) -> Response:
        try:
            response = await self._dispatch()
        except Exception as error:
            # Nurseries wrap what a child raised; what is asked here is only what to say.
            while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
                error = error.exceptions[0]
            response = self._refusal(error)
        self._status = response.status
        headers = [*response.headers, (b"x-amz-request-id", self._request_id)]
        if self._operation is Operation.HEAD_BUCKET:
            headers.append((b"x-amz-bucket-region", self._server._options.region.encode("ascii")))
        return Response(response.status, headers, response.body, response.length_bytes, self._finished)

    def _finished(self, sent_bytes: int) -> None:
        received_bytes = self._body.received_bytes if self._body is not None else 0
        duration_s = trio.current_time() - self._begun
        self._server._observe(self._operation or _UNROUTED, self._status, duration_s, received_bytes, sent_bytes)

    async def _dispatch(self) -> Response:
        server, request = self._server, self._request
        target = parse_target(request.target)
        headers = join_headers(request)
        authorized = server._verifier.verify(request.method, target, headers, server._clock.now_ns())
        user = server._store.find_user(authorized.access_key.user)
        if user is None:
            raise AccessDenied("access denied")
        self._operation = operation = route(request.method, target, copy_source=b"x-amz-copy-source" in headers)
        if request.method in _MAKING and len(target.key) > KEY_LENGTH_BYTES_MAX:
            raise KeyTooLong(f"a key has at most {KEY_LENGTH_BYTES_MAX} bytes")
        call = Call(server._store, server._options, request, headers, target, authorized, user)
        self._call = call
        if operation not in _WITHOUT_BUCKET:
            await call.check_bucket(target.bucket)
        return await HANDLERS[operation](call)

    def _refusal(self, error: Exception) -> Response:
        code, status = s3_code(error)
        if isinstance(error, DataLost):
            _log.error("%s failed, data is lost: %s", self._operation or _UNROUTED, error)  # no defect to trace
        elif code == "InternalError":
            _log.error("%s failed", self._operation or _UNROUTED, exc_info=error)
        headers: list[Header] = []
        if isinstance(error, NotModified):
            return Response(304, [etag_header(error.etag)])
        if isinstance(error, InvalidRange):
            headers.append((b"Content-Range", b"bytes */%d" % error.size_bytes))
        if status == 503:
            headers.append((b"Retry-After", b"1"))
        if self._request.method == b"HEAD":
            return Response(status, headers)
        extra = ""
        if isinstance(error, AuthorizationHeaderMalformed):
            extra = element("Region", self._server._options.region)
        elif isinstance(error, NoSuchKey) and self._call is not None:
            extra = element("Key", self._call.key.decode("utf-8", "replace"))
        resource = self._request.target.partition(b"?")[0].decode("ascii", "replace")
        document = error_document(code, message(error), resource, self._request_id.decode("ascii"), extra)
        return Response(status, [*headers, (b"Content-Type", b"application/xml")], document)


class _CountedBody:
    """A request's body with a count of what came."""

    __slots__ = ("_body", "received_bytes")

    def __init__(self, body: RequestBody) -> None:
        self._body = body
        self.received_bytes = 0

    def __aiter__(self) -> "_CountedBody":
        return self

    async def __anext__(self) -> bytes:
        piece = await anext(self._body)
        self.received_bytes += len(piece)
        return piece

    async def read_into(self, buffer: memoryview) -> int | None:
        count = await self._body.read_into(buffer)
        self.received_bytes += count or 0
        return count


def join_headers(request: Request) -> Mapping[bytes, bytes]:
    """Headers by name, repeated ones joined by a comma, as they are signed. Raises InvalidRequest."""
    if request.fields is not None:
        return request.fields
    joined: dict[bytes, bytes] = {}
    for name, value in request.headers:
        if name in joined:
            if name in _ONCE:
                raise InvalidRequest(f"the header {name.decode('latin-1')} is there twice")
            value = joined[name] + b"," + value
        joined[name] = value
    return joined


__all__ = ["HANDLERS", "Observer", "S3Options", "S3Server", "join_headers"]
