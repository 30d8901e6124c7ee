"""What keeps bytes outside this node: objects that are written once, whole, and never changed. Pure.

Errors, all of them `couchestord.errors.RemoteError`: `NoSuchBlob`, `BlobExists`, and for every call
`RemoteUnavailable` (later it may succeed; the backend has repeated it already, within bounds), `RemoteDenied` and
`RemoteRefused` (somebody must act). A call that failed, or was cancelled, may have taken effect; each may be repeated.
"""

import re
from collections.abc import AsyncGenerator, Sequence
from typing import Final, NamedTuple, Protocol

from couchestord.errors import InvalidArgument, RemoteDenied, RemoteError, RemoteRefused

Buffer = bytes | bytearray | memoryview
KEYS_PER_PAGE: Final = 1000
_WORD = r"[a-z0-9][a-z0-9._-]*"
_KEY = re.compile(rf"{_WORD}(?:/{_WORD})*")
_KEY_LENGTH_MAX: Final = 200
_FAILED_IN_ROW_MAX: Final = 3


class Stored(NamedTuple):
    """An object that is there."""

    key: str
    size_bytes: int


class Page(NamedTuple):
    """Some objects, in an order of the backend's own: servers that keep keys in folders do not list by bytes."""

    objects: tuple[Stored, ...]
    more: bool
    """There may be others behind the last one, which is there then."""


class Backend(Protocol):
    """One place that keeps objects. Called from one trio loop, by any number of tasks; every call ends in bounded time.

    Keys are ours: words of lower-case letters, digits, `.`, `_` and `-` that begin with a letter or digit, joined by
    `/`, at most 200 characters (`check_key`). None may be what another begins with before a `/`: in a folder that is a
    folder (RemoteRefused).
    """

    @property
    def name(self) -> str:
        """For people and logs: where it is. Holds no secret."""
        ...

    async def put_new(self, key: str, parts: Sequence[Buffer]) -> None:
        """Store an object, the parts one after the other: durable, whole and readable by all on return.

        Nothing that is stored is ever replaced: BlobExists when other bytes are there. The same bytes are no error, so
        that a call whose answer was lost can be repeated. The parts must not change: a call that was cancelled, or
        given up by its deadline, may still be at them.
        """
        ...

    async def get(self, key: str, offset: int, length: int) -> bytes:
        """At most `length` bytes at `offset`; fewer only at the end. NoSuchBlob. Not verified: that is the caller's
        part.
        """
        ...

    async def size(self, key: str) -> int:
        """Size in bytes. NoSuchBlob."""
        ...

    async def list(self, prefix: str, after: str = "") -> Page:
        """A page of the objects whose keys begin with `prefix`: a key, a key and a slash, or nothing.

        `after`: the last key of the page before. Each object that is there all the while comes once.
        """
        ...

    async def delete(self, key: str) -> None:
        """The object is gone on return; one that was not there is no error. A read under way may fail."""
        ...

    async def aclose(self) -> None:
        """Give connections and threads back. No call may follow."""
        ...


async def all_objects(backend: Backend, prefix: str) -> AsyncGenerator[Stored, None]:
    """Those whose keys begin with `prefix`; a page of them is in memory, and the first key of each before it.

    Raises as `Backend.list` does, and RemoteRefused when pages come again: there is no end to these.
    """
    begun: set[str] = set()
    page = await backend.list(prefix)
    while True:
        for stored in page.objects:
            yield stored
        if not page.more:
            return
        if page.objects[0].key in begun:
            raise RemoteRefused(f"{backend.name} lists the same objects again and again: it ignores start-after")
        begun.add(page.objects[0].key)
        page = await backend.list(prefix, page.objects[-1].key)


async def delete_each(backend: Backend, keys: Sequence[str]) -> tuple[set[str], RemoteError | None]:
    """Delete what can be deleted: which objects are gone, and why the first of the others is not. A few failures one
    after the other are the backend's; those that are left are not tried then.
    """
    gone: set[str] = set()
    failure: RemoteError | None = None
    failed_in_row = 0
    for key in keys:
        try:
            await backend.delete(key)
        except RemoteError as error:
            failure = failure or error
            failed_in_row += not isinstance(error, RemoteDenied | RemoteRefused)  # these are told at once
            if failed_in_row == _FAILED_IN_ROW_MAX:
                break
        else:
            gone.add(key)
            failed_in_row = 0
    return gone, failure


def check_key(key: str) -> None:
    """InvalidArgument unless it is a key as `Backend` takes it."""
    if len(key) > _KEY_LENGTH_MAX or _KEY.fullmatch(key) is None:
        raise InvalidArgument(f"not the key of a blob: {key!r}")


def check_prefix(prefix: str) -> None:
    """InvalidArgument unless it is nothing, a key, or a key and a slash."""
    if prefix:
        check_key(prefix.removesuffix("/"))


def check_range(offset: int, length: int) -> None:
    """InvalidArgument when either is negative."""
    if offset < 0 or length < 0:
        raise InvalidArgument(f"negative offset or length: {offset}, {length}")


def parts_length(parts: Sequence[Buffer]) -> int:
    """Bytes in all parts."""
    return sum(memoryview(part).nbytes for part in parts)
