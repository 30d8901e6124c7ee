"""Entries by the names that a mount shows, and what is known of files by where they are."""

from couchestord.io.catalog.files import FileReader, NamedRow
from couchestord.store.names import escaped, is_plain, shown


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


def policy_of(files: FileReader, inode: int) -> int:
    """What new bytes of a file are kept under: as its bucket says. Raises StaleInode."""
    place = files.place(inode)
    bucket = files.bucket(files.path_up(place[0])[-1]) if place is not None else None
    return bucket.policy if bucket is not None else 0  # without a name it is of no bucket


def shown_as(files: FileReader, directory: int, row: NamedRow) -> bytes:
    """What an entry is called."""
    has_twin = not row.node.is_directory and bool(files.named(directory, (row.name + b"/",)))
    return shown(row.name, row.cookie, has_twin=has_twin)
