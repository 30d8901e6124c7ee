from collections.abc import Awaitable
from pathlib import Path

import trio
import trio.testing
from stripe_rig import Rig, open_rig

from couchestord.ec.losing import KEPT_S, Losses
from couchestord.io.catalog.read import ExtentRow
from couchestord.io.mutations import LOST


class Bench:
    """Losses over a rig, whose disks can be away."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.is_whole = True
        self.losses = Losses(rig.submit, self.read, lambda: self.is_whole)

    def read(self, extent: ExtentRow) -> Awaitable[bytes]:
        return self.rig.read_journal(extent.stripe, extent.stripe_start, extent.length)

    def put(self, name: bytes, *, is_there: bool = False) -> ExtentRow:
        row = self.row(self.rig.put_small(name, b"body"))
        if not is_there:
            del self.rig.journal[row.stripe]
        return row

    def row(self, id_: int) -> ExtentRow:
        row = self.rig.catalog.reading.extent(id_)
        assert row is not None
        return row

    def place(self, row: ExtentRow) -> tuple[int, int, int]:
        now = self.row(row.id)
        return now.segment, now.stripe, now.stripe_start


def of(row: ExtentRow) -> tuple[int, int, int]:
    return row.segment, row.stripe, row.stripe_start


def test_what_no_replica_has_is_given_up_after_a_while(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_rig(tmp_path) as rig:
            bench = Bench(rig)
            lost, there = bench.put(b"lost"), bench.put(b"there", is_there=True)
            await bench.losses.settle([lost, there], True)
            await trio.sleep(KEPT_S - 1)
            await bench.losses.settle([lost, there], True)
            assert bench.place(lost) == of(lost)
            await trio.sleep(1)
            late = bench.put(b"late")
            assert not rig.catalog.reading.has_lost()
            await bench.losses.settle([lost, there, late], True)
            assert bench.place(lost) == (LOST, 0, 0)
            assert bench.place(there) == of(there), "it was read after all"
            assert bench.place(late) == of(late), "it was found lost just now"
            assert bench.losses.lost_extents_count == 1
            assert rig.catalog.reading.has_lost()
            rig.delete(b"lost")
            assert not rig.catalog.reading.has_lost()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_nothing_is_given_up_without_need(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_rig(tmp_path) as rig:
            bench = Bench(rig)
            lost = bench.put(b"lost")
            for _ in range(3):
                await bench.losses.settle([lost], False)
                await trio.sleep(KEPT_S)
            assert bench.place(lost) == of(lost)
            await bench.losses.settle([lost], True)
            assert bench.place(lost) == (LOST, 0, 0)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_disk_that_was_away_may_have_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_rig(tmp_path) as rig:
            bench = Bench(rig)
            lost = bench.put(b"lost")
            await bench.losses.settle([lost], True)
            await trio.sleep(KEPT_S)
            bench.is_whole = False
            await bench.losses.settle([lost], True)
            bench.is_whole = True
            await bench.losses.settle([lost], True)
            await trio.sleep(KEPT_S - 1)
            await bench.losses.settle([lost], True)
            assert bench.place(lost) == of(lost)
            await trio.sleep(1)
            read = bench.read

            def gone(extent: ExtentRow) -> Awaitable[bytes]:
                bench.is_whole = False
                return read(extent)

            bench.losses._read = gone
            await bench.losses.settle([lost], True)
            assert bench.place(lost) == of(lost), "a disk went while it was read once more"
            bench.is_whole, bench.losses._read = True, read
            await bench.losses.settle([lost], True)
            assert bench.place(lost) == (LOST, 0, 0)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
