"""What a catalog says when the disks are gone that it speaks of: what lies in blobs is there, all else is lost."""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from couchestord.errors import Corrupt
from couchestord.io import mutations as mu
from couchestord.io.catalog.blobrows import STATE_CONFIRMED
from couchestord.io.sqlite import Connection

IDS_SKIPPED: Final = 1 << 32
"""So many ids are never given again: those of records that came after what is known may be known to clients."""
_CONTENTS = (
    "(select distinct (select c.id from content c where c.id<=x.id order by c.id desc limit 1) "
    f"from extent x where x.segment={mu.LOST})"
)
_INODES = f"(select inode from piece where content in {_CONTENTS})"
_LOST_OBJECTS = (
    f"select directory, name, 0 from entry where child=0 and (content in {_CONTENTS} "
    f"or (content is null and inode in {_INODES})) union all "
    f"select directory, name, id from version where (flags & 2)=0 and (content in {_CONTENTS} "
    f"or (content is null and id in {_INODES})) order by 1, 2, 3"
)


class LostObject(NamedTuple):
    """An object of which bytes are lost. `version`: 0 for the live one, else the id of a noncurrent one."""

    bucket: str
    key: bytes
    version: int


class Remains(NamedTuple):
    """Extents and their bytes: those that are in blobs, and those that are nowhere."""

    copied_extents: int
    copied_bytes: int
    lost_extents: int
    lost_bytes: int


def lose_disks(connection: Connection, jobs: Iterable[str]) -> None:
    """No segment is there any more, nor a record: extents with a copy lie in its blob only, others are lost.

    `jobs`: those whose state is about the node, which is forgotten. Commits.
    """
    connection.execute("begin immediate")
    connection.execute(
        f"update extent set segment={mu.IN_BLOB}, stripe=copy_blob, stripe_start=copy_start where copy_blob is not null"
    )
    connection.execute(
        f"update extent set segment={mu.LOST}, stripe=0, stripe_start=0 where copy_blob is null and segment<>{mu.LOST}"
    )
    connection.execute("update blob set only_bytes=live_bytes")
    connection.execute("delete from segment")
    connection.executemany("delete from job where name=?", [(name,) for name in jobs])
    connection.execute("update state set next_id=next_id+?", (IDS_SKIPPED,))
    connection.execute("commit")


def remains(connection: Connection) -> Remains:
    """Reads all extents."""
    copied = connection.execute("select count(*), sum(length) from extent where copy_blob is not null").fetchone()
    lost = connection.execute(f"select count(*), sum(length) from extent where segment={mu.LOST}").fetchone()
    return Remains(copied[0], copied[1] or 0, lost[0], lost[1] or 0)


def blobs_needed(connection: Connection) -> list[tuple[int, int]]:
    """(epoch, number) of each blob that something lies in."""
    rows: list[tuple[int, int]] = connection.execute(
        "select epoch, id from blob where state=? and live_bytes>0 order by epoch, id", (STATE_CONFIRMED,)
    ).fetchall()
    return rows


def lost_objects(connection: Connection) -> Iterator[LostObject]:
    """Objects that cannot be read whole, by directory and name. Looks at every object when anything is lost."""
    if connection.execute(f"select 1 from extent where segment={mu.LOST} limit 1").fetchone() is None:
        return
    at, bucket, path = None, "", b""
    for directory, name, version in connection.execute(_LOST_OBJECTS):
        if directory != at:
            at, (bucket, path) = directory, _path(connection, directory)
        yield LostObject(bucket, path + name, version)


def lost_parts_count(connection: Connection) -> int:
    """Parts of uploads under way that cannot be read whole."""
    lost = {content for (content,) in connection.execute(f"select * from {_CONTENTS}")}
    parts = connection.execute("select pieces from part") if lost else ()
    return sum(any(piece.content in lost for piece in mu.decode_pieces(pieces)) for (pieces,) in parts)


def _path(connection: Connection, directory: int) -> tuple[str, bytes]:
    """(bucket, the part of the key up to the name) of what lies in a directory."""
    parts: list[bytes] = []
    while True:
        row = connection.execute("select parent, name from directory where id=?", (directory,)).fetchone()
        if row is None:
            raise Corrupt(f"directory {directory} does not exist")
        if not row[0]:
            break
        directory = row[0]
        parts.append(row[1])
    bucket = connection.execute("select name from bucket where root=?", (directory,)).fetchone()
    if bucket is None:
        raise Corrupt(f"no bucket has the root {directory}")
    return bucket[0], b"".join(reversed(parts))
