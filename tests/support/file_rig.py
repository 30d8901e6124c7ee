"""Files of a small store, made and written as a mount does it."""

import stat

from couchestord.frontends.posix.drafts import Draft
from couchestord.frontends.posix.publishing import publish
from couchestord.io import filerequests as fr
from couchestord.io.catalog.files import NodeRow
from couchestord.store import Objects


async def make(store: Objects, name: bytes, mode: int = stat.S_IFREG | 0o600, directory: int | None = None) -> int:
    """Number of a new file, directory, ... in the root of the bucket `box`, unless said otherwise."""
    at = store.files.root("box") if directory is None else directory
    node = await store.files.change(fr.MakeNode(at, name, mode, 0, 0))
    assert node is not None
    return node.id


async def write(store: Objects, id_: int, *parts: tuple[int, bytes], cut: int | None = None) -> None:
    """Publish bytes of a file that is cut to `cut` first."""
    draft = Draft(store.files.node(id_).size)
    if cut is not None:
        draft.truncate(cut, 1)
    for offset, data in parts:
        draft.write(offset, data, 2)
    await publish(store.files, id_, draft)


def there(store: Objects, name: bytes, directory: int | None = None) -> NodeRow:
    """What a directory, else the root of the bucket `box`, shows under a name."""
    found = store.files.lookup(store.files.root("box") if directory is None else directory, name)
    assert found is not None
    return found


def laid(*parts: tuple[int, bytes], over: bytes = b"") -> bytes:
    """What a file has once these were written."""
    found = bytearray(over)
    for offset, data in parts:
        found.extend(bytes(max(0, offset - len(found))))
        found[offset : offset + len(data)] = data
    return bytes(found)
