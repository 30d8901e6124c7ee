"""What a handler is given: one authenticated, authorised request."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

import trio

from couchestord.errors import AccessDenied
from couchestord.frontends.http import Request, Response
from couchestord.frontends.s3 import fields
from couchestord.frontends.s3.body import VerifiedBody
from couchestord.frontends.s3.fields import Headers
from couchestord.frontends.s3.routes import Target
from couchestord.frontends.s3.sigv4 import Authorized
from couchestord.model import BucketInfo, Conditions, User
from couchestord.store import Objects

_THREAD_BYTES_MIN: Final = 32 << 10
"""XML of that length takes milliseconds to read."""
Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class S3Options:
    """How the front end behaves."""

    region: str = "us-east-1"
    skew_s: int = 15 * 60
    put_bytes_max: int = 5 << 30
    """A single PUT or part."""
    joined_bytes_max: int = 128 << 10
    """Bodies up to this length pass the store in one piece."""
    xml_bytes_max: int = 1 << 20
    complete_bytes_max: int = 3 << 19
    """CompleteMultipartUpload: ten thousand parts."""


class Call(NamedTuple):
    """One request whose signature is right and whose sender may do what it asks."""

    store: Objects
    options: S3Options
    request: Request
    headers: Headers
    """By lower-case name; repeated ones are joined by a comma."""
    target: Target
    authorized: Authorized
    user: User

    @property
    def bucket(self) -> str:
        return self.target.bucket

    @property
    def key(self) -> bytes:
        return self.target.key

    def body(self, *, checksums: bool = True) -> VerifiedBody:
        """The body; ask once. Raises what its head is refused for.

        Without `checksums` the x-amz-checksum-* headers are not about the body (those of a complete are the object's).
        """
        headers = self.headers
        if not checksums:
            headers = {name: value for name, value in headers.items() if not name.startswith(b"x-amz-checksum-")}
        return VerifiedBody(self.request, headers, self.authorized)

    def owner_needed(self, *, of_source: bool = False) -> str | None:
        """Whom the bucket, or that of a copy's source, must belong to for this call; None: anybody."""
        whose = b"source-" if of_source else b""
        expected = self.headers.get(b"x-amz-%bexpected-bucket-owner" % whose)
        if expected is not None:
            return fields.text(expected)
        return None if self.user.admin else self.user.name

    def write_conditions(self) -> Conditions:
        """What must hold when a change is made.

        That the bucket belongs to who may change it was checked when the request came; but while its body came, the
        bucket may have gone and been made anew by somebody else.
        """
        return fields.write_conditions(self.headers, self.owner_needed())

    async def read_xml(self, body: VerifiedBody, bytes_max: int, read: Callable[[bytes, int], Read], most: int) -> Read:
        """The body as `read` understands it, with at most so many entries; in a thread when that takes long.

        Raises EntityTooLarge, MalformedXML, and what the body raises.
        """
        document = await body.read(bytes_max)
        if len(document) < _THREAD_BYTES_MIN:
            return read(document, most)
        return await trio.to_thread.run_sync(read, document, most)

    async def check_bucket(self, bucket: str, *, of_source: bool = False) -> BucketInfo | None:
        """Lets the call touch a bucket, or with `of_source` copy from it. None: no look-up was needed. Raises
        AccessDenied, NoSuchBucket.

        `x-amz-expected-bucket-owner` is a condition and holds for administrators too.
        """
        needed = self.owner_needed(of_source=of_source)
        if needed is None:
            return None
        info = await self.store.head_bucket(bucket)
        if info.owner != needed:
            raise AccessDenied("access denied: the bucket has another owner")
        if not self.user.admin and info.owner != self.user.name:
            raise AccessDenied("access denied")
        return info


Handler = Callable[[Call], Awaitable[Response]]
