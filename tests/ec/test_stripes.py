import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
import trio.testing
from stripe_rig import STRIPE_BYTES, Rig, make_row, open_rig, pattern, reseal

from couchestord.ec.gather import ShardRange
from couchestord.ec.shards import CHECK_BYTES, PAGE_BYTES, full_stripe_pages, shard_length, shard_path
from couchestord.ec.stripes import StripeOptions
from couchestord.errors import DataLost, DiskFailed
from couchestord.io.catalog.read import SegmentRow

ROW = make_row(33, range(6))
LOSSES = [lost for count in (1, 2) for lost in itertools.combinations(range(6), count)]
RANGES = [(0, STRIPE_BYTES), (0, 1), (STRIPE_BYTES - 1, 1), (65_535, 2), (70_000, 5000), (16_384, 16_384), (1, 200_000)]


def test_there_are_21_patterns_of_loss() -> None:
    assert len(LOSSES) == 21


async def put(rig: Rig, row: SegmentRow = ROW, length: int = STRIPE_BYTES) -> bytes:
    data = pattern(length)
    await rig.write_stripes(row, [data])
    return data


async def check_all(rig: Rig, data: bytes, row: SegmentRow = ROW) -> None:
    for start, length in RANGES:
        assert rig.stripes.read_nowait(row, 1, start, length) in (None, data[start : start + length])
        assert await rig.stripes.read(row, 1, start, length) == data[start : start + length]


async def test_what_one_shard_has_in_memory_is_read_without_a_wait(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        data = pattern(2 * STRIPE_BYTES)
        places = await rig.write_stripes(ROW, [data[:STRIPE_BYTES], data[STRIPE_BYTES:]])
        for sim in rig.sims:
            sim.resident_ratio = 1.0
        size = shard_length(STRIPE_BYTES, 4)
        rng = random.Random(1)
        for _ in range(200):
            start, length = rng.randrange(2 * STRIPE_BYTES), rng.choice((1, 4096, 20_000))
            found = rig.stripes.read_nowait(ROW, places[0], start, length)
            if start // size == (start + length - 1) // size and start + length <= len(data):
                assert found is not None
                assert bytes(found) == data[start : start + length]
            else:
                assert found is None
        assert rig.stripes.read_nowait(ROW._replace(missing=1), 1, 0, 10) is None
        assert rig.stripes.read_nowait(ROW, 1, 0, 0) is None
        rig.disks.fail(0, "pulled")
        assert rig.stripes.read_nowait(ROW, 1, 0, 10) is None
        rig.sims[1].resident_ratio = 0.0
        assert rig.stripes.read_nowait(ROW, 1, size, 10) is None


async def test_any_range_is_read(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put(rig)
        await check_all(rig, data)
        rng = random.Random(1)
        for _ in range(100):
            start = rng.randrange(STRIPE_BYTES)
            length = rng.randrange(STRIPE_BYTES - start + 1)
            assert await rig.stripes.read(ROW, 1, start, length) == data[start : start + length]
        assert rig.stripes.degraded_reads_count == 0
        assert rig.damages == []


async def test_a_short_stripe_in_memory_is_read_from_shards_that_are_trusted(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put(rig, length=4096)
        for sim in rig.sims:
            sim.resident_ratio = 1.0
        size = shard_length(4096, 4)
        found = rig.stripes.read_nowait(ROW, 1, 2 * size, size)
        assert found is not None
        assert bytes(found) == data[2 * size : 3 * size]
        assert rig.stripes.read_nowait(ROW._replace(missing=0b100), 1, 2 * size, size) is None
        assert rig.stripes.read_nowait(ROW, 1, 3 * size, size + 1) is None


@pytest.mark.parametrize("length", [1, 64, 1000, 70_000, STRIPE_BYTES - 1])
async def test_short_stripes(tmp_path: Path, length: int) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put(rig, length=length)
        assert await rig.stripes.read(ROW, 1, 0, length) == data
        assert await rig.stripes.read(ROW, 1, length - 1, 1) == data[-1:]
        with pytest.raises(DataLost, match=f"holds {length} bytes"):
            await rig.stripes.read(ROW, 1, 1, length)


@pytest.mark.parametrize("length", [64, 1000, 70_000, STRIPE_BYTES])
@pytest.mark.parametrize("lost", [(), (0,), (1, 2), (0, 5)], ids=str)
async def test_the_first_read_of_a_stripe_that_may_be_short(tmp_path: Path, length: int, lost: tuple[int, ...]) -> None:
    """It is taken for a full one until a header says otherwise, which is no damage."""
    async with open_rig(tmp_path) as rig:
        data = await put(rig, length=length)
        for sim in rig.sims:
            sim.resident_ratio = 0.0
        for index in lost:
            rig.disks.fail(index, "pulled")
        for start in (0, length // 3, length - 1):
            rig.forget_cache()
            assert await rig.stripes.read(ROW, 1, start, length - start) == data[start:]
        assert rig.damages == []


async def test_the_first_read_of_a_stripe_asks_each_disk_once(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put(rig)
        for sim in rig.sims:
            sim.resident_ratio = 0.0
        size = shard_length(STRIPE_BYTES, 4)
        for start, length, asked in (
            (size + 20_000, 100, [1]),
            (2 * size - 50, 100, [1, 2]),
            (0, STRIPE_BYTES, [0, 1, 2, 3]),
        ):
            rig.forget_cache()
            before = [sim.calls for sim in rig.sims]
            assert await rig.stripes.read(ROW, 1, start, length) == data[start : start + length]
            assert [sim.calls - count for sim, count in zip(rig.sims, before, strict=True)] == [
                int(index in asked) for index in range(6)
            ]


async def test_where_the_header_is_not_in_memory_the_bytes_are_asked_for_too(tmp_path: Path) -> None:
    """The system begins to read both; nothing is taken unverified."""
    async with open_rig(tmp_path) as rig:
        await put(rig)
        asked: list[tuple[int, int]] = []
        size = shard_length(STRIPE_BYTES, 4)

        def has_no_header(_path: str, offset: int, length: int) -> bytes | None:
            asked.append((offset, length))
            return None if offset == PAGE_BYTES else bytes(length)

        rig.sims[1].read_nowait = has_no_header  # type: ignore[assignment, method-assign]
        assert rig.stripes.read_nowait(ROW, 1, size + 20_000, 100) is None
        assert asked == [(PAGE_BYTES, PAGE_BYTES), (2 * PAGE_BYTES + 20_000, 100)]
        assert rig.stripes.read_nowait(ROW, 1, 2 * size - 50, 100) is None
        assert asked[2:] == [(PAGE_BYTES, PAGE_BYTES)], "not when it goes past the shard"


@pytest.mark.parametrize("resident_ratio", [0.0, 1.0])
async def test_a_range_in_one_shard_reads_its_header_once_and_its_blocks_only(
    tmp_path: Path, resident_ratio: float
) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put(rig)
        read: list[tuple[int, int, int]] = []
        for index, sim in enumerate(rig.sims):
            sim.resident_ratio = resident_ratio
            watch_reads(sim, index, read)
        start = shard_length(STRIPE_BYTES, 4) + 20_000
        assert await rig.stripes.read(ROW, 1, start, 100) == data[start : start + 100]
        header, block = (1, PAGE_BYTES, PAGE_BYTES), (1, 2 * PAGE_BYTES + 16_384, 16_384)
        assert sorted(set(read)) == sorted([header, block])
        read.clear()
        assert await rig.stripes.read(ROW, 1, start, 100) == data[start : start + 100]
        assert set(read) == {block}


def watch_reads(sim: object, index: int, read: list[tuple[int, int, int]]) -> None:
    really, nowait = sim.read, sim.read_nowait  # type: ignore[attr-defined]
    several = sim.read_ranges  # type: ignore[attr-defined]

    async def noting(path: str, offset: int, length: int) -> bytes:
        read.append((index, offset, length))
        found: bytes = await really(path, offset, length)
        return found

    async def noting_several(path: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        read.extend((index, offset, length) for offset, length in ranges)
        found: Sequence[bytes] = await several(path, ranges)
        return found

    def noting_nowait(path: str, offset: int, length: int) -> bytes | None:
        found: bytes | None = nowait(path, offset, length)
        if found is not None:
            read.append((index, offset, length))
        return found

    sim.read, sim.read_nowait = noting, noting_nowait  # type: ignore[attr-defined]
    sim.read_ranges = noting_several  # type: ignore[attr-defined]


@pytest.mark.parametrize("lost", LOSSES, ids=str)
async def test_every_loss_of_two_disks_is_made_good(tmp_path: Path, lost: tuple[int, ...]) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put(rig)
        for index in lost:
            rig.disks.fail(index, "pulled")
        await check_all(rig, data)
        assert (rig.stripes.degraded_reads_count > 0) == (min(lost) < 4)
        assert rig.damages == []  # a disk that is known to be away is no news


Damage = Callable[[Rig, int], Awaitable[None]]


async def lose_file(rig: Rig, index: int) -> None:
    await rig.sims[index].unlink(shard_path(33, index))


async def flip_header(rig: Rig, index: int) -> None:
    rig.sims[index].rot(shard_path(33, index), PAGE_BYTES + 70)


async def flip_payload(rig: Rig, index: int) -> None:
    for block in range(4):
        rig.sims[index].rot(shard_path(33, index), 2 * PAGE_BYTES + block * 16_384 + 9, xor=1)


async def zero_header(rig: Rig, index: int) -> None:
    await rig.sims[index].write_at(shard_path(33, index), PAGE_BYTES, [bytes(PAGE_BYTES)])


async def zero_payload_page(rig: Rig, index: int) -> None:
    for block in range(4):
        await rig.sims[index].write_at(shard_path(33, index), 2 * PAGE_BYTES + block * 16_384, [bytes(PAGE_BYTES)])


async def truncate(rig: Rig, index: int) -> None:
    sim, path = rig.sims[index], shard_path(33, index)
    whole = await sim.read(path, 0, 1 << 30)
    await sim.unlink(path)
    await sim.write_at(path, 0, [whole[: 2 * PAGE_BYTES + 100]])


async def put_another_epoch(rig: Rig, index: int) -> None:
    await replace(rig, index, ROW._replace(epoch=6))


async def put_another_segment(rig: Rig, index: int) -> None:
    other = ROW._replace(id=34)
    await rig.write_stripes(other, [pattern(STRIPE_BYTES, 5)])
    await rig.sims[index].rename(shard_path(34, index), shard_path(33, index))


async def put_a_neighbour(rig: Rig, index: int) -> None:
    """The file of the next shard, as if two disks had been swapped."""
    there = (index + 1) % 6
    found = await rig.sims[there].read(shard_path(33, there), 0, 1 << 30)
    await rig.sims[index].write_at(shard_path(33, index), 0, [found])


async def replace(rig: Rig, index: int, row: SegmentRow) -> None:
    sim, path = rig.sims[index], shard_path(33, index)
    encoded = await rig.stripes.encode(row, 1, pattern(STRIPE_BYTES, 9))
    await sim.write_at(path, PAGE_BYTES, encoded.buffers(index))


DAMAGES: list[Damage] = [
    lose_file, flip_header, flip_payload, zero_header, zero_payload_page, truncate, put_another_epoch,
    put_another_segment, put_a_neighbour,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_damage_is_not_read_without_a_wait_but_counted_by_the_read_that_follows(
    tmp_path: Path, damage: Damage
) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put(rig)
        await damage(rig, 0)
        rig.forget_cache()
        for sim in rig.sims:
            sim.resident_ratio = 1.0
        for start in range(0, shard_length(STRIPE_BYTES, 4), 16_384):
            assert rig.stripes.read_nowait(ROW, 1, start, 100) in (None, data[start : start + 100])
        assert rig.damages == []
        await check_all(rig, data)
        assert rig.damages == [(33, 0, 0)]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("lost", [(0,), (3, 5), (1, 2)], ids=str)
async def test_damaged_shards_are_made_good_and_reported_once(
    tmp_path: Path, damage: Damage, lost: tuple[int, ...]
) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put(rig)
        for index in lost:
            await damage(rig, index)
        rig.forget_cache()
        for _ in range(3):
            await check_all(rig, data)
        assert {index for _, index, _ in rig.damages} >= {index for index in lost if index < 4}
        assert len(rig.damages) == len(set(rig.damages)) <= len(lost)
        assert {(segment, index == disk) for segment, index, disk in rig.damages} == {(33, True)}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_three_damaged_shards_lose_the_data_and_say_which(tmp_path: Path, damage: Damage) -> None:
    async with open_rig(tmp_path) as rig:
        await put(rig)
        for index in (0, 2, 4):
            await damage(rig, index)
        rig.forget_cache()
        with pytest.raises(DataLost, match=r"segment 33, stripe 1: 3 of 4\+2 .*shard 0 on sim-0.*shard 2 on sim-2"):
            await rig.stripes.read(ROW, 1, 0, STRIPE_BYTES)


@pytest.mark.parametrize("warm", [False, True])
async def test_rot_at_other_places_of_each_shard_loses_nothing(tmp_path: Path, warm: bool) -> None:
    """More shards than the code makes good, but no more than two in any column of blocks."""
    async with open_rig(tmp_path) as rig:
        data = await put(rig)
        encoded = await rig.stripes.encode(ROW, 1, data)
        for index in range(6):
            block = index % 3
            rig.sims[index].rot(shard_path(33, index), 2 * PAGE_BYTES + block * 16_384 + 9, xor=1)
        if not warm:
            rig.forget_cache()
        await check_all(rig, data)
        shape = await rig.stripes.shape(ROW, 1)
        for index in range(6):
            whole = ShardRange(index, 0, shape.shard_length)
            assert await rig.stripes.shard(ROW, 1, shape, whole) == encoded.payloads[index]
        assert sorted(rig.damages) == [(33, index, index) for index in range(6)]
        rig.disks.fail(5, "pulled")
        assert await rig.stripes.read(ROW, 1, 2 * 16_384, 16_384) == data[2 * 16_384 : 3 * 16_384]
        with pytest.raises(DataLost, match=r"3 of 4\+2"):
            await rig.stripes.read(ROW, 1, 0, STRIPE_BYTES)


async def test_rotten_parity_is_never_decoded_with(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put(rig)
        await flip_payload(rig, 4)
        rig.disks.fail(1, "pulled")
        await check_all(rig, data)
        assert rig.damages == [(33, 4, 4)]


async def test_a_damage_is_reported_again_once_it_was_repaired(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        await put(rig)
        await lose_file(rig, 0)
        await rig.stripes.read(ROW, 1, 0, 10)
        rig.stripes.forget_damage(33, 0, 0)
        await rig.stripes.read(ROW, 1, 0, 10)
        assert rig.damages == [(33, 0, 0), (33, 0, 0)]


def test_a_damage_is_reported_again_after_a_while(tmp_path: Path) -> None:
    """Whoever made it good does not tell every process that reads: then this is another one."""
    clock = trio.testing.MockClock()

    async def main() -> None:
        async with open_rig(tmp_path) as rig:
            await put(rig)
            await lose_file(rig, 0)
            for jump_s, count in ((0, 1), (59, 1), (1, 2), (59, 2), (1, 3)):
                clock.jump(jump_s)
                for _ in range(3):
                    await rig.stripes.read(ROW, 1, 0, 10)
                assert rig.damages == [(33, 0, 0)] * count

    trio.run(main, clock=clock)


async def test_what_a_newer_program_wrote_is_not_called_damage(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put(rig)
        path = shard_path(33, 0)
        page = await rig.sims[0].read(path, PAGE_BYTES, PAGE_BYTES)
        await rig.sims[0].write_at(path, PAGE_BYTES, [reseal(page, 4, b"\x02\x00")])
        await check_all(rig, data)
        assert rig.stripes.degraded_reads_count > 0
        assert rig.damages == []


async def test_shards_that_the_catalog_doubts_come_last_but_count(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put(rig)
        row = ROW._replace(missing=0b000011)
        read: list[tuple[int, int, int]] = []
        for index, sim in enumerate(rig.sims):
            watch_reads(sim, index, read)
        await check_all(rig, data, row)
        assert {index for index, *_ in read} <= {2, 3, 4, 5}
        rig.disks.fail(4, "pulled")
        rig.disks.fail(5, "pulled")
        await check_all(rig, data, row)


async def test_a_segment_written_with_missing_disks(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        row = make_row(33, [0, 1, 2, 3, -1, -1], missing=0b110000)
        data = await put(rig, row)
        await check_all(rig, data, row)
        rig.disks.fail(0, "pulled")
        with pytest.raises(DataLost, match="shard 4 on no disk: never written"):
            await rig.stripes.read(row, 1, 0, 1)


async def test_a_run_goes_over_stripes_in_pieces(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        data = pattern(2 * STRIPE_BYTES + 1000)
        cut = [data[:STRIPE_BYTES], data[STRIPE_BYTES : 2 * STRIPE_BYTES], data[2 * STRIPE_BYTES :]]
        places = await rig.write_stripes(ROW, cut)
        step = full_stripe_pages(4, STRIPE_BYTES)
        assert places == [1, 1 + step, 1 + 2 * step]
        rig.disks.fail(2, "pulled")
        for start, length in (
            (0, len(data)),
            (5, len(data) - 5),
            (STRIPE_BYTES + 3, 40_000),
            (len(data) - 1, 1),
            (7, 0),
        ):
            pieces = [bytes(piece) async for piece in rig.stripes.read_run(ROW, 1, start, length)]
            assert b"".join(pieces) == data[start : start + length]
            assert all(len(piece) <= 1 << 20 for piece in pieces)


async def test_a_loss_in_the_middle_of_a_run_ends_it(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        data = pattern(2 * STRIPE_BYTES)
        await rig.write_stripes(ROW, [data[:STRIPE_BYTES], data[STRIPE_BYTES:]])
        second = full_stripe_pages(4, STRIPE_BYTES) + 1
        for index in (0, 1, 2):
            await rig.sims[index].write_at(shard_path(33, index), second * PAGE_BYTES, [bytes(PAGE_BYTES)])
        came = b""
        async with aclosing(rig.stripes.read_run(ROW, 1, 0, len(data))) as run:
            with pytest.raises(DataLost):  # noqa: PT012
                while True:
                    came += await anext(run)
        assert came == data[:STRIPE_BYTES]


async def test_a_read_error_is_made_good_and_the_disk_stays(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put(rig)
        for sim in rig.sims:
            sim.resident_ratio = 0.0
        rig.sims[1].fail_at(1, DiskFailed("EIO"))
        assert await rig.stripes.read(ROW, 1, 0, STRIPE_BYTES) == data
        assert rig.disks.good() == [0, 1, 2, 3, 4, 5]
        assert rig.damages == [(33, 1, 1)]


async def test_a_disk_that_died_is_given_up_by_who_reads_next_and_nothing_on_it_is_damaged(tmp_path: Path) -> None:
    """What killed it need not have been a read of a shard."""
    async with open_rig(tmp_path) as rig:
        data = await put(rig)
        for sim in rig.sims:
            sim.resident_ratio = 0.0
        rig.sims[1].suspect("no answer")
        assert await rig.stripes.read(ROW, 1, 0, STRIPE_BYTES) == data
        assert rig.disks.failures == {1: "sim-1: no answer"}
        rig.sims[2].suspect("no answer")
        assert await rig.stripes.count_headers(ROW, 1) == 4
        assert list(rig.disks.failures) == [1, 2]
        assert await rig.stripes.read(ROW, 1, 0, STRIPE_BYTES) == data
        assert rig.damages == []


async def test_a_disk_that_is_back_before_the_read_it_failed_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put(rig)
        for sim in rig.sims:
            sim.resident_ratio = 0.0
        rig.sims[1].suspect("no answer")
        back = rig.sims[1].crash(keep_all=True)
        read_ranges = rig.sims[4].read_ranges

        async def once_it_is_back(path: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
            assert list(rig.disks.failures) == [1]
            rig.disks.take(1, back)
            return await read_ranges(path, ranges)

        monkeypatch.setattr(rig.sims[4], "read_ranges", once_it_is_back)
        assert await rig.stripes.read(ROW, 1, 0, STRIPE_BYTES) == data
        assert rig.disks.get(1) is back
        assert rig.damages == []


async def test_a_disk_that_goes_before_it_is_asked_is_one_more_that_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_rig(tmp_path) as rig:
        await put(rig)
        for sim in rig.sims:
            sim.resident_ratio = 0.0

        async def fail_with_the_next(_path: str, _ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
            rig.disks.fail(5, "pulled")
            raise DiskFailed("EIO")

        rig.disks.fail(1, "pulled")
        monkeypatch.setattr(rig.sims[4], "read_ranges", fail_with_the_next)
        with pytest.raises(DataLost, match="3 of 4"):
            await rig.stripes.read(ROW, 1, 0, STRIPE_BYTES)


@pytest.mark.parametrize("index", range(6))
def test_a_disk_that_hangs_is_not_waited_for(tmp_path: Path, index: int) -> None:
    async def main() -> None:
        async with open_rig(tmp_path) as rig:
            data = await put(rig)
            for sim in rig.sims:
                sim.resident_ratio = 0.0
            rig.sims[index].frozen = True
            begin = trio.current_time()
            await check_all(rig, data)
            # one wait: then the disk is known to be late
            assert trio.current_time() - begin <= StripeOptions().hedge_s
            await trio.sleep(10)
            await check_all(rig, data)
            assert (index in rig.disks.failures) == (index < 4)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_slow_answer_is_taken_when_nothing_else_is_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_rig(tmp_path) as rig:
            data = await put(rig)
            for sim in rig.sims:
                sim.resident_ratio = 0.0
            rig.disks.fail(4, "pulled")
            rig.disks.fail(5, "pulled")
            rig.sims[1].frozen = True
            rig.nursery.start_soon(thaw, rig)
            assert await rig.stripes.read(ROW, 1, 0, STRIPE_BYTES) == data

    async def thaw(rig: Rig) -> None:
        await trio.sleep(2)
        rig.sims[1].frozen = False

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_late_shard_makes_another_good_though_other_blocks_of_it_were_wanted(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_rig(tmp_path) as rig:
            data, size = await put(rig), shard_length(STRIPE_BYTES, 4)
            for sim in rig.sims:
                sim.resident_ratio = 0.0
            rig.disks.fail(5, "pulled")
            rig.sims[1].rot(shard_path(33, 1), 2 * PAGE_BYTES)
            rig.sims[0].frozen = True
            rig.nursery.start_soon(thaw, rig)
            # the end of one shard, and the beginning of the next
            assert await rig.stripes.read(ROW, 1, size - 100, 200) == data[size - 100 : size + 100]

    async def thaw(rig: Rig) -> None:
        await trio.sleep(2)
        rig.sims[0].frozen = False

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_headers_are_cached_within_bounds(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        rig.stripes = rig.make_stripes(headers_cached_max=3)
        datas = [pattern(100, seed) for seed in range(8)]
        places = await rig.write_stripes(ROW, datas)
        for _ in range(2):
            for place, data in zip(places, datas, strict=True):
                assert await rig.stripes.read(ROW, place, 0, 100) == data
        assert len(rig.stripes._resident._headers) == 3


async def test_a_whole_shard_comes_from_its_place_or_from_the_others(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put(rig)
        encoded = await rig.stripes.encode(ROW, 1, data)
        shape = await rig.stripes.shape(ROW, 1)
        assert shape.length == len(data)
        wholes = [ShardRange(index, 0, shape.shard_length) for index in range(6)]
        for whole in wholes:
            assert await rig.stripes.shard(ROW, 1, shape, whole) == encoded.payloads[whole.shard]
        rig.disks.fail(0, "pulled")
        rig.disks.fail(5, "pulled")
        for whole in wholes:
            assert await rig.stripes.shard(ROW, 1, shape, whole) == encoded.payloads[whole.shard]
        block = ShardRange(0, CHECK_BYTES, 2 * CHECK_BYTES)
        assert await rig.stripes.shard(ROW, 1, shape, block) == encoded.payloads[0][block.low : block.high]


async def test_asking_for_a_stripe_that_is_not_there_reports_no_damage(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        await put(rig)
        with pytest.raises(DataLost):
            await rig.stripes.shape(ROW, 1 + full_stripe_pages(4, STRIPE_BYTES), report=False)
        assert rig.damages == []
