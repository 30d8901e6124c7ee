"""A process with the second cache that is killed while it writes.

Seen to fail with: no walk behind the index of the head.
"""

import random
import subprocess
import sys
from pathlib import Path

import trio
from l2_rig import STORE_ID, make_l2

from couchestord.cache.l2folder import L2Options, Standing, open_folder
from couchestord.cache.l2format import Mark

SIZE_BYTES = 8 << 20
ROUNDS_COUNT = 3
SUPPORT = Path(__file__).parents[1] / "support"
ROOT = Path(__file__).parents[2]
FORGOTTEN_MAX = 60
"""Chunks that may be evicted behind the newest: a segment holds 16 of 60 kB at least, and there are seven."""

CHILD = """
import random, sys, trio
from functools import partial
from pathlib import Path
from test_l2_kill import body_of, cache_of

async def main(folder, life, first):
    l2 = cache_of(folder, life)
    async with trio.open_nursery() as nursery:
        await nursery.start(l2.run)
        assert not l2.stats().off_because, l2.stats().off_because
        for extent in range(first, first + 100_000):
            l2.put(extent, 0, body_of(extent))
            if extent % 7 == 0:
                await l2.flush()
                await l2.get(extent - 30, 0)
                print(extent, flush=True)

trio.run(main, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
"""


def body_of(extent: int) -> bytes:
    rng = random.Random(extent)
    return rng.randbytes(rng.choice((300, 4096, 60_000)))


def cache_of(folder: Path, life: int):  # type: ignore[no-untyped-def]  # a child calls it too
    """The cache of the `life`-th run of a store that never lost anything."""
    options = L2Options(folder, SIZE_BYTES, deadline_s=60.0)
    standing = Standing(STORE_ID, _mark(life - 1), 1 << 40, lambda: _mark(life))

    async def open_disk():  # type: ignore[no-untyped-def]
        return await open_folder(options, (), trio.CapacityLimiter(1))

    return make_l2(open_disk, standing, path=folder, size_bytes=SIZE_BYTES)


def _mark(life: int) -> Mark:
    return Mark(life, b"token%d" % life)


def _run_and_kill(folder: Path, life: int, first: int, lines_count: int) -> int:
    """The last extent that the child said was written before it was killed."""
    line = [sys.executable, "-c", CHILD, str(folder), str(life), str(first)]
    path = ":".join(map(str, (ROOT, SUPPORT, Path(__file__).parent)))
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": path}) as child:
        assert child.stdout is not None
        last = 0
        try:
            for _ in range(lines_count):
                said = child.stdout.readline()
                assert said, "the child ended"
                last = int(said)
        finally:
            child.kill()
        rest = child.stdout.read().split()
        # the last line may have been cut
        return int(rest[-2]) if len(rest) > 1 else last


def test_what_was_written_before_a_kill_is_found_after_it(tmp_path: Path) -> None:
    rng = random.Random(1)
    folder, first = tmp_path / "cache", 16
    for life in range(1, 2 * ROUNDS_COUNT, 2):
        last = _run_and_kill(folder, life, first, rng.randrange(1, 60))

        async def check(life: int = life, last: int = last) -> None:
            l2 = cache_of(folder, life + 1)
            async with trio.open_nursery() as nursery:
                await nursery.start(l2.run)
                assert l2.stats().off_because == ""
                newest = range(max(16, last - FORGOTTEN_MAX), last + 1)
                assert [extent for extent in newest if await l2.get(extent, 0) != body_of(extent)] == []
                for extent in range(16, newest.start):
                    assert await l2.get(extent, 0) in (None, body_of(extent))
                assert l2.stats().damaged_count == 0
                nursery.cancel_scope.cancel()

        trio.run(check)
        first = last + 1
