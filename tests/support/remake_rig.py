"""A store that has put copies, and its catalog, elsewhere; and what a node made anew from there has."""

from pathlib import Path

from memory_backend import MemoryBackend
from publish_rig import QUICK, run
from small_store import HandClock, body_of, core_of, make_store

from couchestord.io import requests as rq
from couchestord.io.mutations import LOST
from couchestord.remote.backend import Backend
from couchestord.remote.blob import BlobPacker
from couchestord.remote.blobs import Blobs
from couchestord.remote.claims import Claim
from couchestord.remote.publisher import Publisher
from couchestord.remote.roots import Roots
from couchestord.store.core import Core
from couchestord.store.door import ObjectStore
from couchestord.store.history import StoreHistory
from couchestord.store.options import StoreOptions
from couchestord.store.reader import ExtentSource

BLOB_BYTES = 200_000


async def copy_all(core: Core, backend: Backend) -> None:
    """What lies in stripes and has no copy gets one."""
    blobs = Blobs(backend, core.disks.store_id)
    waiting = core.catalog.copies.waiting(0, 10_000)
    while waiting:
        packer = BlobPacker(BLOB_BYTES)
        while waiting:
            extent = core.catalog.reading.extent(waiting[0][0])
            assert extent is not None
            segment = core.catalog.reading.segment(extent.segment)
            assert segment is not None
            data = await ExtentSource(core.reader_parts, extent, segment).load(0, extent.length)
            if not packer.add(extent.id, data):
                break
            waiting.pop(0)
        name = blobs.name(core.disks.epoch, await core.submit(rq.BeginBlob(core.disks.epoch)))
        held = await blobs.put(name, packer)
        size = await backend.size(name.key)
        copies = tuple((one.extent, one.offset, one.length) for one in held)
        await core.submit(rq.ConfirmBlob(core.disks.epoch, name.number, size, copies))


async def publish(core: Core, backend: Backend) -> None:
    """All that is committed."""
    claim = Claim(backend, core.disks.store_id, core.disks.epoch)
    history = StoreHistory(core.disks, core.catalog, core.journal, core.stripes, core.pins, core.jobs.snapshotter.ask)
    publisher = Publisher(
        history,
        Roots(backend, core.disks.store_id),
        core.disks.store_id,
        core.disks.epoch,
        history.founding(),
        claim.check,
        HandClock().now_ns,
        QUICK,
    )
    await run(publisher)


class Lost(Exception):
    """Nothing of it is left."""


async def read_copies(store: ObjectStore, backend: Backend, key: bytes, bucket: str = "box") -> bytes:
    """The object from its blobs alone, by what the catalog says. Raises Lost."""
    core = core_of(store)
    row = core.catalog.reading.bucket(bucket)
    assert row is not None
    entry = core.catalog.reading.live(row.root, key)
    assert entry is not None
    pieces = (
        [(entry.content, 0, entry.size)]
        if entry.content is not None
        else [
            (piece.content, piece.content_start, piece.length)
            for piece in core.catalog.reading.pieces(entry.inode, 0, entry.size)
        ]
    )
    blobs = Blobs(backend, core.disks.store_id)
    body = b""
    for content, first, length in pieces:
        assert content is not None
        whole = b""
        for extent in core.catalog.reading.extents(content, 0, first + length):
            if extent.segment == LOST:
                raise Lost(key)
            copy = core.catalog.copies.copy(extent.id)
            assert copy is not None
            assert (extent.segment, extent.stripe, extent.stripe_start) == (1, copy.blob, copy.start)
            name = blobs.name(copy.epoch, copy.blob)
            (held,) = [one for one in await blobs.index(name) if one.extent == extent.id]
            assert (held.offset, held.length) == (copy.start, extent.length)
            whole += await blobs.read(name, held, 0, held.length)
        body += whole[first : first + length]
    return body


async def lose_node(
    path: Path, options: StoreOptions, backend: MemoryBackend, *, later: bool = True
) -> dict[bytes, bytes | None]:
    """A store with objects of all kinds, published in the midst of it; `later`: it went on afterwards. Answers what
    each key should have in a node that is made anew; None: it is lost.
    """
    await make_store(path, options)
    async with ObjectStore.open(path, options) as store:
        core = core_of(store)
        await core.submit(rq.SaveJob("disks", b'{"3": "of a disk that was replaced"}'))
        bodies: dict[bytes, bytes | None] = {}
        for number in range(20):
            bodies[b"a/%d" % number] = body_of(5000, number)
        bodies[b"long"] = body_of(900_000)
        bodies[b"empty"] = b""
        for key, body in bodies.items():
            await store.put("box", key, body or b"")
        await core.destage_all()
        await copy_all(core, backend)
        await store.copy("box", b"copied", "box", b"long")
        bodies[b"copied"] = bodies[b"long"]
        await publish(core, backend)
        # behind the root
        await store.put("box", b"a/4", body_of(6000, "again"))
        await store.delete("box", b"a/5")
        await core.destage_all()
        await copy_all(core, backend)
        bodies[b"a/4"] = body_of(6000, "again")
        del bodies[b"a/5"]
        await store.put("box", b"in stripes", body_of(300_000, 1))
        await store.put("box", b"in the log", b"small")
        bodies |= {b"in stripes": None, b"in the log": None}
        await publish(core, backend)
        if later:
            await store.put("box", b"unknown", b"never published")
            await store.delete("box", b"a/6")
    return bodies
