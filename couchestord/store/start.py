"""The start of a store: from disks and perhaps a catalog to a log and a catalog that agree.

The log is the truth. A catalog that is missing, damaged, foreign or ahead of the log is discarded, with a line that
says so, once it is made again from the newest snapshot and the log. One that only lacks room is none of these: the
reserve beside it is given up for it, and when that is not enough it stays as it is and the start fails. Nothing is
served, nor applied to the catalog, before the tail of the log, which may lie on one disk only, lies on enough disks
under a new epoch.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from couchestord import logs
from couchestord.errors import (
    Corrupt,
    DataLost,
    Error,
    InternalError,
    JournalDamaged,
    NoSpace,
    TooFewDisks,
    Unavailable,
    UnknownFormat,
)
from couchestord.io.catalog.catalog import Catalog, put_in_place, remove
from couchestord.io.catalog.pages import checkpoint_with_sums
from couchestord.io.catalog.reserve import Reserve
from couchestord.io.disks import Disks, disks_to_spare
from couchestord.io.journal import Journal
from couchestord.io.journalfile import Entry, JournalOptions
from couchestord.io.recovery import Chain, FoundFile, chain, check_torn, scan
from couchestord.io.sqlite import is_full, may_pass
from couchestord.store.replay import follows_log, replay
from couchestord.store.writer import CATALOG_ROOM_BYTES_MIN

log = logs.get(__name__)
EXTENTS_COUNTED_MAX = 1 << 20

Restore = Callable[[Path], Awaitable[bool]]
"""Writes the newest snapshot to a path; False when there is none. Raises DataLost when it cannot be read."""


@dataclass(frozen=True, slots=True)
class Started:
    catalog: Catalog
    journal: Journal
    chain: Chain
    rebuilt: str | None
    """Why the catalog was made again, None when it was kept."""
    replayed_count: int
    read_only: TooFewDisks | NoSpace | None
    """Why nothing may be written until the next start, None when it may."""


@contextmanager
def told_by_its_file_system(catalog_path: Path) -> Iterator[None]:
    """Turns what the file system of the catalog refuses into Unavailable: it is no fault of the program's."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"the catalog in {catalog_path.parent} cannot be opened: {error}") from error


async def start(
    disks: Disks, catalog_path: Path, options: JournalOptions, restore: Restore, verify: Callable[[Path], None]
) -> Started:
    """Bring log and catalog together. `verify` raises Corrupt for a catalog file that rotted.

    With more than m disks missing the log may end on those: what is here is served, and nothing is written. Disks that
    are here and were away when the log was written last are counted among them. So it is when there is no room to renew
    the tail of the log, or so many disks refuse to be written that no epoch can be taken.

    Raises JournalDamaged when acknowledged records are on no disk that is here and the catalog does not hold what they
    said; NoSpace when the file system of the catalog is full, which stays as it is, Unavailable when it refuses what a
    start needs; TooFewDisks when more than m disks are missing and the catalog too; ForeignDisk when two parts of the
    store were written apart; UnknownFormat for files of a newer program.
    """
    with told_by_its_file_system(catalog_path):
        found = await scan(disks)
        check_torn(disks, found)
        _note_behind(disks, found)
        indexed = any(file.indexed for file in found)
        try:
            return await _start(disks, catalog_path, options, restore, verify, chain(found))
        except DataLost as error:
            if not indexed:
                raise
            log.warning("the indexes of the journal promise what is not there: it is read whole", reason=str(error))
        return await _start(disks, catalog_path, options, restore, verify, chain(await scan(disks, indexed=False)))


async def _start(
    disks: Disks,
    catalog_path: Path,
    options: JournalOptions,
    restore: Restore,
    verify: Callable[[Path], None],
    log_chain: Chain,
) -> Started:
    journal = Journal(disks, options, log_chain)
    await journal.spares.look()
    catalog, rebuilt = await _find_catalog(disks, catalog_path, journal, log_chain, restore, verify)
    try:
        _check_reach(disks, catalog, log_chain)
        read_only: TooFewDisks | NoSpace | None = _too_few(disks)
        if read_only is None:
            try:
                await disks.take_epoch()
                journal.epoch_taken()
                # first: a catalog must never hold what the loss of a disk can undo
                await _renew_tail(disks, catalog, journal, log_chain)
            except (NoSpace, TooFewDisks) as error:
                read_only = _refused(error)
                # the records that were to be repeated still count; disks may have been given up meanwhile
                end, log_chain = log_chain.end, chain(await scan(disks))
                if max(log_chain.end, catalog.applier.sequence + 1) < end:
                    raise
                journal = Journal(disks, options, log_chain)
                _check_reach(disks, catalog, log_chain)
        try:
            replayed = await _bring_up(catalog, journal)
        except Exception as error:
            if rebuilt or (isinstance(error, Error) and not isinstance(error, Corrupt)):
                raise
            # its rows contradict the log, and the log is the truth
            catalog.close()
            rebuilt = f"the log could not be applied to it: {error!r}"
            catalog = await _make_anew(disks, catalog_path, log_chain, restore, rebuilt)
            replayed = await _bring_up(catalog, journal)
        if read_only is None:
            spare = [disks_to_spare(k, m, disks.count) for k, m in catalog.reading.geometries()]
            try:
                if await disks.set_m(max(spare), lower=True):
                    journal.roll()
            except TooFewDisks as error:
                read_only = _refused(error)
        await _keep_what_only_the_catalog_knows(disks, catalog, journal)
    except BaseException:
        catalog.close()
        raise
    if rebuilt:
        log.warning("catalog rebuilt from the log", reason=rebuilt, records=replayed, sequence=catalog.applier.sequence)
    elif replayed:
        log.info("catalog was behind the log", records=replayed, sequence=catalog.applier.sequence)
    if read_only is not None:
        log.error("the store is read only", reason=str(read_only))
    return Started(catalog, journal, log_chain, rebuilt, replayed, read_only)


def _note_behind(disks: Disks, found: Sequence[FoundFile]) -> None:
    """A disk that knows of no epoch as new as the others told it is empty, or an old copy: the end of the log is not on
    it. But for an epoch of which there is no file: a start that took it was cut off, perhaps before that disk knew.
    """
    newest = max((file.epoch for file in found), default=0)
    disks.note_away(index for index, epoch in disks.stale.items() if epoch < min(newest, disks.epoch_known(index)))


def _too_few(disks: Disks) -> TooFewDisks | None:
    """Why nothing may be written: every copy of the end of the log may lie on disks that are missing.

    There are as many as outlive the loss of m disks, those counted among them that were away when it was written.
    """
    away = set(disks.slot.away) - disks.failures.keys()
    if not disks.failures or disks.missing_count() + len(away) <= disks.m:
        return None
    others = f", {len(away)} of the others when the log was written last" if away else ""
    return TooFewDisks(
        f"{disks.missing_count()} of {disks.count} disks were missing at the start{others}, more than {disks.m}, "
        "and the log may end on them: bring them back"
    )


def _refused(error: NoSpace | TooFewDisks) -> NoSpace | TooFewDisks:
    if isinstance(error, NoSpace):
        return NoSpace(f"the disks were full at the start, and no log can be begun: {error}")
    return TooFewDisks(f"too many disks refused to be written at the start: {error}")


async def _find_catalog(
    disks: Disks, path: Path, journal: Journal, log_chain: Chain, restore: Restore, verify: Callable[[Path], None]
) -> tuple[Catalog, str | None]:
    with suppress(OSError):
        remove(_beside(path))  # what a repair or a start that was cut off has left; it does no harm
    reason = "there was none" if not path.exists() else ""
    if not reason:
        try:
            verify(path)
            catalog = _open(path)
        except UnknownFormat:
            raise
        except Corrupt as error:
            reason = f"it was damaged: {error}"
        else:
            try:
                reason = await _judge(disks, catalog, journal, log_chain)
            except Corrupt as error:
                reason = f"it was damaged: {error}"
            if not reason:
                return catalog, None
            catalog.close()
    catalog = await _make_anew(disks, path, log_chain, restore, reason)
    return catalog, None if not log_chain.files and reason == "there was none" else reason


async def _make_anew(disks: Disks, path: Path, log_chain: Chain, restore: Restore, reason: str) -> Catalog:
    """Take the newest snapshot, or begin with nothing, and set aside what lies at `path` if the log goes on from there.

    What is there may be all there will ever be: it stays when nothing can be made in its place.
    """
    if why := _too_few(disks):
        raise TooFewDisks(f"the catalog cannot be used ({reason}), nor made again: {why}")
    made = _beside(path)
    while True:
        try:
            remove(made)
            if not await restore(made):
                Catalog.create(made, disks.store_id, disks.default_policy)
            with closing(Catalog(made)) as catalog:
                _check_reach(disks, catalog, log_chain)
            if path.exists():
                log.error("catalog discarded", path=str(path), reason=reason)
            put_in_place(made, path)
            break
        except Exception as error:
            if not _made_room(path, error):
                raise
        finally:
            with suppress(OSError):
                remove(made)
    return _open(path)


def _beside(path: Path) -> Path:
    """Where a catalog is made that is to take the place of the one at `path`."""
    return Path(f"{path}.new")


def _open(path: Path) -> Catalog:
    while True:
        try:
            return Catalog(path)
        except Exception as error:
            if not _made_room(path, error):
                raise


async def _bring_up(catalog: Catalog, journal: Journal) -> int:
    """Apply what the catalog lacks of the log; how many records. Raises as `replay` does, and NoSpace."""
    before = catalog.applier.sequence
    failed = False
    while True:
        try:
            if failed:
                catalog.reopen_writer()
            await replay(catalog, journal)
            return catalog.applier.sequence - before
        except Exception as error:
            if not _made_room(catalog.path, error):
                raise
            failed = True


def _made_room(path: Path, error: Exception) -> bool:
    """True when `error` may have been for want of room beside the catalog, and the reserve is given up for it: try
    again. False when it was something else. Raises NoSpace when it was room, and there is no reserve any more.
    """
    if not may_pass(error):
        return False
    reserve = Reserve(path, 0)
    if reserve.free():
        log.warning("the reserve of the catalog is given up for the start", reason=str(error))
        return True
    left_bytes = reserve.free_bytes()
    if not is_full(error) and left_bytes >= CATALOG_ROOM_BYTES_MIN:
        return False
    raise NoSpace(
        f"the file system of the catalog is full: {left_bytes >> 10} KiB are left in {path.parent}. "
        f"Make room there and start again; the catalog is kept. ({error})"
    ) from error


async def _judge(disks: Disks, catalog: Catalog, journal: Journal, log_chain: Chain) -> str:
    """Why the catalog cannot be used, empty when it can."""
    applier = catalog.applier
    if applier.store_id != disks.store_id:
        return "it belongs to another store"
    if catalog.main_file_sequence() > applier.sequence:
        return "its WAL is damaged or an older one"
    ends = [high for _, high in log_chain.damage if high > applier.sequence + 1]
    if ends and disks.slot.snapshot is not None and disks.slot.snapshot.sequence + 1 >= max(ends):
        return f"it ends at {applier.sequence}, before a gap in the log that the snapshot does not need"
    if not log_chain.files and applier.sequence == disks.identity.log_after:
        return ""
    if applier.sequence and applier.sequence >= log_chain.end:
        return _judge_ahead(disks, catalog, log_chain)
    if log_chain.files and applier.sequence + 1 < log_chain.files[0].first:
        return f"it ends at {applier.sequence}, before the log begins at {log_chain.files[0].first}"
    if not await follows_log(catalog, journal):
        return f"it took another course than the log at {applier.sequence}"
    return ""


def _judge_ahead(disks: Disks, catalog: Catalog, log_chain: Chain) -> str:
    """Why a catalog that ends behind the log cannot be used, empty when it can: the log has lost its end."""
    sequence = catalog.applier.sequence
    if _too_few(disks):
        why = "it may end on disks that are missing"
    elif log_chain.reach > log_chain.end or log_chain.ends_in_rest:
        why = "the end of the log is damaged on every disk that is here"
    elif max((file.epoch for file in log_chain.files), default=0) < disks.epoch:
        # who took an epoch and had anything applied to the catalog since began a file in it
        why = "the files that the log ended in are on no disk that is here"
    else:
        return f"it is ahead of the disks: it ends at {sequence}, the log at {log_chain.end - 1}"
    lost = [row for row in catalog.reading.extents_in_journal(0, EXTENTS_COUNTED_MAX) if row.stripe >= log_chain.end]
    log.error(
        "the catalog is kept: it knows more than the log",
        reason=why,
        log_ends_at=log_chain.end - 1,
        catalog_ends_at=sequence,
        bodies_lost=len(lost),
    )
    return ""


def _check_reach(disks: Disks, catalog: Catalog, log_chain: Chain) -> None:
    """The log must go on where the catalog ends, without a gap."""
    after = catalog.applier.sequence + 1
    if after <= disks.identity.log_after:
        raise JournalDamaged(
            f"the store was made anew from what it had published, and the catalog that was fetched, which ends at "
            f"{disks.identity.log_after}, is not here: put it back, or let `couchestord recover --from-l3` end"
        )
    if log_chain.files and log_chain.files[0].first > after:
        raise JournalDamaged(
            f"records {after} to {log_chain.files[0].first - 1} are on no disk that is here "
            f"({disks.missing_count()} of {disks.count} disks are missing). Bring the missing disks back."
        )
    for low, high in log_chain.damage:
        if high > after:
            raise JournalDamaged(
                f"acknowledged records {max(low, after)} to {high - 1} are damaged or missing on every "
                f"disk that is here "
                f"({disks.missing_count()} of {disks.count} disks are missing). Bring the missing disks back."
            )
        log.error("records are gone whose outcome the catalog holds", first=low, last=high - 1)


async def _renew_tail(disks: Disks, catalog: Catalog, journal: Journal, log_chain: Chain) -> None:
    """Append the last group again under the new epoch: it may lie on too few disks, or only in their caches."""
    if not log_chain.files or log_chain.end - 1 < catalog.applier.sequence:
        return
    first = log_chain.files[-1].groups[-1]
    entries = [Entry(bytes(meta), body, body_sum) async for _, meta, body, body_sum in journal.records(first)]
    if first + len(entries) != log_chain.end:
        raise InternalError(
            f"the tail of the log is {len(entries)} records from {first}, not up to {log_chain.end - 1}"
        )
    await journal.renew(first, entries)
    log.info("log renewed", first=first, records=len(entries), epoch=disks.epoch)


async def _keep_what_only_the_catalog_knows(disks: Disks, catalog: Catalog, journal: Journal) -> None:
    """Sync the catalog when the log could not make it again. The snapshot that is taken soon ends this state."""
    snapshot = disks.slot.snapshot.sequence if disks.slot.snapshot else 0
    if not journal.is_unbroken(snapshot + 1, catalog.applier.sequence):
        while True:
            try:
                await trio.to_thread.run_sync(checkpoint_with_sums, catalog.main)
                return
            except (Corrupt, OSError) as error:
                if not _made_room(catalog.path, error):
                    raise
