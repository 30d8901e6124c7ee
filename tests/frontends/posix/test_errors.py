"""Every error of the tree has a number."""

import errno

import pytest

from couchestord import errors
from couchestord.frontends.posix.errors import TABLE, number_of


def leaves(cls: type[errors.Error]) -> list[type[errors.Error]]:
    found = [leaf for sub in cls.__subclasses__() if sub.__module__ == errors.__name__ for leaf in leaves(sub)]
    return found or [cls]


def made(leaf: type[errors.Error]) -> errors.Error:
    return errors.InvalidRange("x", 1) if leaf is errors.InvalidRange else leaf("x")


@pytest.mark.parametrize("leaf", leaves(errors.Error), ids=lambda leaf: leaf.__name__)
def test_each_leaf_has_a_number(leaf: type[errors.Error]) -> None:
    assert number_of(made(leaf)) in errno.errorcode


@pytest.mark.parametrize("leaf", leaves(errors.FileError), ids=lambda leaf: leaf.__name__)
def test_what_only_file_systems_say_has_a_number_of_its_own(leaf: type[errors.Error]) -> None:
    assert TABLE[leaf] != errno.EIO


def test_subclasses_follow_their_base() -> None:
    class Special(errors.NoSuchXattr): ...

    assert number_of(Special("x")) == errno.ENODATA
    assert number_of(errors.NoSuchBucket("x")) == errno.ENOENT
    assert number_of(errors.BucketMounted("x")) == errno.EBUSY
    assert number_of(errors.AccessDenied("x")) == errno.EACCES


def test_nearest_class_of_the_table_counts() -> None:
    assert number_of(errors.BucketNotEmpty("x")) == errno.ENOTEMPTY  # though it is a Conflict
    assert number_of(errors.KeyTooLong("x")) == errno.ENAMETOOLONG  # though it is Invalid
    assert number_of(errors.EntityTooLarge("x")) == errno.EFBIG


@pytest.mark.parametrize(
    "error", [errors.DataLost("x"), errors.Unavailable("x"), errors.TooFewDisks("x"), errors.InternalError("x")]
)
def test_what_the_store_cannot_do_is_an_error_of_the_medium(error: errors.Error) -> None:
    assert number_of(error) == errno.EIO
