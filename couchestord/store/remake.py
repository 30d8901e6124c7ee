"""A node that is lost, made anew from what its store had put elsewhere: `couchestord recover --from-l3`.

The catalog is fetched, and its log applied, beside where it will lie. What it says of the disks that are gone goes:
what has a copy in a blob lies there now, all else is lost. Then the superblocks are written, on empty disks, with the
sequence that the catalog ends at, and last the catalog gets its name. Cut off before that there is no store that would
start, and another attempt begins anew; after that there is one.
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import msgspec
import trio

from couchestord import logs
from couchestord.clock import Clock
from couchestord.ec.placement import check_policy
from couchestord.errors import ConfigError, Corrupt, InternalError, InvalidArgument, NotAStore, StoreExists
from couchestord.io import mutations as mu
from couchestord.io.catalog import lost
from couchestord.io.catalog.catalog import Catalog, put_in_place, remove
from couchestord.io.catalog.pages import store_sums
from couchestord.io.directory import DirectoryDisk
from couchestord.io.disk import Disk
from couchestord.io.disks import load_disks, read_superblock
from couchestord.io.newdisk import NEW_GENERATIONS, create_store
from couchestord.io.records import record_digest
from couchestord.io.sqlite import is_failure, open_reader, open_writer, sqlite_errors
from couchestord.io.superblock import PATH as SUPERBLOCK
from couchestord.model import Policy
from couchestord.remote.backend import Backend
from couchestord.remote.blobs import Blobs
from couchestord.remote.claims import Claim, newest_epoch
from couchestord.remote.restoring import Report, fetch_catalog
from couchestord.remote.root import Root
from couchestord.remote.roots import Roots, store_ids
from couchestord.store.core import run_core
from couchestord.store.known import JOB as DISKS_JOB
from couchestord.store.ledger import CLAIMS_JOB
from couchestord.store.opening import CATALOG_NAME, NO_CONTENT, STORE_ID_BYTES, disk_folders
from couchestord.store.options import StoreOptions
from couchestord.store.replay import RECORDS_PER_TRANSACTION, bound_wal
from couchestord.store.snapshot import JOB as SNAPSHOT_JOB

log = logs.get(__name__)
LOST_SHOWN_MAX = 1000
_NAMES_SHOWN_MAX = 5
_JOBS_OF_NODE = (SNAPSHOT_JOB, DISKS_JOB, CLAIMS_JOB, "rebuild")


@dataclass(frozen=True, slots=True)
class Remade:
    """What a node was made anew from, and what is lost."""

    store_id: str
    sequence: int
    """The catalog is that after this sequence of the log."""
    replayed_records: int
    published_ns: int
    """When the last of it was put, in ns since 1970: what came later is not known."""
    blobs: int
    missing_blobs: int
    """Blobs that something lies in and that are not in the backend."""
    copied_extents: int
    copied_bytes: int
    lost_extents: int
    lost_bytes: int
    lost_parts: int
    """Of uploads under way."""
    lost_objects: int
    lost_names: tuple[lost.LostObject, ...]
    """The first of them."""


@dataclass(frozen=True, slots=True)
class _Fetched:
    root: Root
    sequence: int
    replayed: int
    published_ns: int


async def remake_store(
    path: Path,
    options: StoreOptions,
    backend: Backend,
    clock: Clock,
    report: Report = lambda what, done, total: None,
    *,
    store_id: bytes | None = None,
) -> Remade:
    """Make the store whose catalog was published to `backend` anew, in the data folder `path`, on empty disks.

    `options` say which disks, as for a new store; k, m and the like are those of the store. `store_id`: which one,
    when several have published there. The epoch that is claimed is newer than any, so a copy of the store that runs
    somewhere stops changing the backend.

    Raises InvalidArgument when a disk is not empty or there are too few, StoreExists when there is a store or a
    catalog, NotAStore when nothing was published, Corrupt when none of it is whole, UnknownFormat, RemoteError,
    ConfigError, DiskError. After each of these, and after a crash, it may be called again.
    """
    catalog = path / CATALOG_NAME
    if catalog.exists():
        raise StoreExists(f"{catalog} is there already: start that store, or move the file away if its disks are lost")
    store_id = await _choose(backend, store_id)
    async with _empty_disks(path, options, store_id) as disks:
        epoch = await _claim(backend, store_id, clock)
        made = Path(f"{catalog}.new")
        try:
            remove(made)
            fetched = await _fetch(Roots(backend, store_id), store_id, made, report)
            policy = await _finish(made, len(disks), options)
            remade = await _look(made, Blobs(backend, store_id), store_id, fetched)
            await _write_superblocks(disks, options, policy, clock, store_id, fetched, epoch)
            put_in_place(made, catalog)
        finally:
            with suppress(OSError):  # what is left of it goes before the next attempt
                remove(made)
        log.warning("a node was made anew", store=store_id.hex(), sequence=fetched.sequence, lost=remade.lost_extents)
        report("snapshot", 0, 1)
        await _take_snapshot(disks, catalog, options, clock)
        report("snapshot", 1, 1)
    return remade


async def _choose(backend: Backend, store_id: bytes | None) -> bytes:
    found = await store_ids(backend)
    if not found:
        raise NotAStore(f"no store has published its catalog in {backend.name}")
    if store_id is None and len(found) > 1:
        raise InvalidArgument(f"several stores are in {backend.name}, name one: {', '.join(i.hex() for i in found)}")
    if store_id is not None and store_id not in found:
        raise NotAStore(f"the store {store_id.hex()} has published no catalog in {backend.name}")
    return store_id or found[0]


# -- disks -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _empty_disks(path: Path, options: StoreOptions, store_id: bytes) -> AsyncIterator[list[Disk]]:
    """The disks, locked, with nothing on them but what an attempt before this one left."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {error.filename}: {error.strerror}") from None
    opened: list[Disk] = []
    left: list[Disk] = []
    try:
        for folder in disk_folders(path, options):
            opened.append(await DirectoryDisk.open(folder, deadline_s=options.disk_deadline_s, create=True))
            if await _check_empty(folder, opened[-1], store_id):
                left.append(opened[-1])
        for disk in left:
            await disk.unlink(SUPERBLOCK)
            await disk.sync_dir("")
        yield opened
    finally:
        for disk in opened:
            disk.close()


async def _check_empty(folder: Path, disk: Disk, store_id: bytes) -> bool:
    """True when it holds the superblock of an attempt that was cut off: nothing was written since, its slots tell.

    Raises StoreExists, InvalidArgument.
    """
    names = set(await trio.to_thread.run_sync(os.listdir, folder)) - NO_CONTENT
    if names == {SUPERBLOCK}:
        try:
            identity, slot = await read_superblock(disk)
        except Corrupt as error:
            raise StoreExists(f"{folder} holds a damaged superblock ({error}); it is not touched") from None
        if identity.store_id == store_id and slot.generation < NEW_GENERATIONS:
            return True
    if SUPERBLOCK in names:
        raise StoreExists(f"{folder} belongs to a store, and is not touched: name empty disks")
    if names:
        shown = ", ".join(sorted(names)[:_NAMES_SHOWN_MAX])
        raise InvalidArgument(f"{folder} is not empty: it holds {shown}")
    return False


async def _claim(backend: Backend, store_id: bytes, clock: Clock) -> int:
    """An epoch above all that the store had there. Whoever had it before may change nothing there from now on."""
    roots = Roots(backend, store_id)
    names = [name.epoch for name in await roots.names()] + [name.epoch for name in await roots.runs()]
    epoch = max([await newest_epoch(backend, store_id), *names]) + 1
    await Claim(backend, store_id, epoch).take(clock.random_bytes)
    return epoch


async def _write_superblocks(
    disks: Sequence[Disk],
    options: StoreOptions,
    policy: Policy,
    clock: Clock,
    store_id: bytes,
    fetched: _Fetched,
    epoch: int,
) -> None:
    if len(options.disk_classes) not in (0, len(disks)):
        raise InvalidArgument(f"there are {len(options.disk_classes)} classes for {len(disks)} disks")
    await create_store(
        disks,
        store_id=store_id,
        disk_ids=[clock.random_bytes(STORE_ID_BYTES) for _ in disks],
        k=policy.k,
        m=policy.m,
        created_ns=fetched.root.founding.created_ns,
        stripe_bytes=policy.stripe_bytes,
        min_healthy_shards=policy.min_healthy_shards,
        shards_per_disk=options.shards_per_disk,
        classes=options.disk_classes,
        log_after=fetched.sequence,
        epoch=epoch,
    )


async def _take_snapshot(disks: Sequence[Disk], catalog: Path, options: StoreOptions, clock: Clock) -> None:
    """The first start: until there is a snapshot, the catalog lies nowhere but in its file."""
    async with run_core(await load_disks(disks), catalog, replace(options, services=False), clock) as core:
        if not await core.jobs.snapshotter.take():
            log.warning("no snapshot of the catalog could be taken yet: the next start takes one")


# -- the catalog -----------------------------------------------------------------------------------------------------


async def _fetch(roots: Roots, store_id: bytes, made: Path, report: Report) -> _Fetched:
    root = await fetch_catalog(roots, made, report)
    if not root.pieces:
        founding = root.founding
        policy = Policy(
            k=founding.k,
            m=founding.m,
            stripe_bytes=founding.stripe_bytes,
            min_healthy_shards=founding.min_healthy_shards,
            created_ns=founding.created_ns,
        )
        Catalog.create(made, store_id, policy)
    with closing(Catalog(made)) as catalog:
        found = (catalog.applier.store_id, catalog.applier.sequence)
        if found != (store_id, root.sequence):
            raise Corrupt(f"{root.name.key} says it is the catalog after {root.sequence}, it is that after {found[1]}")
        published_ns = await _replay(roots, root, catalog, report)
        sequence = catalog.committed_sequence
    return _Fetched(root, sequence, sequence - root.sequence, published_ns)


async def _replay(roots: Roots, root: Root, catalog: Catalog, report: Report) -> int:
    """Apply the log behind the root; answers when the last of it was put. Raises Corrupt when it contradicts itself."""
    published_ns = root.made_ns
    count = 0
    try:
        async with aclosing(roots.entries(root)) as entries:
            async for sequence, entry, made_ns in entries:
                if count % RECORDS_PER_TRANSACTION == 0:
                    if count:
                        catalog.commit()
                        await bound_wal(catalog)
                    report("log", count, 0)
                    catalog.begin()
                catalog.applier.apply(mu.decode(entry.meta), sequence, record_digest(entry.meta, entry.body_sum))
                published_ns = made_ns
                count += 1
        if count:
            catalog.commit()
    except BaseException as error:
        catalog.rollback()
        if isinstance(error, InternalError | msgspec.MsgspecError | TypeError) or is_failure(error):
            raise Corrupt(f"record {catalog.applier.sequence + 1} of the log cannot be applied: {error!r}") from error
        raise
    return published_ns


async def _finish(made: Path, disks_count: int, options: StoreOptions) -> Policy:
    """What it says of disks goes; synced. Answers the default policy, which these disks can hold."""

    def lose() -> None:
        with sqlite_errors(f"changing the catalog {made}"), closing(open_writer(made)) as connection:
            lost.lose_disks(connection, _JOBS_OF_NODE)
        # the last connection left everything in the main file, synced
        store_sums(made)

    await trio.to_thread.run_sync(lose)
    with closing(Catalog(made)) as catalog:
        if catalog.main_file_sequence() != catalog.committed_sequence or catalog.wal_bytes():
            raise Corrupt("the catalog that was fetched could not be checkpointed")
        policy = catalog.accounts.policy(0)
    check_policy(policy, disks_count, options.shards_per_disk)
    return policy


async def _look(made: Path, blobs: Blobs, store_id: bytes, fetched: _Fetched) -> Remade:
    there = {(name.epoch, name.number) for name in await blobs.names()}

    def look() -> Remade:
        with sqlite_errors(f"reading the catalog {made}"), closing(open_reader(made)) as connection:
            remains = lost.remains(connection)
            needed = lost.blobs_needed(connection)
            objects = lost.lost_objects(connection)
            shown = tuple(islice(objects, LOST_SHOWN_MAX))
            return Remade(
                store_id.hex(),
                fetched.sequence,
                fetched.replayed,
                fetched.published_ns,
                len(needed),
                len(set(needed) - there),
                *remains,
                lost.lost_parts_count(connection),
                len(shown) + sum(1 for _ in objects),
                shown,
            )

    return await trio.to_thread.run_sync(look)
