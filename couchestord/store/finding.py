"""Entries by the names that a mount shows, and what is known of files by where they are."""

from typing import Final

from couchestord.io.catalog.files import BucketOfFiles, FileReader, NamedRow
from couchestord.io.catalog.generations import Generations
from couchestord.store.names import escaped, is_plain, shown

ROOTS_KEPT_MAX: Final = 16_384


def find_entry(files: FileReader, directory: int, name: bytes) -> NamedRow | None:
    """What a directory shows under a name, None when it shows nothing."""
    id_ = escaped(name)
    if id_ is None:
        if not is_plain(name):
            return None
        found = files.named(directory, (name, name + b"/"))
        # of an object and a directory of the same name the directory is shown
        return max(found, key=lambda row: len(row.name), default=None)
    place = files.directory(id_) or files.place(id_)
    candidates = files.named(directory, (place[1],)) if place is not None and place[0] == directory else []
    if not any(row.cookie == id_ for row in candidates):
        # a hard link has a number that leads nowhere else
        candidates = files.of_cookie(directory, id_)
    return next((row for row in candidates if row.cookie == id_ and shown_as(files, directory, row) == name), None)


class Buckets:
    """Of which bucket each directory is: looked up once, as long as no path leads elsewhere."""

    def __init__(self, files: FileReader, generations: Generations) -> None:
        """`generations`: of what `files` reads."""
        self._files = files
        self._generations = generations
        self._roots: dict[int, int] = {}
        self._stamp = -1

    def root_of(self, directory: int) -> int:
        """The root of the bucket that a directory is of. Raises StaleInode when it is gone."""
        stamp = self._generations.stamp_of_paths()
        if self._stamp != stamp or len(self._roots) > ROOTS_KEPT_MAX:
            self._roots.clear()
            self._stamp = stamp
        root = self._roots.get(directory)
        if root is None:
            root = self._files.path_up(directory)[-1]
            if self._generations.is_current():
                self._roots[directory] = root
        return root

    def of(self, directory: int) -> BucketOfFiles | None:
        """The bucket that a directory is of, None when that is gone. Raises StaleInode."""
        return self._files.bucket(self.root_of(directory))

    def policy_of(self, inode: int) -> int:
        """What new bytes of a file are kept under: as its bucket says. Raises StaleInode."""
        place = self._files.place(inode)
        bucket = self.of(place[0]) if place is not None else None
        return bucket.policy if bucket is not None else 0  # without a name it is of no bucket


def shown_as(files: FileReader, directory: int, row: NamedRow) -> bytes:
    """What an entry is called."""
    has_twin = not row.node.is_directory and bool(files.named(directory, (row.name + b"/",)))
    return shown(row.name, row.cookie, has_twin=has_twin)
