"""The second cache: chunks in segment files on NVMe. It survives a restart, and whatever its files or its disk do.

Theory of operation. Reads find a chunk's place in an index in memory. What the page cache holds is copied from there at
once, the rest by the threads of the cache's own disk (`io.directory`), which has a short deadline. The copy is verified
whole: it is the chunk that was put, or there was none. Writes are queued, in bounded memory, and one task appends them
in batches; what waits is found already.

A disk that fails, fills up or does not answer turns the cache off: it holds nothing, takes nothing, and the store goes
on without it. It is tried again after a while, longer and longer.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from couchestord import logs
from couchestord.cache import l2format as fmt
from couchestord.cache.compressor import Compressor, NoCompression
from couchestord.cache.l2folder import FOLDER_ID_BYTES, Attached, L2Options, Standing, attach
from couchestord.cache.l2index import is_one_place, key_of, range_of, was_read
from couchestord.cache.l2map import L2Map
from couchestord.cache.l2reading import ChunkReader
from couchestord.cache.l2ring import Piece, Ring
from couchestord.cache.tier import CHUNK_BYTES, TierStats
from couchestord.errors import DiskError, DiskLocked
from couchestord.io.checksum import xxh3_64
from couchestord.io.disk import Buffer, Disk

log = logs.get(__name__)
BATCH_BYTES: Final = 1 << 20
BATCH_PIECES_MAX: Final = 128
"""A batch is noted in the index on the loop: that takes some hundred microseconds."""
LINGER_S: Final = 0.2
"""How long a batch that is not full is waited for."""
INLINE_BYTES_MAX: Final = 64 << 10
"""Batches up to this are made smaller and summed on the loop, others in a thread."""
CLOSE_S: Final = 5.0


class L2:
    """A `Tier` (which see) in a folder. Belongs to one trio loop; `run` must be running for it to be on."""

    def __init__(
        self,
        options: L2Options,
        standing: Standing,
        compressor: Compressor,
        random_bytes: Callable[[int], bytes],
        open_disk: Callable[[], Awaitable[Disk]],
        shared: L2Map | None = None,
    ) -> None:
        """`shared`: for other processes that read beside this one."""
        self._options = options
        self._standing = standing
        self._compressor = compressor
        self._reader = ChunkReader(options.reads_max, compressor)
        self._shared = shared
        self._random_bytes = random_bytes
        self._open_disk = open_disk
        self._attached: Attached | None = None
        self._off_because = "it is being opened"
        self._is_told = False
        self._noted: set[fmt.Mark] = set()
        self._failed = trio.Event()
        self._queued: dict[int, bytes] = {}
        self._queued_bytes = 0
        self._some = trio.Event()
        self._enough = trio.Event()
        self._turn = trio.Lock()
        self._hits = self._misses = self._dropped = self._damaged = self._evictions = self._rescued = 0

    # -- what a tier does ---------------------------------------------------------------------------------------------

    def get_nowait(self, extent: int, chunk: int) -> bytes | None:
        attached = self._attached
        if attached is None:
            return None
        key = key_of(extent, chunk)
        if (queued := self._queued.get(key)) is not None:
            self._hits += 1
            return queued
        ring = attached.ring
        place = ring.index.get(key)
        if not place:
            return None
        raw = attached.disk.read_nowait(ring.path_of(place), *range_of(place))
        return None if raw is None else self._verify(ring, key, place, raw)

    def holds(self, extent: int, chunk: int) -> bool:
        key = key_of(extent, chunk)
        return self._attached is not None and (key in self._queued or bool(self._attached.ring.index.get(key)))

    async def get(self, extent: int, chunk: int) -> bytes | None:
        found = self.get_nowait(extent, chunk)
        if found is None:
            found = await self._get_cold(key_of(extent, chunk))
            if found is None:
                self._misses += 1
        return found

    async def _get_cold(self, key: int) -> bytes | None:
        attached = self._attached
        ring = attached.ring if attached is not None else None
        place = ring.index.get(key) if ring is not None else 0
        if attached is None or ring is None or not place:
            return None
        try:
            raw = await self._reader.read(attached.disk, place)
        except DiskError as error:
            self._fail(attached, error)
            return None
        return None if raw is None else self._verify(ring, key, place, raw)

    def put(self, extent: int, chunk: int, data: bytes) -> None:
        key = key_of(extent, chunk)
        if key and self.holds(extent, chunk):
            if self._shared is not None and self._attached is not None:
                self._attached.ring.show(key)
            return
        length = len(data)
        is_over = self._queued_bytes + length > self._options.queue_bytes_max
        if self._attached is None or is_over or not key or not 0 < length <= CHUNK_BYTES:
            self._dropped += 1
            return
        self._queued[key] = data
        self._queued_bytes += length
        self._some.set()
        if self._queued_bytes >= BATCH_BYTES:
            self._enough.set()

    async def evict(self) -> int:
        async with self._turn:
            attached = self._attached
            if attached is None:
                return 0
            ring = attached.ring
            size_bytes = ring.size_bytes + self._queued_bytes
            self._forget_queued()
            self._share(None)
            try:
                await attached.empty(self._random_bytes(FOLDER_ID_BYTES))
            except DiskError as error:
                self._fail(attached, error)
            else:
                self._share(attached)
                self._count(ring)
                self._evictions += ring.index.count
            return size_bytes

    def stats(self) -> TierStats:
        ring = self._attached.ring if self._attached is not None else None
        return TierStats(
            name="l2",
            capacity_bytes=self._options.size_bytes if ring is not None else 0,
            size_bytes=ring.size_bytes if ring is not None else 0,
            entries_count=ring.index.count if ring is not None else 0,
            hits_count=self._hits,
            misses_count=self._misses,
            evictions_count=self._evictions + (ring.evictions_count if ring is not None else 0),
            dropped_count=self._dropped,
            damaged_count=self._damaged,
            off_because="" if ring is not None else self._off_because,
        )

    @property
    def rescued_count(self) -> int:
        """Chunks that were written again since they had been read, when their segment had to go."""
        return self._rescued + (self._attached.ring.rescued_count if self._attached is not None else 0)

    def _verify(self, ring: Ring, key: int, place: int, raw: Buffer) -> bytes | None:
        """The chunk that a record holds, from a copy that nobody else can change.

        None, and the record is forgotten and counted, when it is not what was put.
        """
        chunk = self._reader.chunk(ring.records, key, raw)
        if chunk is None:
            self._forget_damaged(ring, key, place)
            return None
        self._hits += 1
        if not was_read(place) and ring.index.get(key) == place:
            ring.index.mark(key)
        return chunk

    def _forget_damaged(self, ring: Ring, key: int, place: int) -> None:
        # its segment may have got its next turn meanwhile: then it was evicted, and nothing is damaged
        if is_one_place(ring.index.get(key), place):
            self._damaged += 1
            ring.forget(key)

    # -- for processes that read beside this one ----------------------------------------------------------------------

    def report(self, extent: int, chunk: int, place: int) -> None:
        """Another process found that what lies in a place, which is not 0, is not the chunk that was put."""
        if self._attached is not None:
            self._forget_damaged(self._attached.ring, key_of(extent, chunk), place)

    def _share(self, attached: Attached | None) -> None:
        if self._shared is None:
            return
        if attached is None:
            self._shared.close()
        else:
            self._shared.open(attached.ring.records)

    # -- opening, writing, closing ------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the cache on as far as its disk lets it, until cancelled; then leave it warm for the next start.

        The status is told when it is on, or could not be turned on for the first time.
        """
        pause_s = self._options.retry_s_min
        is_settled = False

        def settled() -> None:
            nonlocal is_settled
            if not is_settled:
                is_settled = True
                task_status.started()

        while True:
            begun = trio.current_time()
            try:
                await self._serve_once(settled)
            except (DiskError, DiskLocked) as error:
                self._tell(str(error))
            except Exception as error:
                # a mistake of ours in here is no reason for the store to end
                log.exception("cache failed")
                self._tell(repr(error))
            settled()
            if trio.current_time() - begun > self._options.retry_s_max:
                pause_s = self._options.retry_s_min
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._options.retry_s_max)

    def _tell(self, reason: str) -> None:
        """Once, until it is on again."""
        self._off_because = reason
        if not self._is_told:
            self._is_told = True
            log.warning("cache is off, the store goes on without it", tier="l2", reason=reason)

    async def _serve_once(self, settled: Callable[[], None]) -> None:
        """From the opening of the folder to its failure, or until cancelled. Raises DiskError, DiskLocked."""
        disk = await self._open_disk()
        try:
            folder_id = self._random_bytes(FOLDER_ID_BYTES)
            attached = await attach(
                disk, self._options.size_bytes, self._standing, self._noted, folder_id, self._shared
            )
            self._noted.add(attached.mark)
            self._failed = trio.Event()
            self._attached = attached
            self._share(attached)
            self._is_told = False
            log.info("cache is on", tier="l2", folder=disk.name, chunks=attached.ring.index.count)
            settled()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_queued, attached)
                    nursery.start_soon(self._look, attached)
                    await self._failed.wait()
                    nursery.cancel_scope.cancel()
            except Exception:
                self._detach(attached)  # who knows between which steps it was left
                raise
            finally:
                await self._leave(attached)
        finally:
            disk.close()

    async def _leave(self, attached: Attached) -> None:
        if self._attached is attached:
            with trio.move_on_after(CLOSE_S, shield=True):
                try:
                    while self._queued and self._attached is attached:
                        await self._write_batch(attached)
                    await attached.close()
                except DiskError as error:
                    self._tell(str(error))
        self._detach(attached)

    def _detach(self, attached: Attached) -> None:
        if self._attached is attached:
            self._attached = None
            self._share(None)
            self._forget_queued()
            self._count(attached.ring)

    def _count(self, ring: Ring) -> None:
        self._evictions += ring.evictions_count
        self._rescued += ring.rescued_count

    def _fail(self, attached: Attached, error: DiskError) -> None:
        if self._attached is attached:
            self._tell(str(error))
            self._detach(attached)
            self._failed.set()

    def _forget_queued(self) -> None:
        self._queued.clear()
        self._queued_bytes = 0

    async def _look(self, attached: Attached) -> None:
        while True:
            await trio.sleep(self._options.look_interval_s)
            try:
                async with self._turn:
                    await attached.look()
                    self._noted.add(attached.mark)
            except DiskError as error:
                self._fail(attached, error)
                return

    async def _write_queued(self, attached: Attached) -> None:
        while True:
            await self._some.wait()
            if self._queued_bytes < BATCH_BYTES:
                self._enough = trio.Event()
                with trio.move_on_after(LINGER_S):
                    await self._enough.wait()
            await self._finish_batch(attached)
            # by nobody else: who waits for an event that was replaced waits for ever
            if not self._queued:
                self._some = trio.Event()

    async def flush(self) -> None:
        while (attached := self._attached) is not None and self._queued:
            await self._finish_batch(attached)
            await trio.lowlevel.checkpoint()

    async def _finish_batch(self, attached: Attached) -> None:
        """A batch that was begun is written, whoever is cancelled: the ring is never left between two steps."""
        with trio.CancelScope(shield=True):
            await self._write_batch(attached)

    async def _write_batch(self, attached: Attached) -> None:
        async with self._turn:
            batch = self._next_batch()
            if not batch or self._attached is not attached:
                return
            try:
                # all of it was seen in the epoch of now, or an older one
                await attached.keep_up()
                self._noted.add(attached.mark)
                if sum(len(data) for _, data in batch) > INLINE_BYTES_MAX:
                    pieces = await trio.to_thread.run_sync(_make_pieces, batch, self._compressor)
                else:
                    pieces = _make_pieces(batch, self._compressor)
                await attached.ring.append(pieces)
                await attached.ring.rescue()
            except DiskError as error:
                self._fail(attached, error)
                return
            for key, data in batch:
                if self._queued.pop(key, None) is not None:
                    self._queued_bytes -= len(data)

    def _next_batch(self) -> list[tuple[int, bytes]]:
        batch: list[tuple[int, bytes]] = []
        length = 0
        for key, data in self._queued.items():
            if batch and (length + len(data) > BATCH_BYTES or len(batch) == BATCH_PIECES_MAX):
                break
            batch.append((key, data))
            length += len(data)
        return batch


def _make_pieces(batch: list[tuple[int, bytes]], compressor: Compressor) -> list[Piece]:
    """Pure: fit for any thread."""
    pieces = []
    for key, data in batch:
        packed = compressor.compress(data)
        stored, codec = (data, NoCompression.codec) if packed is None else (packed, compressor.codec)
        pieces.append(Piece(key, codec, len(data), stored, xxh3_64(stored)))
    return pieces
