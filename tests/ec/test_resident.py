"""Runs of which each piece lies in memory that is used again: the same bytes, verified, from whatever is resident."""

import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest
from stripe_rig import STRIPE_BYTES, Rig, make_row, open_rig, pattern

from couchestord.ec.resident import MEMORIES_KEPT_MAX, RESIDENT_BYTES_MAX
from couchestord.ec.shards import PAGE_BYTES, full_stripe_pages, shard_path
from couchestord.errors import DataLost

ROW = make_row(33, range(6))
WIDE = make_row(33, range(4), k=2, m=2, stripe_bytes=2 << 20)
"""Its shards are longer than a piece."""
STEP = full_stripe_pages(4, STRIPE_BYTES)


async def put_three(rig: Rig) -> bytes:
    data = pattern(2 * STRIPE_BYTES + 70_000)
    await rig.write_stripes(ROW, [data[at : at + STRIPE_BYTES] for at in range(0, len(data), STRIPE_BYTES)])
    return data


def set_resident(rig: Rig, ratio: float) -> None:
    for sim in rig.sims:
        sim.resident_ratio = ratio


async def joined(pieces: AsyncGenerator[memoryview, None]) -> bytes:
    async with aclosing(pieces):
        return b"".join([bytes(piece) async for piece in pieces])


@pytest.mark.parametrize("ratio", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("lost", [(), (1, 5)], ids=str)
async def test_any_range_of_a_run_is_lent(tmp_path: Path, ratio: float, lost: tuple[int, ...]) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put_three(rig)
        set_resident(rig, ratio)
        for index in lost:
            rig.disks.fail(index, "pulled")
        rng = random.Random(5)
        edges = [
            at + shift for at in range(0, len(data), 16_384) for shift in (-1, 0, 1) if 0 <= at + shift < len(data)
        ]
        for _ in range(60):
            start = rng.choice(edges)
            length = min(rng.choice((1, 4096, 16_385, 100_000, len(data))), len(data) - start)
            lent = await joined(rig.stripes.read_run(ROW, 1, start, length, lent=True))
            assert lent == data[start : start + length]
        assert rig.damages == []


async def test_a_shard_longer_than_a_piece_is_lent_in_several(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        data = pattern(2 << 20)
        await rig.write_stripes(WIDE, [data])
        set_resident(rig, 1.0)
        for start, length in ((0, len(data)), (1, len(data) - 1), (RESIDENT_BYTES_MAX - 1, 2), (123_456, 1_500_000)):
            lengths, came = [], b""
            async for piece in rig.stripes.read_run(WIDE, 1, start, length, lent=True):
                lengths.append(len(piece))
                came += piece
            assert came == data[start : start + length]
            assert max(lengths) <= RESIDENT_BYTES_MAX


async def test_pieces_that_are_not_lent_stay_as_they_are(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put_three(rig)
        set_resident(rig, 1.0)
        pieces = [piece async for piece in rig.stripes.read_run(ROW, 1, 0, len(data))]
        assert await joined(rig.stripes.read_run(ROW, 1, 0, len(data), lent=True)) == data
        assert b"".join(pieces) == data


async def test_runs_at_a_time_have_memory_of_their_own(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put_three(rig)
        set_resident(rig, 1.0)
        for _ in range(2):  # the second time with memory that was used before
            one = rig.stripes.read_run(ROW, 1, 0, STRIPE_BYTES, lent=True)
            two = rig.stripes.read_run(ROW, 1, STRIPE_BYTES, STRIPE_BYTES, lent=True)
            async with aclosing(one), aclosing(two):
                first = await anext(one)
                second = await anext(two)
                assert first == data[: len(first)]
                assert second == data[STRIPE_BYTES : STRIPE_BYTES + len(second)]


async def test_memory_is_used_again_and_little_of_it_kept(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        await put_three(rig)
        set_resident(rig, 1.0)
        seen = set()
        for _ in range(3):
            async with aclosing(rig.stripes.read_run(ROW, 1, 0, STRIPE_BYTES, lent=True)) as run:
                seen |= {id((await anext(run)).obj), id((await anext(run)).obj)}
        assert len(seen) == 1
        runs = [rig.stripes.read_run(ROW, 1, 0, STRIPE_BYTES, lent=True) for _ in range(MEMORIES_KEPT_MAX + 9)]
        for run in runs:
            await anext(run)
        for run in runs:
            await run.aclose()
        assert len(rig.stripes._resident._memories) == MEMORIES_KEPT_MAX


async def test_rot_behind_the_first_piece_is_made_good_and_counted(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put_three(rig)
        set_resident(rig, 1.0)
        async with aclosing(rig.stripes.read_run(ROW, 1, 0, len(data), lent=True)) as run:
            came = bytes(await anext(run))
            await rig.sims[2].write_at(shard_path(33, 2), (1 + STEP + 1) * PAGE_BYTES + 100, [b"\xff" * 9])
            async for piece in run:
                came += piece
        assert came == data
        assert rig.damages == [(33, 2, 2)]
        assert rig.stripes.degraded_reads_count == 1


async def test_a_disk_that_goes_between_two_pieces_is_made_good(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put_three(rig)
        set_resident(rig, 1.0)
        async with aclosing(rig.stripes.read_run(ROW, 1, 0, len(data), lent=True)) as run:
            came = bytes(await anext(run))
            rig.sims[1].gone = True
            rig.disks.fail(3, "pulled")
            async for piece in run:
                came += piece
        assert came == data


async def test_rot_beyond_what_can_be_made_good_ends_the_run_with_right_bytes_only(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        data = await put_three(rig)
        set_resident(rig, 1.0)
        came = b""
        async with aclosing(rig.stripes.read_run(ROW, 1, 0, len(data), lent=True)) as run:
            came += await anext(run)
            for index in (1, 2, 4):
                await rig.sims[index].write_at(shard_path(33, index), 2 * PAGE_BYTES, [bytes(STEP * PAGE_BYTES)])
            with pytest.raises(DataLost):  # noqa: PT012
                async for piece in run:
                    came += piece
        assert came == data[: len(came)]
        assert len(came) < STRIPE_BYTES
