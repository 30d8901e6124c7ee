"""Buckets: create, head, delete, list, location, versioning state."""

from couchestord.errors import AccessDenied, InvalidArgument, NoSuchUser, NotSupported
from couchestord.frontends.http import Response
from couchestord.frontends.s3.call import Call
from couchestord.frontends.s3.fields import iso_time, refuse_unsupported, xml_response
from couchestord.frontends.s3.xml import document, element, read_location


def owner_xml(name: str) -> str:
    return f"<Owner>{element('ID', name)}{element('DisplayName', name)}</Owner>"


async def create_bucket(call: Call) -> Response:
    refuse_unsupported(call.headers)
    wanted = b""
    if call.request.content_length != 0:
        wanted = await call.body().read(call.options.xml_bytes_max)
    region = read_location(wanted)
    if region not in ("", call.options.region):
        raise InvalidArgument(f"buckets are made in the region {call.options.region}")
    try:
        await call.store.create_bucket(call.bucket, owner=call.user.name)
    except NoSuchUser:
        raise AccessDenied("access denied: the user was removed meanwhile") from None
    return Response(200, [(b"Location", b"/" + call.bucket.encode("ascii"))])


async def head_bucket(call: Call) -> Response:
    await call.store.head_bucket(call.bucket)
    return Response(200)


async def delete_bucket(call: Call) -> Response:
    await call.store.delete_bucket(call.bucket, owner=call.owner_needed())
    return Response(204)


async def get_location(call: Call) -> Response:
    await call.store.head_bucket(call.bucket)
    region = "" if call.options.region == "us-east-1" else call.options.region
    return xml_response(document("LocationConstraint", [region]))


async def get_versioning(call: Call) -> Response:
    info = await call.store.head_bucket(call.bucket)
    return xml_response(
        document("VersioningConfiguration", [element("Status", info.versioning)] if info.versioning else [])
    )


async def list_buckets(call: Call) -> Response:
    query = call.target.query
    if "continuation-token" in query or "max-buckets" in query:
        raise NotSupported("this server lists all buckets at once")
    prefix = query.text("prefix")
    infos = [
        info
        for info in await call.store.list_buckets()
        if (call.user.admin or info.owner == call.user.name) and info.name.startswith(prefix)
    ]
    rows = "".join(
        f"<Bucket>{element('Name', info.name)}<CreationDate>{iso_time(info.created_ns)}</CreationDate></Bucket>"
        for info in infos
    )
    return xml_response(
        document("ListAllMyBucketsResult", [owner_xml(call.user.name), "<Buckets>", rows, "</Buckets>"])
    )
