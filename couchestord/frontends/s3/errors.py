"""What S3 says to each error of the tree. Pure.

A class stands for itself and for subclasses that are not in the table.
"""

from typing import Final

from couchestord import errors

INTERNAL: Final = ("InternalError", 500)
_UNAVAILABLE: Final = ("ServiceUnavailable", 503)

TABLE: Final[dict[type[errors.Error], tuple[str, int]]] = {
    errors.NoSuchBucket: ("NoSuchBucket", 404),
    errors.NoSuchKey: ("NoSuchKey", 404),
    errors.NoSuchVersion: ("NoSuchVersion", 404),
    errors.NoSuchUpload: ("NoSuchUpload", 404),
    errors.NoSuchUser: ("NoSuchEntity", 404),
    errors.NoSuchAccessKey: ("NoSuchEntity", 404),
    errors.BucketAlreadyExists: ("BucketAlreadyExists", 409),
    errors.BucketAlreadyOwnedByYou: ("BucketAlreadyOwnedByYou", 409),
    errors.BucketNotEmpty: ("BucketNotEmpty", 409),
    errors.NoSuchPolicy: ("NoSuchEntity", 404),
    errors.KeyAlreadyExists: ("EntityAlreadyExists", 409),
    errors.PolicyAlreadyExists: ("EntityAlreadyExists", 409),
    errors.PolicyChanged: ("OperationAborted", 409),
    errors.DiskInUse: ("OperationAborted", 409),
    errors.BucketMounted: ("OperationAborted", 409),
    errors.UserOwnsBuckets: ("DeleteConflict", 409),
    errors.Conflict: ("OperationAborted", 409),
    errors.PreconditionFailed: ("PreconditionFailed", 412),
    errors.NotModified: ("NotModified", 304),
    errors.MethodNotAllowed: ("MethodNotAllowed", 405),
    errors.Invalid: ("InvalidRequest", 400),
    errors.InvalidRequest: ("InvalidRequest", 400),
    errors.InvalidURI: ("InvalidURI", 400),
    errors.InvalidBucketName: ("InvalidBucketName", 400),
    errors.InvalidArgument: ("InvalidArgument", 400),
    errors.KeyTooLong: ("KeyTooLongError", 400),
    errors.MetadataTooLarge: ("MetadataTooLarge", 400),
    errors.InvalidRange: ("InvalidRange", 416),
    errors.InvalidPart: ("InvalidPart", 400),
    errors.InvalidPartOrder: ("InvalidPartOrder", 400),
    errors.EntityTooSmall: ("EntityTooSmall", 400),
    errors.EntityTooLarge: ("EntityTooLarge", 400),
    errors.BadDigest: ("BadDigest", 400),
    errors.InvalidDigest: ("InvalidDigest", 400),
    errors.PayloadHashMismatch: ("XAmzContentSHA256Mismatch", 400),
    errors.IncompleteBody: ("IncompleteBody", 400),
    errors.RequestTimeout: ("RequestTimeout", 400),
    errors.MissingContentLength: ("MissingContentLength", 411),
    errors.MalformedXML: ("MalformedXML", 400),
    errors.NotSupported: ("NotImplemented", 501),
    errors.JournalFull: ("SlowDown", 503),
    errors.ShuttingDown: _UNAVAILABLE,
    errors.WritesStopped: _UNAVAILABLE,
    errors.TooFewDisks: _UNAVAILABLE,
    errors.Unavailable: _UNAVAILABLE,
    errors.NoSpace: ("InsufficientStorage", 507),
    errors.DataLost: INTERNAL,
    errors.JournalDamaged: INTERNAL,
    errors.InternalError: INTERNAL,
    errors.NoSuchEntry: INTERNAL,
    errors.StaleInode: INTERNAL,
    errors.EntryExists: INTERNAL,
    errors.NotADirectory: INTERNAL,
    errors.IsADirectory: INTERNAL,
    errors.DirectoryNotEmpty: INTERNAL,
    errors.IntoItself: INTERNAL,
    errors.AcrossBuckets: INTERNAL,
    errors.NameTooLong: INTERNAL,
    errors.InvalidName: INTERNAL,
    errors.TooManyLinks: INTERNAL,
    errors.NotPermitted: INTERNAL,
    errors.ReadOnlyBucket: INTERNAL,
    errors.NoSuchXattr: INTERNAL,
    errors.XattrExists: INTERNAL,
    errors.XattrTooLarge: INTERNAL,
    errors.FileError: INTERNAL,
    errors.DiskGone: INTERNAL,
    errors.DiskFailed: INTERNAL,
    errors.DiskFull: INTERNAL,
    errors.DiskTimeout: INTERNAL,
    errors.NoSuchFile: INTERNAL,
    errors.DiskError: INTERNAL,
    errors.RemoteUnavailable: INTERNAL,
    errors.RemoteDenied: INTERNAL,
    errors.RemoteRefused: INTERNAL,
    errors.NoSuchBlob: INTERNAL,
    errors.BlobExists: INTERNAL,
    errors.RemoteError: INTERNAL,
    errors.Corrupt: INTERNAL,
    errors.UnknownFormat: INTERNAL,
    errors.ForeignDisk: INTERNAL,
    errors.DiskLocked: INTERNAL,
    errors.NotAStore: INTERNAL,
    errors.StoreExists: INTERNAL,
    errors.ConfigError: INTERNAL,
    errors.Denied: ("AccessDenied", 403),
    errors.AccessDenied: ("AccessDenied", 403),
    errors.InvalidAccessKeyId: ("InvalidAccessKeyId", 403),
    errors.SignatureDoesNotMatch: ("SignatureDoesNotMatch", 403),
    errors.RequestTimeTooSkewed: ("RequestTimeTooSkewed", 403),
    errors.AuthorizationHeaderMalformed: ("AuthorizationHeaderMalformed", 400),
    errors.AuthorizationQueryMalformed: ("AuthorizationQueryParametersError", 400),
}


def s3_code(error: BaseException) -> tuple[str, int]:
    """Code and HTTP status; what is not ours or not in the table is an internal error."""
    for cls in type(error).__mro__:
        answer = TABLE.get(cls)
        if answer is not None:
            return answer
    return INTERNAL


def message(error: BaseException) -> str:
    """What the client may read: nothing about the inside of the store."""
    if isinstance(error, errors.DataLost):
        return (
            "The object cannot be read: more of its shards or copies are missing or damaged than can be made good. "
            "Have the missing disks brought back, then try again; the server's log says which."
        )
    if s3_code(error)[1] in (500, 503):
        return {
            "InternalError": "We encountered an internal error. Please try again.",
            "SlowDown": "Please reduce your request rate.",
        }.get(s3_code(error)[0], "The server cannot answer now. Please try again.")
    return str(error) or s3_code(error)[0]
