"""Plain PUTs and DELETEs of objects that came whole: begun at once, and replied to when they are durable.

As in `quick`, nothing is decided here that is not decided elsewhere: the same verifier, the same readers of headers,
the same checks of the body, the same writer. Whoever is to be refused before the writer is asked, and whoever wants
more than that, is left to the handler.
"""

from collections.abc import Callable
from typing import Any, Final

import outcome as outcomes
import trio

from couchestord.clock import Clock
from couchestord.errors import Error
from couchestord.frontends.http import Head, Request, Response
from couchestord.frontends.s3 import fields
from couchestord.frontends.s3.body import Received, VerifiedBody
from couchestord.frontends.s3.call import Call, S3Options
from couchestord.frontends.s3.objects import checked_key, delete_response, put_response, verified_checksums
from couchestord.frontends.s3.quick import Observer, Refusal
from couchestord.frontends.s3.routes import Operation, parse_target
from couchestord.frontends.s3.sigv4 import Verifier
from couchestord.model import KEY_LENGTH_BYTES_MAX, Attributes
from couchestord.store import Answered, HandedOver, Objects

_OPERATIONS: Final = {b"PUT": Operation.PUT_OBJECT, b"DELETE": Operation.DELETE_OBJECT}
Reply = Callable[[Response], None]


class BegunWrites:
    """`Begin` for one store."""

    def __init__(
        self,
        store: Objects,
        handed_over: HandedOver,
        verifier: Verifier,
        clock: Clock,
        options: S3Options,
        observe: Observer,
        next_request_id: Callable[[], bytes],
        refusal: Refusal,
    ) -> None:
        self._store = store
        self._handed_over = handed_over
        self._verify = verifier.verify
        self._now_ns = clock.now_ns
        self._options = options
        self._observe = observe
        self._next_request_id = next_request_id
        self._refusal = refusal

    def begin(self, head: Head, body: bytes, reply: Reply) -> bool:
        """See `Begin`."""
        operation = _OPERATIONS.get(head.method)
        if operation is None or head.fields is None or b"x-amz-copy-source" in head.fields:
            return False
        begun_s = trio.current_time()
        try:
            call = self._call(head, body)
            if call is None:
                return False
            answered = self._answered(call, operation, len(body), begun_s, reply)
            if operation is Operation.PUT_OBJECT:
                return self._put(call, body, answered)
            return self._delete(call, answered)
        except Error:
            return False  # the handler will find the same, and has an answer to it

    def _call(self, head: Head, body: bytes) -> Call | None:
        """The request, when its sender may make it."""
        headers = head.fields
        assert headers is not None
        target = parse_target(head.target)
        if target.query.fields or not target.key or len(target.key) > KEY_LENGTH_BYTES_MAX:
            return None
        authorized = self._verify(head.method, target, headers, self._now_ns())
        user = self._store.find_user(authorized.access_key.user)
        if user is None:
            return None
        request = Request(head.method, head.target, head.headers, Received(body), head.content_length, headers)
        call = Call(self._store, self._options, request, headers, target, authorized, user)
        needed = call.owner_needed()
        if needed is not None:
            owner = self._handed_over.owner(target.bucket)
            if owner != needed or not (user.admin or owner == user.name):
                return None
        return call

    def _put(self, call: Call, received: bytes, answered: Answered) -> bool:
        fields.refuse_unsupported(call.headers)
        key, conditions = checked_key(call), call.write_conditions()
        attributes = fields.attributes_of(call.headers)
        verified = VerifiedBody(call.request, call.headers, call.authorized)
        body = verified.take_whole(received)
        if body is None:
            return False
        if verified.checksums.algorithm:
            attributes = Attributes(attributes.headers, attributes.metadata, verified_checksums(verified))
        return self._handed_over.put(call.bucket, key, body, attributes, conditions, answered)

    def _delete(self, call: Call, answered: Answered) -> bool:
        fields.refuse_unsupported(call.headers)
        return self._handed_over.delete(call.bucket, call.key, call.write_conditions(), answered)

    def _answered(self, call: Call, operation: Operation, received: int, begun_s: float, reply: Reply) -> Answered:
        request_id = self._next_request_id()

        def answered(outcome: outcomes.Outcome[Any]) -> None:
            try:
                found = outcome.unwrap()
                response = put_response(found) if operation is Operation.PUT_OBJECT else delete_response(found)
            except Exception as error:
                response = self._refusal(call, operation, request_id, error)
            status = response.status

            def finished(sent_bytes: int) -> None:
                self._observe(operation, status, trio.current_time() - begun_s, received, sent_bytes)

            headers = [*response.headers, (b"x-amz-request-id", request_id)]
            reply(Response(status, headers, response.body, None, finished))

        return answered
