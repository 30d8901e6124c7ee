"""Preconditions of requests, against the object as it is. Pure."""

from couchestord.errors import NoSuchKey, NotModified, PreconditionFailed
from couchestord.io.catalog.read import EntryRow
from couchestord.model import NO_CONDITIONS, Conditions
from couchestord.store.values import etag_text, key_words

_SECOND_NS = 1_000_000_000


def _matches(etags: tuple[str, ...], etag: str) -> bool:
    return "*" in etags or etag in etags


def check_write(conditions: Conditions, current: EntryRow | None, key: bytes) -> None:
    """Raises PreconditionFailed, or NoSuchKey for If-Match on a key that is not there."""
    if conditions.if_match:
        if current is None:
            raise NoSuchKey(f"If-Match: the key {key_words(key)} does not exist")
        if not _matches(conditions.if_match, etag_text(current.etag)):
            raise PreconditionFailed("If-Match: the object has another etag")
    if conditions.if_none_match and current is not None and _matches(conditions.if_none_match, etag_text(current.etag)):
        raise PreconditionFailed("If-None-Match: the object exists with such an etag")


def check_read(conditions: Conditions, row: EntryRow) -> None:
    """RFC 9110, 13.2.2: If-Match hides If-Unmodified-Since, If-None-Match hides If-Modified-Since.

    Raises PreconditionFailed or NotModified. Times are compared in whole seconds, as HTTP carries them.
    """
    if conditions is NO_CONDITIONS:
        return
    etag = etag_text(row.etag)
    modified_s = row.modified_ns // _SECOND_NS
    if conditions.if_match:
        if not _matches(conditions.if_match, etag):
            raise PreconditionFailed("If-Match: the object has another etag")
    elif conditions.if_unmodified_since_ns is not None and modified_s > conditions.if_unmodified_since_ns // _SECOND_NS:
        raise PreconditionFailed("If-Unmodified-Since: the object was modified later")
    if conditions.if_none_match:
        if _matches(conditions.if_none_match, etag):
            raise NotModified("If-None-Match: the object has such an etag", etag)
    elif conditions.if_modified_since_ns is not None and modified_s <= conditions.if_modified_since_ns // _SECOND_NS:
        raise NotModified("If-Modified-Since: the object was not modified later", etag)


def check_source(conditions: Conditions, row: EntryRow) -> None:
    """Conditions on the source of a copy: all failures are PreconditionFailed."""
    try:
        check_read(conditions, row)
    except NotModified as error:
        raise PreconditionFailed(str(error)) from None
