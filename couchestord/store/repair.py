"""The catalog after a failure: opened again and brought up to the log, or made again, while the store runs.

The log is the truth, so nothing that was acknowledged depends on the catalog's file. While it is repaired writes are
refused, and reads go on from what was committed before as long as that is sound.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from couchestord import logs
from couchestord.errors import Corrupt, DataLost, Error, NoSpace
from couchestord.io.catalog.catalog import Catalog, remove
from couchestord.io.catalog.pages import checkpoint_with_sums, verify_open_pages
from couchestord.io.catalog.reserve import Reserve
from couchestord.io.journal import Journal
from couchestord.io.sqlite import is_damage, is_full, may_pass, sqlite_errors
from couchestord.model import Policy
from couchestord.service import Progress
from couchestord.store.maintenance import Checkpointer
from couchestord.store.replay import follows_log, replay
from couchestord.store.writer import CATALOG_ROOM_BYTES_MIN, Writer

log = logs.get(__name__)
REOPENED_MAX = 4
"""Failures to read or write after which the file is given up and made again; one that is full is waited for."""
WELL_S = 60.0
"""A file that was opened anew and did not fail again for so long is well; one that fails that often sooner is not."""
WAIT_S_MIN = 1.0
WAIT_S_MAX = 30.0
"""Between two attempts: doubled with every failure."""


class Repairer:
    """A service: repairs the catalog when the writer knows that it failed; keeps the reserve beside it else."""

    name = "repair"
    interval_s = 1.0

    def __init__(
        self,
        catalog: Catalog,
        journal: Journal,
        writer: Writer,
        checkpointer: Checkpointer,
        restore: Callable[[Path], Awaitable[bool]],
        reserve: Reserve,
        default: Policy,
    ) -> None:
        """`restore` writes the newest snapshot to a path; False when there is none that can be read. `default`: the
        policy that the store began with.
        """
        self._default = default
        self._catalog = catalog
        self._journal = journal
        self._writer = writer
        self._checkpointer = checkpointer
        self._restore = restore
        self._reserve = reserve
        self._failed_count = 0
        self._not_before = 0.0
        self._reopened_count = 0
        self._well_at = 0.0
        self.repaired_count = 0
        self.trouble = ""
        """Why the last attempt failed, or what a next failure would lack; empty when all is well."""

    async def work(self) -> Progress:
        """Repair what is to be repaired, once; after a failure the next attempt waits."""
        if not self._writer.broken_because:
            try:
                self._catalog.check_in_place()
            except Corrupt as error:
                self._writer.fail(error)
        if not self._writer.broken_because:
            if trio.current_time() >= self._well_at:
                self._reopened_count = 0
            kept = await trio.to_thread.run_sync(self._reserve.make, 2 * CATALOG_ROOM_BYTES_MIN)
            self.trouble = "" if kept else "the file system of the catalog has no room for a reserve: make room there"
            return Progress.IDLE
        if trio.current_time() < self._not_before:
            return Progress.IDLE
        try:
            # no checkpoint and no snapshot reads or writes the file meanwhile, and no group is begun
            async with self._checkpointer.away(), self._writer.quiet():
                await self._repair()
        except (Error, OSError) as error:
            self._failed_count += 1
            wait_s = min(WAIT_S_MAX, WAIT_S_MIN * 2 ** min(self._failed_count - 1, 10))
            self._not_before = trio.current_time() + wait_s
            self.trouble = f"repair failed {self._failed_count} times: {error}"
            log.error("catalog was not repaired", reason=str(error), failed=self._failed_count, again_in_s=wait_s)
        return Progress.IDLE

    async def _repair(self) -> None:
        await trio.to_thread.run_sync(self._reserve.free)
        before = self._catalog.committed_sequence
        try:
            await self._reopen()
        except Corrupt as error:
            if may_pass(error) and (is_full(error) or self._failed_count + 1 < REOPENED_MAX):
                raise
            await self._make_anew(error)
            self._reopened_count = 0
        else:
            self._reopened_count += not is_full(self._writer.failure)
            self._well_at = trio.current_time() + WELL_S
        self._failed_count = 0
        self.trouble = ""
        self.repaired_count += 1
        sequence = self._catalog.committed_sequence
        log.warning("catalog repaired: writes resume", sequence=sequence, replayed=sequence - before)
        self._writer.resume()

    async def _reopen(self) -> None:
        """Go on with the file that is there. Raises Corrupt when it cannot be used, DataLost when the log cannot."""
        catalog, failure = self._catalog, self._writer.failure
        if is_damage(failure):
            raise Corrupt(f"SQLite finds it damaged: {failure}")
        if self._reopened_count >= REOPENED_MAX and not is_full(failure):
            raise Corrupt(f"it failed again, {REOPENED_MAX} times within {WELL_S:.0f} s each: {failure}")
        committed = catalog.committed_sequence
        catalog.check_in_place()
        await trio.to_thread.run_sync(verify_open_pages, catalog.main)
        catalog.reopen_writer()
        if catalog.applier.sequence < committed:
            raise Corrupt(f"it ends at {catalog.applier.sequence}, and held {committed} before")
        if not await follows_log(catalog, self._journal):
            raise Corrupt(f"it took another course than the log at {catalog.applier.sequence}")
        await self._replay_onto(catalog)
        catalog.reopen_reader()

    async def _replay_onto(self, catalog: Catalog) -> None:
        try:
            with sqlite_errors(f"bringing the catalog {catalog.path} up to the log"):
                await replay(catalog, self._journal)
        except (Corrupt, DataLost):
            raise
        except Exception as error:
            raise Corrupt(f"the log could not be applied to it: {error!r}") from error

    async def _make_anew(self, reason: Corrupt) -> None:
        """Make the catalog again, beside the old one, and put it in its place."""
        catalog = self._catalog
        log.error("catalog is made again from its snapshot and the log", reason=str(reason))
        if not may_pass(reason):
            catalog.shut("the catalog is damaged and is being made again from the journal; try again soon")
        room = await trio.to_thread.run_sync(self._reserve.free_bytes)
        needed = await trio.to_thread.run_sync(_size_bytes, catalog.path) + CATALOG_ROOM_BYTES_MIN
        if room < needed:
            raise NoSpace(f"a new catalog needs {needed >> 10} KiB, {room >> 10} KiB are left: make room there")
        path = Path(f"{catalog.path}.new")
        try:
            remove(path)
            if not await self._restore(path):
                Catalog.create(path, catalog.applier.store_id, self._default)
            made = Catalog(path)
            try:
                await self._replay_onto(made)
                sequence = made.committed_sequence
                if sequence < catalog.committed_sequence:
                    raise DataLost(f"the log ends at {sequence}, the catalog held {catalog.committed_sequence}")
                if not await trio.to_thread.run_sync(checkpoint_with_sums, made.main):
                    raise Corrupt("the new catalog could not be checkpointed")
            finally:
                made.close()
            catalog.replace_by(path)
        finally:
            remove(path)
        self._checkpointer.replaced(sequence)


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
