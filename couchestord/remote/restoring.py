"""The catalog of a lost node, as its store published it."""

import os
from collections.abc import Callable
from pathlib import Path

import trio

from couchestord import logs
from couchestord.errors import Corrupt, NoSuchBlob, NotAStore
from couchestord.remote.root import Root
from couchestord.remote.roots import Roots

log = logs.get(__name__)

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


async def fetch_catalog(roots: Roots, path: Path, report: Report) -> Root:
    """Write the newest catalog whose root and pieces are whole to `path`, synced, mode 0600; answers the root.

    A root without pieces makes an empty file. Raises NotAStore when there is no root at all, Corrupt when none is
    whole, UnknownFormat when a newer program wrote the newest one, RemoteError, OSError.
    """
    names = await roots.names()
    if not names:
        raise NotAStore("this store has published no catalog there")
    for name in names:
        try:
            root = await roots.read_root(name)
            await _write(roots, root, path, report)
        except (Corrupt, NoSuchBlob) as error:
            log.error("a catalog in the backend is not whole; an older one is tried", root=name.key, reason=str(error))
            continue
        return root
    raise Corrupt(f"none of the {len(names)} catalogs that the store has published is whole")


async def _write(roots: Roots, root: Root, path: Path, report: Report) -> None:
    size_bytes = 0
    async with await trio.open_file(path, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        for number, digest in enumerate(root.pieces):
            report("catalog", number, len(root.pieces))
            piece = await roots.read_piece(digest)
            await file.write(piece)
            size_bytes += len(piece)
        await file.flush()
        await trio.to_thread.run_sync(os.fsync, file.fileno())
    if size_bytes != root.size_bytes:
        raise Corrupt(f"the pieces of {root.name.key} are {size_bytes} bytes, not {root.size_bytes}")
    report("catalog", len(root.pieces), len(root.pieces))
