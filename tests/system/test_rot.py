"""Rot in every kind of file: found, never served, and made good within m."""

import os
import random
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import trio
from daemon import NO_DESTAGE, PREFERS_UNCACHED, QUICK, UNCACHED, Node, wait_until
from workload import BUCKET, Expected, fill

from couchestord.store.fsck import check_store
from couchestord.store.options import StoreOptions

PAGE_BYTES = 4096
BLOCK_BYTES = 16 << 10
STRIPE_HEADER_BYTES = 64
"""Before the sums of its blocks; lengths of the stripe and the shard are last (docs/formats.md)."""
SIZES = (500, 4096, 60_000, 120_000, 300_000, 2_500_000)
Damage = Callable[[Path], None]


def forget(path: Path) -> None:
    """Out of the page cache: the next read is the disk's."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(number)


def flip(path: Path, offset: int, count: int = 1) -> None:
    with path.open("r+b") as file:
        for at in range(offset, min(offset + count, path.stat().st_size)):
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 0x10]))
    forget(path)


def flip_header(path: Path) -> None:
    flip(path, 20)


def flip_stripe_header(path: Path) -> None:
    flip(path, PAGE_BYTES + 40)


def flip_payload(path: Path) -> None:
    flip(path, 2 * PAGE_BYTES + 77)


def flip_all_over(path: Path) -> None:
    random_ = random.Random(1)
    for _ in range(40):
        flip(path, random_.randrange(path.stat().st_size))


def zero_page(path: Path) -> None:
    page = min(2, path.stat().st_size // PAGE_BYTES - 1)
    with path.open("r+b") as file:
        file.seek(page * PAGE_BYTES)
        file.write(bytes(PAGE_BYTES))
    forget(path)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


SHARD_DAMAGES: list[Damage] = [
    flip_header, flip_stripe_header, flip_payload, flip_all_over, zero_page, truncate, empty, Path.unlink,
]  # fmt: skip
JOURNAL_DAMAGES: list[Damage] = [flip_header, flip_payload, flip_all_over, zero_page, truncate, empty, Path.unlink]


def name_of(damage: Damage) -> str:
    return damage.__name__


@contextmanager
def filled(
    folder: Path, *, destaged: bool, caches: Mapping[str, str] = PREFERS_UNCACHED
) -> Iterator[tuple[Node, Expected]]:
    """A store that holds objects, on stripes or in the journal; running, and stopped at the end."""
    expected = Expected()
    with Node(folder / "data", settings={**(QUICK if destaged else NO_DESTAGE), **caches}) as node:
        node.start().s3().create_bucket(Bucket=BUCKET)
        fill(expected, node.s3(), "rot", SIZES)
        if destaged:
            node.wait_destaged()
            node.restart()  # what was open is sealed
        yield node, expected


def shards_of(node: Node, index: int) -> dict[Path, bytes]:
    """The shard files of a disk and what is in them."""
    return {path: path.read_bytes() for path in sorted((node.disks[index] / "segments").iterdir())}


def reported(node: Node) -> set[Path]:
    """The shard files that the log calls damaged."""
    found = re.findall(r'shard found damaged shard="shard (\d+) on (\S+)" segment=(\d+)', node.said())
    return {Path(disk) / "segments" / f"{int(segment):016x}.{index}" for index, disk, segment in found}


def holds(path: Path, data: bytes) -> bool:
    return path.exists() and path.read_bytes()[: len(data)] == data


def reads_of(extent: Mapping[str, Any], path: Path, data: bytes, *, headers: bool) -> Iterator[slice]:
    """Where in a shard file lie the stripe headers and the whole blocks that a read of an extent must verify."""
    index = int(path.suffix[1:])
    page, start, left = extent["stripe"], extent["start"], extent["length"]
    while left > 0:
        at = page * PAGE_BYTES
        stripe_bytes, shard_bytes = struct.unpack_from("<II", data, at + STRIPE_HEADER_BYTES - 8)
        end = min(start + left, stripe_bytes)
        low = max(start - index * shard_bytes, 0) // BLOCK_BYTES * BLOCK_BYTES
        high = min(-(-(end - index * shard_bytes) // BLOCK_BYTES) * BLOCK_BYTES, shard_bytes)
        if low < high:
            if headers:
                yield slice(at, at + STRIPE_HEADER_BYTES)
            yield slice(at + PAGE_BYTES + low, at + PAGE_BYTES + high)
        left -= end - start
        page, start = page + 1 + -(-shard_bytes // PAGE_BYTES), 0


def shards_read(node: Node, expected: Expected) -> dict[Path, list[Mapping[str, Any]]]:
    """The shard files of all objects, parity too, with the extents in their segments."""
    found: dict[Path, list[Mapping[str, Any]]] = {}
    for key in expected.keys:
        for extent in node.info(BUCKET, key)["extents"]:
            for shard in extent["shards"]:
                found.setdefault(Path(shard["disk"]) / shard["file"], []).append(extent)
    return found


def found_by_fsck(node: Node) -> set[Path]:
    """The shard files that fsck finds bad; it must find nothing else."""
    found = set()
    for finding in trio.run(check_store, node.data, StoreOptions()):
        named = re.fullmatch(r"segment (\d+), shard (\d+)", finding.where)
        assert named, finding
        assert finding.severity == "short"
        found |= set(node.data.glob(f"disk-*/segments/{int(named[1]):016x}.{named[2]}"))
    return found


def made_good(node: Node, before: Mapping[Path, bytes]) -> bool:
    """Every shard file that the log calls damaged is as it was."""
    return all(holds(path, before[path]) for path in reported(node))


def damage_shards(folder: Path, damages: list[Damage], disks: tuple[int, ...], *, running: bool) -> None:
    """All shard files of up to two disks are damaged: what is read is right. What a read came upon is made good, and it
    comes upon every block that it needs, since there are no caches; fsck finds all the rest.
    """
    with filled(folder, destaged=True, caches=UNCACHED) as (node, expected):
        for damage in damages:
            extents = shards_read(node, expected)
            if not running:
                node.stop()
            before = {path: data for index in disks for path, data in shards_of(node, index).items()}
            for path in before:
                damage(path)
            after = {path: path.read_bytes() if path.exists() else b"" for path in before}
            if not running:
                node.start()
            expected.verify(node.s3())
            expected.verify(node.s3())
            found = reported(node)
            for path, data in before.items():
                # a running daemon may have headers in memory, and files open: it need not look at those on disk
                if running and damage in (Path.unlink, flip_header, flip_stripe_header):
                    continue
                for extent in extents.get(path, ()):
                    for part in reads_of(extent, path, data, headers=not running):
                        assert path in found or after[path][part] == data[part], f"read without a word: {path} {part}"
            wait_until(partial(made_good, node, before), 30, node.said)
            node.wait_healthy()
            node.stop()
            found = reported(node)  # what is made good is made from others, which may be damaged too
            assert made_good(node, before)
            missed = found_by_fsck(node) | {path for path in before if not path.exists()}
            assert missed & extents.keys() == before.keys() & extents.keys() - found
            for path in before.keys() - found:
                path.write_bytes(before[path])  # there is no scrub yet
            node.start()
        expected.verify(node.s3())
        node.wait_healthy()


def test_shards_that_rot_while_running(tmp_path: Path) -> None:
    damage_shards(tmp_path, [flip_payload, flip_stripe_header], (1, 4), running=True)


def test_shards_that_rot_while_stopped(tmp_path: Path) -> None:
    damage_shards(tmp_path, [zero_page, truncate, Path.unlink], (0, 3), running=False)


@pytest.mark.soak
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
@pytest.mark.parametrize("disks", [*combinations(range(6), 1), *combinations(range(6), 2)], ids=str)
def test_shards_that_rot_in_every_way(tmp_path: Path, disks: tuple[int, ...], running: bool) -> None:
    damage_shards(tmp_path, SHARD_DAMAGES, disks, running=running)


def swap(one: Path, other: Path) -> tuple[bytes, bytes]:
    """Each file gets what the other held; returns what was in them before."""
    first, second = one.read_bytes(), other.read_bytes()
    assert first != second
    one.write_bytes(second)
    other.write_bytes(first)
    return first, second


def test_shards_in_each_others_place(tmp_path: Path) -> None:
    """Two files of a segment change places; two segments' files on one disk do; each is whole in itself."""
    with filled(tmp_path, destaged=True) as (node, expected):
        fill(expected, node.s3(), "second", (2_500_000,))
        node.stop()
        for key, places in (("rot/5", ("0", "1")), ("second/0", ("2", "3"))):
            node.start()
            shards = node.info(BUCKET, key)["extents"][0]["shards"]
            node.stop()
            paths = [Path(shard["disk"]) / shard["file"] for shard in shards]
            one, other = (next(path for path in paths if path.suffix == f".{place}") for place in places)
            first, second = swap(one, other)
            node.start()
            expected.verify(node.s3())
            assert {one, other} <= reported(node)
            wait_until(partial(holds, one, first), 30, node.said)
            wait_until(partial(holds, other, second), 30, node.said)
            node.wait_healthy()
            node.stop()
        folder = node.disks[2] / "segments"
        one, other = sorted(folder.iterdir(), key=lambda path: path.stat().st_size)[-2:]
        swap(one, other)
        node.start()
        expected.verify(node.s3())
        node.wait_healthy()


def damage_journal(folder: Path, damages: list[Damage], *, running: bool) -> None:
    """Two of the three replicas of every journal file are damaged, those that are read first."""
    with filled(folder, destaged=False) as (node, expected):
        for damage in damages:
            if not running:
                node.stop()
            replicas: dict[str, list[Path]] = {}
            for disk in node.disks:
                for path in (disk / "journal").glob("*"):
                    replicas.setdefault(path.name, []).append(path)
            assert any(len(paths) >= 3 for paths in replicas.values())
            for paths in replicas.values():
                for path in sorted(paths)[:2]:
                    damage(path)
            if not running:
                node.start()
            expected.verify(node.s3())
            node.wait_healthy()
            fill(expected, node.s3(), f"after-{damage.__name__}", (100, 50_000))
            node.restart()
            expected.verify(node.s3())


def test_journal_that_rots_while_stopped(tmp_path: Path) -> None:
    damage_journal(tmp_path, [flip_payload], running=False)


def test_journal_that_rots_while_running(tmp_path: Path) -> None:
    damage_journal(tmp_path, [flip_payload], running=True)


@pytest.mark.soak
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
@pytest.mark.parametrize("damage", JOURNAL_DAMAGES, ids=name_of)
def test_journal_that_rots_in_every_way(tmp_path: Path, damage: Damage, running: bool) -> None:
    damage_journal(tmp_path, [damage], running=running)


def test_superblock_that_rots(tmp_path: Path) -> None:
    """A damaged slot is made good by the other; a disk whose identity is gone is not used, and not written to."""
    with filled(tmp_path, destaged=True) as (node, expected):
        for page in (1, 2):
            node.stop()
            for disk in node.disks[:2]:
                flip(disk / "superblock", page * PAGE_BYTES + 30)
            node.start()
            expected.verify(node.s3())
            node.wait_healthy()
        node.stop()
        kept = [(disk / "superblock").read_bytes() for disk in node.disks[:2]]
        for disk in node.disks[:2]:
            flip(disk / "superblock", 30)
        damaged = [(disk / "superblock").read_bytes() for disk in node.disks[:2]]
        node.start()
        assert node.said().count("disk is not usable") == 2
        assert node.page("healthz")[1]["state"] == "degraded"
        expected.verify(node.s3())
        fill(expected, node.s3(), "meanwhile", SIZES)
        assert [(disk / "superblock").read_bytes() for disk in node.disks[:2]] == damaged
        for disk, data in zip(node.disks, kept, strict=False):
            (disk / "superblock").write_bytes(data)
        node.wait_healthy()
        expected.verify(node.s3())


@pytest.mark.parametrize("destaged", [True, False], ids=["stripes", "journal"])
def test_an_old_copy_of_a_disk_is_put_back(tmp_path: Path, destaged: bool) -> None:
    """Deletes and overwrites that it missed are not undone."""
    with filled(tmp_path, destaged=destaged) as (node, expected):
        node.stop()
        for index in (1, 2):
            shutil.copytree(node.disks[index], tmp_path / f"old-{index}")
        node.start()
        client = node.s3()
        for number in range(3):
            assert expected.delete(client, f"rot/{number}")
        fill(expected, client, "rot/3", (70_000, 400_000))
        assert expected.put(client, "rot/4", b"overwritten")
        node.stop()
        for index in (1, 2):
            shutil.rmtree(node.disks[index])
            (tmp_path / f"old-{index}").rename(node.disks[index])
        node.start()
        expected.verify(node.s3())
        node.wait_healthy()
        for index in (0, 5):
            node.disks[index].rename(tmp_path / f"away-{index}")
        wait_until(lambda: node.page("healthz")[1]["state"] == "degraded", 30, node.said)
        expected.verify(node.s3())
