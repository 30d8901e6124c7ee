"""What a file system says to each error of the tree. Pure.

A class stands for itself and for subclasses that are not in the table.
"""

import errno
from typing import Final

from couchestord import errors

TABLE: Final[dict[type[errors.Error], int]] = {
    errors.NotFound: errno.ENOENT,
    errors.NoSuchEntry: errno.ENOENT,
    errors.StaleInode: errno.ESTALE,
    errors.EntryExists: errno.EEXIST,
    errors.NotADirectory: errno.ENOTDIR,
    errors.IsADirectory: errno.EISDIR,
    errors.DirectoryNotEmpty: errno.ENOTEMPTY,
    errors.BucketAlreadyExists: errno.EEXIST,
    errors.BucketAlreadyOwnedByYou: errno.EEXIST,
    errors.BucketNotEmpty: errno.ENOTEMPTY,
    errors.IntoItself: errno.EINVAL,
    errors.AcrossBuckets: errno.EXDEV,
    errors.NameTooLong: errno.ENAMETOOLONG,
    errors.KeyTooLong: errno.ENAMETOOLONG,
    errors.InvalidName: errno.EINVAL,
    errors.TooManyLinks: errno.EMLINK,
    errors.NoSuchXattr: errno.ENODATA,
    errors.XattrExists: errno.EEXIST,
    errors.XattrTooLarge: errno.E2BIG,
    errors.EntityTooLarge: errno.EFBIG,
    errors.NotPermitted: errno.EPERM,
    errors.ReadOnlyBucket: errno.EROFS,
    errors.Invalid: errno.EINVAL,
    errors.Conflict: errno.EBUSY,
    errors.NoSpace: errno.ENOSPC,
    errors.Denied: errno.EACCES,
    errors.Error: errno.EIO,
}


def number_of(error: errors.Error) -> int:
    """The errno of an error."""
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)
