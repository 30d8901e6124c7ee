"""What every decision works from."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from couchestord.clock import Clock
from couchestord.errors import AccessDenied, NoSuchBucket, NoSuchKey, NoSuchVersion, Unavailable
from couchestord.io.catalog.accounts import AccountReader
from couchestord.io.catalog.apply import ENTRY_VERSIONED, Applier
from couchestord.io.catalog.blobrows import STATE_CONFIRMED
from couchestord.io.catalog.copies import CopyReader
from couchestord.io.catalog.read import BucketRow, CatalogReader, EntryRow
from couchestord.io.keys import split_key
from couchestord.io.mutations import AnyOutcome, Extent, MadeDirectory
from couchestord.store.mounts import Mounts
from couchestord.store.values import key_words, object_of_directory, parse_version_id


class Decision(NamedTuple):
    """An outcome (None: nothing changes) and what the caller is answered once it is durable."""

    outcome: AnyOutcome | None
    answer: Any = None
    body: bytes = b""
    body_sum: int | None = None


class Place(NamedTuple):
    """Where a key is, or will be: its directory, the directories to be made on the way, its name, the first free id."""

    directory: int
    made: tuple[MadeDirectory, ...]
    name: bytes
    next_id: int


class Context:
    """The writer's view of the catalog, and where time, randomness and the epoch come from."""

    def __init__(
        self,
        reader: CatalogReader,
        accounts: AccountReader,
        copies: CopyReader,
        applier: Applier,
        clock: Clock,
        epoch: Callable[[], int],
        mounts: Mounts,
    ) -> None:
        self.reader = reader
        self.accounts = accounts
        self.copies = copies
        self.applier = applier
        self.clock = clock
        self.epoch = epoch
        self.mounts = mounts

    def bucket(self, name: str, owner: str | None = None) -> BucketRow:
        """Raises NoSuchBucket, and AccessDenied when it must belong to an owner and does not."""
        row = self.reader.bucket(name)
        if row is None:
            raise NoSuchBucket(f"there is no bucket {name!r}")
        if owner is not None and row.owner != owner:
            raise AccessDenied(f"bucket {name!r} does not belong to {owner!r}")
        return row

    def find(self, root: int, key: bytes) -> tuple[int | None, bytes]:
        """(id of the key's directory or None, name)."""
        parts, name = split_key(key)
        return self.reader.directory(root, parts), name

    def place(self, root: int, key: bytes) -> Place:
        """Where a key goes, with the directories that are missing."""
        parts, name = split_key(key)
        next_id = self.applier.next_id
        found = self.reader.directory(root, parts)
        if found is not None:
            return Place(found, (), name, next_id)
        made: list[MadeDirectory] = []
        at = root
        for part in parts:
            child = None if made else self.reader.child(at, part)
            if child is None:
                made.append(MadeDirectory(next_id, at, part))
                child = next_id
                next_id += 1
            at = child
        return Place(at, tuple(made), name, next_id)

    def check_blobs(self, extents: Iterable[Extent]) -> None:
        """Raises Unavailable when one of them is in a blob that does not count."""
        for extent in extents:
            blob = self.copies.blob(extent.stripe)
            if blob is None or blob.state != STATE_CONFIRMED:
                raise Unavailable(f"blob {extent.stripe} is no longer there for new data: send it again")

    def live(self, place: Place) -> EntryRow | None:
        """The live object at a place. See `find_live`."""
        return None if place.made else find_live(self.reader, place.directory, place.name)

    def version(self, bucket: BucketRow, key: bytes, version_id: str | None) -> tuple[int, bytes, EntryRow]:
        """(directory, name, row) of the live object or of one version. Raises NoSuchKey, NoSuchVersion."""
        return find_version(self.reader, bucket, key, version_id)


def find_live(reader: CatalogReader, directory: int, name: bytes) -> EntryRow | None:
    """The live object of that name. An empty directory is one, too, of the empty name: its inode is the directory."""
    live = reader.entry(directory, name)
    if live is None and not name:
        empty = reader.empty_directory(directory)
        return object_of_directory(empty) if empty is not None else None
    return live


def find_version(
    reader: CatalogReader, bucket: BucketRow, key: bytes, version_id: str | None
) -> tuple[int, bytes, EntryRow]:
    """(directory, name, row) of the live object or of one version of a key. Raises NoSuchKey, NoSuchVersion."""
    parts, name = split_key(key)
    directory = reader.directory(bucket.root, parts)
    live = find_live(reader, directory, name) if directory is not None else None
    if directory is None or (version_id is None and live is None):
        if version_id is not None:
            raise NoSuchVersion(f"there is no version {version_id!r} of {key_words(key)}")
        raise NoSuchKey(f"there is no key {key_words(key)} in bucket {bucket.name!r}")
    if version_id is None:
        assert live is not None
        return directory, name, live
    id_ = parse_version_id(version_id)
    candidates = ([live] if live else []) + reader.versions(directory, name)
    for row in candidates:
        has_own_id = bool(row.flags & ENTRY_VERSIONED)
        if has_own_id == (id_ is not None) and id_ in (None, row.inode):
            return directory, name, row
    raise NoSuchVersion(f"there is no version {version_id!r} of {key_words(key)}")
