"""Every error that couchestord raises on purpose, in one tree.

A class names the fact, not the place it was found. Front ends hold one table each that maps a class to what their
protocol says (S3 code and status, errno); a test walks all leaves. The message is for a person: it says what is wrong
and, where there is something to do, what to do.
"""


class Error(Exception):
    """Root of the tree."""


# -- what a caller asked for is not there ------------------------------------------------------------------------


class NotFound(Error):
    """A name leads nowhere."""


class NoSuchBucket(NotFound): ...


class NoSuchKey(NotFound): ...


class NoSuchVersion(NotFound): ...


class NoSuchUpload(NotFound): ...


class NoSuchUser(NotFound): ...


class NoSuchAccessKey(NotFound): ...


class NoSuchPolicy(NotFound): ...


# -- what a caller asked for contradicts what is there --------------------------------------------------------------


class Conflict(Error):
    """The request is well formed, the state of the store forbids it."""


class BucketAlreadyExists(Conflict): ...


class BucketAlreadyOwnedByYou(Conflict): ...


class BucketNotEmpty(Conflict): ...


class KeyAlreadyExists(Conflict):
    """An access key of that id exists."""


class PolicyAlreadyExists(Conflict): ...


class DiskInUse(Conflict):
    """The disk that is to be replaced is here."""


class PolicyChanged(Conflict):
    """The policy was changed meanwhile."""


class BucketMounted(Conflict):
    """A mount shows the bucket, and what is asked for would go behind its back."""


class UserOwnsBuckets(Conflict):
    """The user cannot be removed: whoever took the name later would get its buckets."""


class PreconditionFailed(Conflict):
    """A condition of the request (If-Match and kin) does not hold."""


class NotModified(Conflict):
    """GET or HEAD with If-None-Match or If-Modified-Since: the caller has the present version, of that `etag`."""

    def __init__(self, message: str, etag: str = "") -> None:
        super().__init__(message)
        self.etag = etag


class MethodNotAllowed(Conflict):
    """The version named is a delete marker, or the method does not fit the resource."""


# -- the request itself is wrong ------------------------------------------------------------------------------------


class Invalid(Error):
    """The request is malformed or over a limit."""


class InvalidBucketName(Invalid): ...


class InvalidArgument(Invalid): ...


class KeyTooLong(Invalid): ...


class MetadataTooLarge(Invalid): ...


class InvalidRange(Invalid):
    """The range starts at or after the end. `size_bytes` is the size of the object."""

    def __init__(self, message: str, size_bytes: int) -> None:
        super().__init__(message)
        self.size_bytes = size_bytes


class InvalidPart(Invalid): ...


class InvalidPartOrder(Invalid): ...


class EntityTooSmall(Invalid): ...


class EntityTooLarge(Invalid): ...


class BadDigest(Invalid):
    """The body does not match the checksum that came with it. Nothing was stored."""


class IncompleteBody(Invalid):
    """The body ended before its announced length. Nothing was stored."""


class NotSupported(Invalid):
    """A request that S3 knows and this version does not."""


# -- the store cannot do it now, or at all ----------------------------------------------------------------------------


class Unavailable(Error):
    """The store cannot answer now; the same request may succeed later."""


class JournalFull(Unavailable):
    """Writers outrun destage: retry."""


class ShuttingDown(Unavailable): ...


class WritesStopped(Unavailable):
    """The catalog failed after a commit point; reads go on, writes wait for its repair."""


class TooFewDisks(Unavailable):
    """Fewer good disks than a write needs to keep its promise."""


class NoSpace(Error):
    """The disks are full. Deletes and reads work; delete something, or add a disk."""


class DataLost(Error):
    """More shards or replicas are missing or damaged than the code can make good."""


class JournalDamaged(DataLost):
    """A record that was acknowledged is unreadable on every replica that is here."""


class InternalError(Error):
    """An invariant does not hold. A defect of couchestord: please report it."""


# -- what a file system is asked for cannot be
# -----------------------------------------------------------------------------------------------


class FileError(Error):
    """A file or directory does not allow it."""


class NoSuchEntry(FileError): ...


class StaleInode(FileError):
    """The file or directory is gone."""


class EntryExists(FileError): ...


class NotADirectory(FileError): ...


class IsADirectory(FileError): ...


class DirectoryNotEmpty(FileError): ...


class IntoItself(FileError):
    """A directory cannot be moved to below itself."""


class AcrossBuckets(FileError):
    """An entry stays in its bucket."""


class NameTooLong(FileError): ...


class InvalidName(FileError):
    """The name is kept for what a file system cannot show, or is none."""


class TooManyLinks(FileError): ...


class NotPermitted(FileError):
    """Nobody may do that here."""


class ReadOnlyBucket(FileError):
    """A bucket that keeps versions cannot be changed as files."""


class NoSuchXattr(FileError): ...


class XattrExists(FileError): ...


class XattrTooLarge(FileError):
    """An extended attribute, or all of a file's together, would be over the limit."""


# -- disks and files
# -----------------------------------------------------------------------------------------------------


class DiskError(Error):
    """A call to a disk failed. The store answers with another disk where it can; callers of the store never see
    this.
    """


class DiskFailed(DiskError):
    """The call returned an error (EIO, EROFS, ...), or the disk was given up after one."""


class DiskGone(DiskFailed):
    """The disk as a whole is not there, or was given up: that says nothing of what lies on it."""


class DiskFull(DiskError):
    """No room (ENOSPC, EDQUOT), or the reserve would be touched."""


class DiskTimeout(DiskError):
    """The call did not return before its deadline."""


class NoSuchFile(DiskError):
    """The disk is well, the file is not there."""


# -- the bucket or folder behind the store
# -----------------------------------------------------------------------------------------------


class RemoteError(Error):
    """A call to what keeps data outside this node failed. Callers of the store never see this."""


class RemoteUnavailable(RemoteError):
    """No answer in time, or none that helps, and neither has any of the repeats: later it may succeed."""


class RemoteDenied(RemoteError):
    """The key or its rights are refused. Nothing will succeed until somebody acts."""


class RemoteRefused(RemoteError):
    """The request is understood and refused (no such bucket, no room): the same one will not succeed by itself."""


class NoSuchBlob(RemoteError):
    """The backend is well, nothing is stored under that key."""


class BlobExists(RemoteError):
    """Other bytes are stored under that key. They stay."""


class Corrupt(Error):
    """Bytes fail their checksum or carry another identity than asked for. Never served; another copy is taken."""


class UnknownFormat(Error):
    """Magic or version is not known to this program. The bytes are left untouched."""


class ForeignDisk(Error):
    """The disk belongs to another store, or stands in another's place."""


class DiskLocked(Error):
    """Another process uses the disk."""


class NotAStore(Error):
    """No store lies in that folder."""


class StoreExists(Error):
    """A store lies in that folder already."""


class ConfigError(Error):
    """The configuration cannot be used; names the key."""


# -- who asks
# -------------------------------------------------------------------------------------------------------------


class Denied(Error):
    """The caller may not."""


class AccessDenied(Denied): ...


class InvalidAccessKeyId(Denied): ...


class SignatureDoesNotMatch(Denied): ...


class RequestTimeTooSkewed(Denied): ...


class AuthorizationHeaderMalformed(Denied): ...


class MalformedXML(Invalid): ...


class MissingContentLength(Invalid): ...


class InvalidRequest(Invalid):
    """Parts of the request contradict each other, or one that is required is not there."""


class InvalidURI(Invalid): ...


class InvalidDigest(Invalid):
    """A checksum that came with the body is none: wrong encoding or length."""


class PayloadHashMismatch(Invalid):
    """The body does not have the SHA-256 that its signature covers. Nothing was stored."""


class RequestTimeout(Invalid):
    """The body stopped arriving. Nothing was stored."""


class AuthorizationQueryMalformed(Denied):
    """The signature in a presigned URL is incomplete or contradicts itself."""
