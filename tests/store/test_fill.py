"""How full the disks are, and who waits for that."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from simdisk import SimDisk
from stripe_rig import make_disks
from trio.testing import MockClock

from couchestord.errors import NoSpace
from couchestord.io.catalog.catalog import Catalog
from couchestord.io.disks import Disks
from couchestord.io.room import ask_room
from couchestord.model import Policy
from couchestord.store.fill import BLIND_S, HELD_S_MAX, Fill

MIB = 1 << 20


class Bench:
    """Disks of which so much is used."""

    def __init__(self, disks: Disks, fill: Fill) -> None:
        self.disks = disks
        self.fill = fill
        self.is_cleared = False
        fill.is_cleared = lambda: self.is_cleared

    def use(self, percent: float, unit_bytes: int = MIB) -> None:
        used_bytes, left_bytes = int(percent * unit_bytes), int((100 - percent) * unit_bytes)
        self.fill._catalog.bytes_on_disks = lambda *_: used_bytes  # type: ignore[method-assign]
        self.disks.account.note({index: index for index in range(6)}, {0: left_bytes, **dict.fromkeys(range(1, 6), 0)})


def run(tmp_path: Path, test: Callable[[Bench], Any]) -> None:
    async def main() -> None:
        rng = random.Random(1)
        disks = await make_disks([SimDisk(f"sim-{index}", rng) for index in range(6)], 4, 2)
        Catalog.create(tmp_path / "catalog", bytes(16), Policy())
        catalog = Catalog(tmp_path / "catalog")
        await test(Bench(disks, Fill(catalog.copies, disks)))
        catalog.close()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_how_full_the_disks_are(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        fill = bench.fill
        assert fill.percent == 0, "nobody has looked yet"
        for percent, pressed, scarce in ((79, False, False), (80, True, False), (96, True, True)):
            await trio.sleep(2)
            bench.use(percent)
            assert (fill.percent, fill.is_pressed(), fill.is_scarce()) == (percent, pressed, scarce)
        await trio.sleep(2)
        bench.use(10)
        for index in range(3):
            bench.disks.set_tight(index, True)
        assert fill.percent == 100, "a stripe would be refused"
        bench.disks.set_tight(0, False)
        await trio.sleep(2)
        assert fill.percent == 10

    run(tmp_path, test)


def test_a_large_store_is_full_when_little_is_left(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        for percent, expected in ((90, 0), (98, 0), (99, 86)):
            await trio.sleep(2)
            bench.use(percent, 10 << 30)
            assert round(bench.fill.percent) == expected

    run(tmp_path, test)


def test_of_disks_that_are_there(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        await ask_room(bench.disks)
        assert 0 <= bench.fill.percent < 1

    run(tmp_path, test)


def test_new_data_waits_while_room_is_made(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.is_cleared = True
        bench.use(91)
        began_s = trio.current_time()
        await bench.fill.await_room()
        assert trio.current_time() == began_s
        await trio.sleep(2)
        bench.use(93)

        async def clear() -> None:
            await trio.sleep(5)
            bench.use(80)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(clear)
            began_s = trio.current_time()
            await bench.fill.await_room()
            assert 5 <= trio.current_time() - began_s < 6.5

    run(tmp_path, test)


def test_it_does_not_wait_for_what_does_not_come(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.use(95)
        began_s = trio.current_time()
        await bench.fill.await_room()
        assert BLIND_S <= trio.current_time() - began_s < BLIND_S + 1, "until all have looked"
        began_s = trio.current_time()
        await bench.fill.await_room()
        assert trio.current_time() == began_s, "they have"
        bench.is_cleared = True
        await bench.fill.await_room()
        assert trio.current_time() - began_s >= HELD_S_MAX

    run(tmp_path, test)


def test_who_found_no_room_looks_again_while_more_is_made(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        for is_cleared, longest_s in ((False, BLIND_S), (True, HELD_S_MAX)):
            bench.is_cleared = is_cleared
            began_s = trio.current_time()
            while await bench.fill.await_more(began_s):
                pass
            assert longest_s <= trio.current_time() - began_s < longest_s + 1

    run(tmp_path, test)


def test_what_finds_no_room_is_asked_again_while_more_is_made(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.use(95)
        calls = 0

        async def ask() -> str:
            nonlocal calls
            calls += 1
            if calls < 4:
                raise NoSpace("full")
            return "done"

        bench.is_cleared = True
        bench.fill.await_room = trio.lowlevel.checkpoint  # type: ignore[method-assign]
        assert await bench.fill.with_room(ask) == "done"
        calls, bench.is_cleared = 0, False
        await trio.sleep(BLIND_S)
        with pytest.raises(NoSpace):
            await bench.fill.with_room(ask)
        assert calls == 1, "nobody makes more"

    run(tmp_path, test)
