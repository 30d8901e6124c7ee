"""Files: what mounts ask of a store, whichever process they are in."""

from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple

import trio

from couchestord.errors import NoSuchBucket, NotADirectory, StaleInode
from couchestord.io import filerequests as fr
from couchestord.io.catalog.files import NamedRow, NodeRow
from couchestord.io.catalog.read import BucketRow
from couchestord.model import Attributes, Body, ObjectInfo
from couchestord.store.filelooks import FileLooks
from couchestord.store.finding import Buckets, find_entry
from couchestord.store.intake import Taken
from couchestord.store.names import shown
from couchestord.store.parts import Parts
from couchestord.store.reader import open_runs
from couchestord.store.xattrs import ETAG, is_of_s3, xattrs_of

SETTLE_S: Final = 10.0
_LOOK_S: Final = 0.05
Change = (
    fr.MakeNode
    | fr.LinkNode
    | fr.UnlinkNode
    | fr.RemoveDirectory
    | fr.RenameNode
    | fr.ChangeInode
    | fr.PublishFile
    | fr.SetXattr
    | fr.FreeOrphans
)


_NOTHING = Attributes()


class Shown(NamedTuple):
    """An entry of a directory as a mount shows it."""

    name: bytes
    row: NamedRow


class Files:
    """The tree of a store as directories and files, by their numbers.

    What changes something returns once the change is durable and visible; what looks does not wait. Belongs to one trio
    loop. Errors are those of `couchestord.errors`.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._catalog = parts.catalog
        self._buckets = Buckets(parts.catalog.files, parts.catalog.generations)
        self._looks = FileLooks(parts.catalog, parts.reader_parts)

    def root(self, bucket: str) -> int:
        """Number of the directory that a bucket is. Raises NoSuchBucket."""
        return self._bucket(bucket).root

    def buckets(self) -> list[tuple[bytes, int]]:
        """Names of all buckets, and the numbers of the directories that they are."""
        self._catalog.refresh()
        return [(row.name.encode(), row.root) for row in self._catalog.reading.buckets()]

    def _bucket(self, name: str) -> BucketRow:
        self._catalog.refresh()
        row = self._catalog.reading.bucket(name)
        if row is None:
            raise NoSuchBucket(f"there is no bucket {name!r}")
        return row

    @property
    def version(self) -> int:
        """Grows with each change that is seen here."""
        self._catalog.refresh()
        return self._catalog.version

    @property
    def sequence(self) -> int:
        """Of a record that was committed. What is asked for from now on comes behind it."""
        return self._catalog.sequence

    def lookup(self, directory: int, name: bytes) -> NodeRow | None:
        """What a directory shows under a name, None when it shows nothing."""
        self._catalog.refresh()
        found = find_entry(self._catalog.files, directory, name)
        return found.node if found else None

    def node(self, id_: int) -> NodeRow:
        """Raises StaleInode."""
        self._catalog.refresh()
        found = self._catalog.files.node(id_)
        if found is None:
            raise StaleInode(f"file or directory {id_} is gone")
        return found

    def names(self, id_: int) -> list[tuple[int, bytes]]:
        """(directory, name in the tree) of all entries that name a file, and of versions that it is."""
        self._catalog.refresh()
        return self._catalog.files.names(id_)

    def parent(self, directory: int) -> int:
        """The directory that a directory lies in; itself for the root of a bucket. Raises StaleInode."""
        self._catalog.refresh()
        found = self._catalog.files.directory(directory)
        if found is None:
            raise StaleInode(f"directory {directory} is gone")
        return found[0] or directory

    def name_of(self, directory: int, number: int) -> bytes | None:
        """The tree's name of the entry that has that number; None when it is gone, a hard link, or was renamed."""
        self._catalog.refresh()
        files = self._catalog.files
        place = files.directory(number) or files.place(number)
        if place is None or place[0] != directory:
            return None
        # one that was given another name, or whose place another took, has another number
        return next((row.name for row in files.named(directory, (place[1],)) if row.cookie == number), None)

    def entries(self, directory: int, after: bytes | None, limit: int) -> list[Shown]:
        """Entries of a directory in order of the tree's names, those after that one. Raises NotADirectory."""
        self._catalog.refresh()
        files = self._catalog.files
        if files.directory(directory) is None:
            raise NotADirectory(f"{directory} is no directory")
        return [
            Shown(shown(row.name, row.cookie, has_twin=has_twin), row)
            for row, has_twin in files.entries(directory, after, limit)
        ]

    def xattr(self, id_: int, name: bytes) -> bytes | None:
        """The value of an extended attribute, of one that S3 has given it too; None when there is none."""
        self._catalog.refresh()
        return self._of_s3(id_).get(name) if is_of_s3(name) else self._catalog.files.xattr(id_, name)

    def xattrs(self, id_: int) -> list[bytes]:
        """Names of the extended attributes of a file or directory, but for its etag."""
        self._catalog.refresh()
        own = [name for name, _ in self._catalog.files.xattrs(id_)]
        return own + [name for name in self._of_s3(id_) if name != ETAG]

    def _of_s3(self, id_: int) -> dict[bytes, bytes]:
        found = self._catalog.files.object(id_)
        return xattrs_of(found) if found else {}

    async def change(self, request: Change) -> NodeRow | None:
        """See the requests for what they answer and raise."""
        answer: NodeRow | None = await self._parts.submit(request)
        return answer

    async def make_spill(self) -> int:
        """See `MakeSpill`."""
        id_: int = await self._parts.submit(fr.MakeSpill())
        return id_

    def take(self, body: Body, size: int, policy: int, *, inlined: bool = True) -> AbstractAsyncContextManager[Taken]:
        """Bytes of a file that are durable, until the context ends, in which they are to be published. Their MD5 is not
        known: the etag of a file is none. See `Intake.take`.
        """
        return self._parts.intake.take(body, size, policy, hashed=False, inlined=inlined)

    def policy_of(self, id_: int) -> int:
        """See `Buckets.policy_of`."""
        self._catalog.refresh()
        return self._buckets.policy_of(id_)

    async def settle(self, id_: int) -> None:
        """Before more of a file is published: while it is overrun with pieces it waits for the job that joins them, but
        not for long.
        """
        with trio.move_on_after(SETTLE_S):
            while self._is_overrun(id_):
                await trio.sleep(_LOOK_S)

    def _is_overrun(self, id_: int) -> bool:
        self._catalog.refresh()
        row = self._catalog.files.worn(id_)
        return row is not None and row.is_overrun

    async def read(self, id_: int, first: int, length: int) -> bytes:
        """At most `length` bytes of a file as it was published last, fewer at its end. Raises StaleInode, DataLost."""
        return bytes(await self.lend(id_, first, length))

    async def lend(self, id_: int, first: int, length: int) -> bytes | memoryview:
        """As `read`, at less cost: what it answers is good until the caller awaits anything, or reads here again."""
        look, runs = self._looks.find(id_, first, length)
        found = self._looks.lend(runs)
        if found is not None:
            return found
        found = await self._looks.look_again(id_, first, length)
        if found is not None:
            return found
        look, runs = self._looks.find(id_, first, length)
        # errors name it
        info = ObjectInfo("", b"file %d" % id_, look.size, "", 0, _NOTHING)
        length = sum([run.length for run in runs])
        async with open_runs(self._catalog.reading, self._parts.reader_parts, info, first, length, runs) as reader:
            return b"".join([piece async for piece in reader])
