"""Buckets, users, keys: what is refused, and what is no change."""

from collections.abc import Callable

import pytest
from decide_rig import DecideRig

from couchestord.errors import (
    BucketAlreadyExists,
    BucketAlreadyOwnedByYou,
    BucketNotEmpty,
    InvalidArgument,
    InvalidBucketName,
    KeyAlreadyExists,
    NoSuchAccessKey,
    NoSuchBucket,
    NoSuchUser,
    UserOwnsBuckets,
)
from couchestord.io import requests as rq


@pytest.fixture
def rig(bare_rig: DecideRig) -> DecideRig:
    return bare_rig


def refused(rig: DecideRig, error: type[Exception], *requests: object) -> None:
    """Each raises that very error, and no record is written."""
    for request in requests:
        before = rig.catalog.applier.sequence
        with pytest.raises(error) as caught:
            rig.do(request)
        assert type(caught.value) is error
        assert rig.catalog.applier.sequence == before


def unchanged(rig: DecideRig, call: Callable[[], object]) -> object:
    """What is answered to a request that writes no record."""
    before = rig.catalog.applier.sequence
    answer = call()
    assert rig.catalog.applier.sequence == before
    return answer


def test_buckets(rig: DecideRig) -> None:
    refused(rig, InvalidBucketName, *(rq.MakeBucket(name, "ann") for name in ("", "ab", "A-b", "a_b", "x" * 64)))
    refused(rig, NoSuchUser, rq.MakeBucket("box", "ann"))
    rig.do(rq.MakeUser("ann", False))
    rig.do(rq.MakeBucket("box", "ann"))
    refused(rig, BucketAlreadyOwnedByYou, rq.MakeBucket("box", "ann"))
    refused(rig, BucketAlreadyExists, rq.MakeBucket("box", "bob"))
    refused(rig, NoSuchBucket, rq.RemoveBucket("none"), rq.SetVersioning("none", "Enabled"))
    refused(rig, InvalidArgument, *(rq.SetVersioning("box", state) for state in ("", "enabled", "Off")))
    rig.do(rq.SetVersioning("box", "Enabled"))
    unchanged(rig, lambda: rig.do(rq.SetVersioning("box", "Enabled")))


def test_a_bucket_with_anything_in_it_stays(rig: DecideRig) -> None:
    rig.bucket("bucket", "Enabled")
    version = rig.put(b"deep/down/key", b"1").version_id
    refused(rig, BucketNotEmpty, rq.RemoveBucket("bucket"))
    marker = rig.delete(b"deep/down/key").version_id
    refused(rig, BucketNotEmpty, rq.RemoveBucket("bucket"))
    rig.delete(b"deep/down/key", version)
    refused(rig, BucketNotEmpty, rq.RemoveBucket("bucket"))
    rig.delete(b"deep/down/key", marker)
    rig.do(rq.RemoveBucket("bucket"))
    refused(rig, NoSuchBucket, rq.RemoveBucket("bucket"))


def test_users(rig: DecideRig) -> None:
    refused(rig, InvalidArgument, *(rq.MakeUser(name, False) for name in ("", "x" * 129, "a\nb")))
    ann = rig.do(rq.MakeUser("ann", True))
    assert unchanged(rig, lambda: rig.do(rq.MakeUser("ann", False))) == ann, "made again, she stays what she is"
    refused(rig, NoSuchUser, rq.RemoveUser("bob"), rq.MakeKey("bob", None, None))
    rig.do(rq.RemoveUser("ann"))
    refused(rig, NoSuchUser, rq.RemoveUser("ann"))


def test_a_user_goes_after_its_buckets(rig: DecideRig) -> None:
    """Else the next of that name would get them."""
    for user in ("ann", "bob"):
        rig.do(rq.MakeUser(user, False))
    names = [f"bucket-{number}" for number in range(7)]
    for name in names:
        rig.do(rq.MakeBucket(name, "ann"))
    rig.do(rq.RemoveUser("bob"))
    with pytest.raises(UserOwnsBuckets, match=r"'ann' owns bucket-0, bucket-1, .*bucket-4 and 2 more, .* delete these"):
        rig.do(rq.RemoveUser("ann"))
    for name in names:
        refused(rig, UserOwnsBuckets, rq.RemoveUser("ann"))
        rig.do(rq.RemoveBucket(name))
    rig.do(rq.RemoveUser("ann"))
    refused(rig, NoSuchUser, rq.MakeBucket("late", "ann"))


def test_keys(rig: DecideRig) -> None:
    rig.do(rq.MakeUser("ann", True))
    rig.do(rq.MakeUser("bob", True))
    bad = ("ab", "x" * 129, "a/bc", "a,bc", "a=bc", "a bc", "\u00e4bc", "abc\n")
    refused(rig, InvalidArgument, *(rq.MakeKey("ann", name, "long-enough") for name in bad))
    refused(
        rig, InvalidArgument, *(rq.MakeKey("ann", "AKID", name) for name in ("short12", "with space", "\u00e4" * 9))
    )
    made = rig.do(rq.MakeKey("ann", "AKID", "a/good=secret"))
    assert unchanged(rig, lambda: rig.do(rq.MakeKey("ann", "AKID", "a/good=secret"))) == made
    refused(rig, KeyAlreadyExists, rq.MakeKey("ann", "AKID", "another-one"), rq.MakeKey("bob", "AKID", "a/good=secret"))
    refused(rig, KeyAlreadyExists, rq.MakeKey("nobody", "AKID", "another-one"))
    refused(rig, InvalidArgument, rq.MakeKey("nobody", "a,b", "another-one"))
    refused(rig, NoSuchUser, rq.MakeKey("nobody", "NOBODY", "another-one"))
    refused(rig, NoSuchAccessKey, rq.RemoveKey("none"))
    rig.do(rq.MakeKey("bob", "BKID", "long-enough"))
    assert rig.do(rq.RemoveUser("ann")) == ("AKID",)
    refused(rig, NoSuchAccessKey, rq.RemoveKey("AKID"))
    left = rig.catalog.writing_accounts.keys()
    assert [key.id for key in left] == ["BKID"]
