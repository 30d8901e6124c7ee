"""Targets and operations."""

import pytest

from couchestord.errors import Error, InvalidArgument, InvalidURI, MethodNotAllowed, NotSupported
from couchestord.frontends.s3.routes import SUBRESOURCES, Operation, parse_copy_source, parse_target, route
from couchestord.frontends.s3.server import HANDLERS


@pytest.mark.parametrize(
    ("raw", "bucket", "key"),
    [
        (b"/", "", b""),
        (b"/b", "b", b""),
        (b"/b/", "b", b""),
        (b"/b/k", "b", b"k"),
        (b"/b//k", "b", b"/k"),
        (b"/b/a+b", "b", b"a+b"),
        (b"/b/a%2Bb%20c", "b", b"a+b c"),
        (b"/b/%252e", "b", b"%2e"),
        (b"/b/..", "b", b".."),
        (b"/b/%2e%2e/%2fx%00", "b", b"..//x\x00"),
        (b"/b/\xff%ff", "b", b"\xff\xff"),
        (b"/b%2Fk", "b", b"k"),
    ],
)
def test_targets_are_decoded_once(raw: bytes, bucket: str, key: bytes) -> None:
    target = parse_target(raw)
    assert (target.bucket, target.key) == (bucket, key)


def test_queries() -> None:
    query = parse_target(b"/b?prefix=a+b%2Bc&uploads&x=1&x=2&max-keys=5000").query
    assert (query.raw("prefix"), query.raw("uploads"), query.raw("x")) == (b"a b+c", b"", b"1")
    assert query.number("max-keys", 1, 1000) == 1000
    for wrong in (b"-1", b"a", b"1e3", b"%C2%B2", b"9" * 5000):
        with pytest.raises(InvalidArgument):
            parse_target(b"/b?n=" + wrong).query.number("n", 1, 1000)


@pytest.mark.parametrize("raw", [b"", b"*", b"http://h/b", b"/b/%", b"/b/%zz", b"/b?%4", b"/?" + b"a&" * 201])
def test_malformed_targets(raw: bytes) -> None:
    with pytest.raises(InvalidURI):
        parse_target(raw)


def routed(method: str, raw: str, *, copy_source: bool = False) -> Operation:
    return route(method.encode(), parse_target(raw.encode()), copy_source=copy_source)


@pytest.mark.parametrize(
    ("method", "raw", "operation"),
    [
        ("GET", "/", Operation.LIST_BUCKETS),
        ("GET", "/b", Operation.LIST_OBJECTS),
        ("GET", "/b?list-type=2&prefix=acl", Operation.LIST_OBJECTS_V2),
        ("GET", "/b?location", Operation.GET_BUCKET_LOCATION),
        ("GET", "/b?uploads", Operation.LIST_UPLOADS),
        ("POST", "/b?delete", Operation.DELETE_OBJECTS),
        ("PUT", "/b/k?x-id=PutObject", Operation.PUT_OBJECT),
        ("PUT", "/b/k?partNumber=1&uploadId=u", Operation.UPLOAD_PART),
        ("POST", "/b/k?uploads", Operation.CREATE_UPLOAD),
        ("POST", "/b/k?uploadId=u", Operation.COMPLETE_UPLOAD),
        ("DELETE", "/b/k?uploadId=u", Operation.ABORT_UPLOAD),
        ("GET", "/b/k?uploadId=u", Operation.LIST_PARTS),
        ("GET", "/b/k?versionId=v", Operation.GET_OBJECT),
    ],
)
def test_operations(method: str, raw: str, operation: Operation) -> None:
    assert routed(method, raw) is operation


def test_copies() -> None:
    assert routed("PUT", "/b/k", copy_source=True) is Operation.COPY_OBJECT
    assert routed("PUT", "/b/k?partNumber=1&uploadId=u", copy_source=True) is Operation.UPLOAD_PART_COPY
    assert parse_copy_source(b"/b/k%20+") == ("b", b"k +", None)
    assert parse_copy_source(b"b/k?versionId=v") == ("b", b"k", "v")
    assert parse_copy_source(b"b/k?x") == ("b", b"k?x", None)
    for wrong in (b"", b"b", b"/b/", b"\xff/k", b"b/%zz"):
        with pytest.raises(InvalidArgument):
            parse_copy_source(wrong)


@pytest.mark.parametrize("level", ["/", "/b", "/b/k"])
@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "HEAD", "DELETE"])
def test_a_subresource_never_reaches_the_plain_operation(method: str, level: str) -> None:
    plain = {Operation.LIST_BUCKETS, Operation.LIST_OBJECTS, Operation.CREATE_BUCKET, Operation.DELETE_BUCKET}
    plain |= {Operation.PUT_OBJECT, Operation.GET_OBJECT, Operation.DELETE_OBJECT}
    for name in SUBRESOURCES:
        try:
            operation = routed(method, f"{level}?{name}")
        except Error:
            continue
        assert operation not in plain, name


def test_refusals() -> None:
    for method, raw in [("PUT", "/b/k?acl"), ("GET", "/b?policy"), ("POST", "/b"), ("GET", "/b/k?uploadId=a&acl")]:
        with pytest.raises(NotSupported):
            routed(method, raw)
    for method, raw in [("PATCH", "/b/k"), ("DELETE", "/"), ("OPTIONS", "/b")]:
        with pytest.raises(MethodNotAllowed):
            routed(method, raw)


def test_no_version_is_written_to() -> None:
    for query in ("versionId=null", "partNumber=1&uploadId=u&versionId=1"):
        with pytest.raises(InvalidArgument, match="versionId"):
            route(b"PUT", parse_target(f"/bucket/key?{query}".encode()), copy_source=False)


def test_each_operation_has_a_handler() -> None:
    assert set(HANDLERS) == set(Operation)
