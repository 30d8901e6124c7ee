"""The catalog goes to where the blobs are, so that a lost node can be made anew: the job `metadata`.

It takes the snapshot that the store has on its own stripes, puts the pieces that are not there yet, then a root that
names them, and after that the log behind it, a run of records each time some have gathered. Each start puts a root of
its own and leaves those of earlier ones alone, with their runs, until its own is whole: so nothing has to be known of
what an earlier start had put, and what can be recovered never gets older. That is why the runs behind the first root
of a start go before it.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import NamedTuple, Protocol

import trio

from couchestord import logs
from couchestord.errors import Corrupt, DataLost, RemoteError, Unavailable
from couchestord.remote.backend import Buffer
from couchestord.remote.backoff import Backoff
from couchestord.remote.options import PublishOptions
from couchestord.remote.root import Entry, Founding, Root, RootName, Run
from couchestord.remote.roots import Roots
from couchestord.service import Progress

log = logs.get(__name__)


class Snapshot(NamedTuple):
    """The catalog's file after a sequence, piece by piece, verified. No piece: an empty catalog."""

    sequence: int
    pieces: AsyncGenerator[Buffer, None]


class History(Protocol):
    """What a store has to publish."""

    def committed(self) -> int:
        """Sequence of the last record that is durable and answered."""
        ...

    def snapshot_sequence(self) -> int:
        """Of the newest snapshot; 0 when there is none."""
        ...

    def snapshot(self) -> AbstractAsyncContextManager[Snapshot]:
        """The newest one, which stays while the body runs. Its pieces may raise DataLost, Corrupt."""
        ...

    def ask_for_snapshot(self) -> None:
        """Let one be taken soon, though the log is short."""
        ...

    def records(self, first: int) -> AsyncGenerator[tuple[int, Entry], None]:
        """(sequence, record) from `first` to the last one that is committed. Those behind the newest snapshot are
        there. Raises DataLost.
        """
        ...


class Publisher:
    """A service. Holds one piece, or one run, in memory."""

    name = "metadata"

    def __init__(
        self,
        history: History,
        roots: Roots,
        store_id: bytes,
        epoch: int,
        founding: Founding,
        check_claim: Callable[[], Awaitable[None]],
        now_ns: Callable[[], int],
        options: PublishOptions,
        is_awaited: Callable[[], bool] = lambda: False,
    ) -> None:
        """`epoch`: that of the claim. `check_claim`: RemoteRefused when the bucket is another's by now. `is_awaited`:
        whether somebody waits for a newer root.
        """
        self._is_awaited = is_awaited
        self._history = history
        self._roots = roots
        self._store_id = store_id
        self._epoch = epoch
        self._founding = founding
        self._check_claim = check_claim
        self._now_ns = now_ns
        self._options = options
        self._turn = trio.Lock()
        self._root: Root | None = None
        self._unnamed: Root | None = None
        """One that may be there or not: another try must put the same bytes."""
        self._run: Run | None = None
        """As `_unnamed`."""
        self._next = 0
        """Of the first record that is in no run."""
        self._gathered: list[Entry] = []
        self._gathered_bytes = 0
        self._since = 0.0
        self._is_littered = False
        self._runs_count = 0
        """Behind the newest root, or since a newer one was asked for."""
        self._rooted_at = 0.0
        self._backoff = Backoff("the catalog was not published", options.retry_s, options.retry_s_max)
        self._removal = Backoff("old metadata stays in the backend", options.retry_s, options.retry_s_max)
        self.kept_from = 0
        """No catalog that may come back from the backend is of an older sequence."""
        self.roots_count = 0
        self.removed_objects_count = 0

    @property
    def interval_s(self) -> float:
        return min(5.0, max(0.01, self._options.run_age_s / 4))

    @property
    def trouble(self) -> str:
        """Why the last attempt failed; empty when it did not."""
        return self._backoff.trouble

    @property
    def rooted_sequence(self) -> int:
        """The newest root of this start holds everything up to here; 0 before there is one."""
        return self._root.sequence if self._root is not None else 0

    @property
    def sequence(self) -> int:
        """A node that is made anew knows everything up to here; 0 while this start has put no root."""
        return max(self._root.sequence, self._next - 1) if self._root is not None else 0

    async def work(self) -> Progress:
        """Put a root, or a run of the log, or remove what is old, if one of these is due. Steps take turns."""
        async with self._turn:
            if not self._backoff.is_due(trio.current_time()):
                return Progress.IDLE
            try:
                found_work = await self._step()
            except (RemoteError, Corrupt, DataLost, Unavailable) as error:
                self._backoff.failed(error, trio.current_time())
                return Progress.IDLE
            self._backoff.succeeded()
            return Progress.BUSY if found_work else Progress.IDLE

    async def _step(self) -> bool:
        if self._root is None or self._history.snapshot_sequence() > self._root.sequence:
            await self._check_claim()
            await self._put_runs()
            await self._put_root()
            return True
        if await self._collect(self._root.name):
            return True
        options = self._options
        is_old = trio.current_time() - self._rooted_at >= options.root_age_s
        if self._runs_count >= options.runs_max or (is_old and self._is_awaited()):
            self._history.ask_for_snapshot()
            self._runs_count, self._rooted_at = 0, trio.current_time()  # if there is none, not again at once
        await self._gather()
        if self._is_due():
            await self._check_claim()
            await self._put_run()
            return True
        return False

    async def _collect(self, newest: RootName) -> bool:
        """Remove what is old. What cannot be removed keeps nothing from being put."""
        if not self._is_littered or not self._removal.is_due(trio.current_time()):
            return False
        await self._check_claim()
        try:
            collected = await self._roots.collect(newest)
            if collected is not None:
                self.kept_from = collected.kept_from
                self.removed_objects_count += collected.removed_count
                if collected.failure is not None:
                    raise collected.failure
        except RemoteError as error:
            self._removal.failed(error, trio.current_time())
            return False
        self._removal.succeeded()
        self._is_littered = False
        return True

    # -- roots -----------------------------------------------------------------------------------------------------

    async def _put_root(self) -> None:
        there = await self._roots.pieces()
        async with self._history.snapshot() as snapshot:
            if self._unnamed is None or self._unnamed.sequence != snapshot.sequence:
                digests: list[bytes] = []
                size_bytes = 0
                async with aclosing(snapshot.pieces) as pieces:
                    async for piece in pieces:
                        digests.append(await self._roots.put_piece(piece, there))
                        size_bytes += memoryview(piece).nbytes
                self._unnamed = Root(
                    self._store_id,
                    self._epoch,
                    snapshot.sequence,
                    self._now_ns(),
                    size_bytes,
                    self._founding,
                    tuple(digests),
                )
        root = self._unnamed
        await self._roots.put_root(root)
        self._root, self._unnamed = root, None
        self._is_littered = True
        self._runs_count, self._rooted_at = 0, trio.current_time()
        self.roots_count += 1
        self._go_on_behind(root.sequence)
        log.info("catalog published", root=root.name.key, pieces=len(root.pieces), size_bytes=root.size_bytes)

    # -- the log ---------------------------------------------------------------------------------------------------

    async def _put_runs(self) -> None:
        """All that is committed now, before a root: what the first one of a start lacks may be known to an earlier one,
        and what a later one holds is the log of the one before it.
        """
        until, snapshot_sequence = self._history.committed(), self._history.snapshot_sequence()
        if self._root is None:
            self._go_on_behind(snapshot_sequence)
        try:
            while self._next <= until and await self._gather():
                await self._put_run()
        except DataLost:
            if self._root is None:
                raise
            if self._gathered:
                await self._put_run()  # the rest is in the snapshot

    def _go_on_behind(self, sequence: int) -> None:
        """What a snapshot holds need not be in a run, and may be in the log no more."""
        if self._next <= sequence:
            self._next = sequence + 1
            self._run = None
            self._gathered, self._gathered_bytes = [], 0

    async def _gather(self) -> bool:
        """Take records that came since, up to a run of them. True when there is any."""
        if self._run is not None:
            return True
        async with aclosing(self._history.records(self._next + len(self._gathered))) as records:
            async for _, entry in records:
                if not self._gathered:
                    self._since = trio.current_time()
                self._gathered.append(entry)
                self._gathered_bytes += len(entry.meta)
                if self._gathered_bytes >= self._options.run_bytes:
                    break
        return bool(self._gathered)

    def _is_due(self) -> bool:
        if self._run is not None:
            return True
        if not self._gathered:
            return False
        options = self._options
        return self._gathered_bytes >= options.run_bytes or trio.current_time() - self._since >= options.run_age_s

    async def _put_run(self) -> None:
        if self._run is None:
            self._run = Run(self._store_id, self._epoch, self._next, self._now_ns(), tuple(self._gathered))
        await self._roots.put_run(self._run)
        self._next = self._run.end
        self._runs_count += 1
        self._run = None
        self._gathered, self._gathered_bytes = [], 0
