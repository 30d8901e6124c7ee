"""ListObjects, both versions. A page costs what the page costs: one call of the store."""

import base64
import binascii
from collections.abc import Iterable

from couchestord.errors import InvalidArgument
from couchestord.frontends.http import Response
from couchestord.frontends.s3.buckets import owner_xml
from couchestord.frontends.s3.call import Call
from couchestord.frontends.s3.fields import iso_time, xml_response
from couchestord.frontends.s3.routes import Query
from couchestord.frontends.s3.xml import document, element, escape, key_text
from couchestord.model import LIST_KEYS_MAX, ListEntry, ListPage


def wants_url(query: Query) -> bool:
    """encoding-type=url. Raises InvalidArgument for another one."""
    encoding = query.text("encoding-type")
    if encoding not in ("", "url"):
        raise InvalidArgument("encoding-type must be url")
    return encoding == "url"


def prefixes_xml(prefixes: Iterable[bytes], *, url: bool) -> str:
    return "".join(
        f"<CommonPrefixes><Prefix>{key_text(prefix, url=url)}</Prefix></CommonPrefixes>" for prefix in prefixes
    )


def _contents(entries: Iterable[ListEntry], owner: str, *, url: bool) -> str:
    return "".join(
        f"<Contents><Key>{key_text(entry.key, url=url)}</Key><LastModified>{iso_time(entry.modified_ns)}</LastModified>"
        f"<ETag>&quot;{escape(entry.etag)}&quot;</ETag><Size>{entry.size_bytes}</Size>{owner}"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for entry in entries
    )


async def _page(call: Call, start_after: bytes, max_keys: int) -> ListPage:
    query = call.target.query
    if max_keys == 0:
        await call.store.head_bucket(call.bucket)
        return ListPage((), (), None)
    return await call.store.list(
        call.bucket,
        prefix=query.raw("prefix") or b"",
        delimiter=query.raw("delimiter") or b"",
        start_after=start_after,
        max_keys=max_keys,
    )


def _head(call: Call, max_keys: int, truncated: bool, *, url: bool) -> list[str]:
    query = call.target.query
    parts = [
        element("Name", call.bucket),
        f"<Prefix>{key_text(query.raw('prefix') or b'', url=url)}</Prefix>",
        f"<MaxKeys>{max_keys}</MaxKeys>",
        f"<IsTruncated>{'true' if truncated else 'false'}</IsTruncated>",
    ]
    if query.raw("delimiter"):
        parts.append(f"<Delimiter>{key_text(query.raw('delimiter') or b'', url=url)}</Delimiter>")
    if url:
        parts.append("<EncodingType>url</EncodingType>")
    return parts


async def list_objects_v1(call: Call) -> Response:
    query = call.target.query
    url, max_keys = wants_url(query), query.number("max-keys", LIST_KEYS_MAX, LIST_KEYS_MAX)
    marker = query.raw("marker") or b""
    page = await _page(call, marker, max_keys)
    parts = _head(call, max_keys, page.next_start is not None, url=url)
    parts.append(f"<Marker>{key_text(marker, url=url)}</Marker>")
    if page.next_start is not None and query.raw("delimiter"):
        parts.append(f"<NextMarker>{key_text(page.next_start, url=url)}</NextMarker>")
    parts += [_contents(page.entries, owner_xml(call.user.name), url=url), prefixes_xml(page.prefixes, url=url)]
    return xml_response(document("ListBucketResult", parts))


async def list_objects_v2(call: Call) -> Response:
    query = call.target.query
    url, max_keys = wants_url(query), query.number("max-keys", LIST_KEYS_MAX, LIST_KEYS_MAX)
    token, start_after = query.raw("continuation-token"), query.raw("start-after")
    page = await _page(call, _from_token(token) if token is not None else start_after or b"", max_keys)
    parts = _head(call, max_keys, page.next_start is not None, url=url)
    parts.append(f"<KeyCount>{len(page.entries) + len(page.prefixes)}</KeyCount>")
    if token is not None:
        parts.append(f"<ContinuationToken>{key_text(token, url=False)}</ContinuationToken>")
    if start_after:
        parts.append(f"<StartAfter>{key_text(start_after, url=url)}</StartAfter>")
    if page.next_start is not None:
        parts.append(f"<NextContinuationToken>{_to_token(page.next_start)}</NextContinuationToken>")
    owner = owner_xml(call.user.name) if query.text("fetch-owner") == "true" else ""
    parts += [_contents(page.entries, owner, url=url), prefixes_xml(page.prefixes, url=url)]
    return xml_response(document("ListBucketResult", parts))


def _to_token(start: bytes) -> str:
    return base64.urlsafe_b64encode(b"1" + start).decode("ascii")


def _from_token(token: bytes) -> bytes:
    """The first byte says which form the rest has, so that old tokens can be told from new ones."""
    try:
        start = base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        start = b""
    if not start.startswith(b"1"):
        raise InvalidArgument("the continuation token is not one of this server")
    return start[1:]
