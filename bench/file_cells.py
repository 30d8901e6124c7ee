"""What bench.files measures: what processes do in a folder, one process or eight that share the work.

Each is a generator that runs in a process of its own, which serves nothing: it prepares, yields when it is ready, and
then does its share; the clock runs from there. Nothing here knows what file system the folder is on.
"""

import io
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20
SMALL_BYTES: Final = 4096
MANY_PROCESSES: Final = 8
PROCESSES: Final = (1, MANY_PROCESSES)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much all processes of an operation do together; each number is one that MANY_PROCESSES divides."""

    large_mib: int = 128
    random_count: int = 2048
    files_count: int = 1000
    synced_count: int = 400
    listings_count: int = 5
    untarred_count: int = 2000
    committed_count: int = 400
    """Files in the repository that is cloned."""


QUICK: Final = Sizes(16, 128, 80, 40, 4, 160, 40)


@dataclass(frozen=True, slots=True)
class Share:
    """What one process works on."""

    folder: Path
    """Its own, on the file system that is measured."""
    sources: Path
    """Archives and the repository, elsewhere."""
    sizes: Sizes
    processes: int
    seed: int

    def of(self, count: int) -> int:
        return count // self.processes

    @property
    def large(self) -> Path:
        return self.folder / "large"

    def small(self) -> list[str]:
        return [f"{self.folder}/small/{number:05}" for number in range(self.of(self.sizes.files_count))]


Work = Callable[[Share], Iterator[None]]


# -- one large file ----------------------------------------------------------------------------------------------------


def write(share: Share) -> Iterator[None]:
    body = random.Random(0).randbytes(MIB)
    yield
    file = os.open(share.large, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    for _ in range(share.of(share.sizes.large_mib)):
        os.write(file, body)
    os.fsync(file)
    os.close(file)


def read(share: Share) -> Iterator[None]:
    buffer = bytearray(MIB)
    yield
    file = os.open(share.large, os.O_RDONLY)
    for _ in range(share.of(share.sizes.large_mib)):
        _check(os.readv(file, [buffer]), MIB)
    os.close(file)


def _places(share: Share) -> list[int]:
    """Each at most once: nothing is read or written that the kernel has already."""
    pages = range(share.of(share.sizes.large_mib) * MIB // SMALL_BYTES)
    return [page * SMALL_BYTES for page in random.Random(share.seed).sample(pages, share.of(share.sizes.random_count))]


def read_randomly(share: Share) -> Iterator[None]:
    places = _places(share)
    yield
    file = os.open(share.large, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    for place in places:
        _check(len(os.pread(file, SMALL_BYTES, place)), SMALL_BYTES)
    os.close(file)


def write_randomly(share: Share) -> Iterator[None]:
    places, body = _places(share), random.Random(1).randbytes(SMALL_BYTES)
    yield
    file = os.open(share.large, os.O_WRONLY)
    for place in places:
        os.pwrite(file, body, place)
    os.fsync(file)
    os.close(file)


# -- many small files --------------------------------------------------------------------------------------------------


def create(share: Share) -> Iterator[None]:
    paths, body = share.small(), random.Random(2).randbytes(SMALL_BYTES)
    os.mkdir(f"{share.folder}/small")
    yield
    for path in paths:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(file, body)
        os.close(file)


def create_synced(share: Share) -> Iterator[None]:
    body = random.Random(3).randbytes(SMALL_BYTES)
    os.mkdir(f"{share.folder}/synced")
    yield
    for number in range(share.of(share.sizes.synced_count)):
        file = os.open(f"{share.folder}/synced/{number:05}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(file, body)
        os.fsync(file)
        os.close(file)


def stat(share: Share) -> Iterator[None]:
    paths = share.small()
    yield
    for path in paths:
        _check(os.stat(path).st_size, SMALL_BYTES)


def list_names(share: Share) -> Iterator[None]:
    count = share.of(share.sizes.files_count)
    yield
    for _ in range(share.sizes.listings_count):
        _check(len(os.listdir(f"{share.folder}/small")), count)


def list_long(share: Share) -> Iterator[None]:
    line = ["ls", "-l", f"{share.folder}/small"]
    yield
    for _ in range(share.sizes.listings_count):
        # the first line is a sum
        lines = subprocess.run(line, capture_output=True, check=True).stdout.count(b"\n")
        _check(lines, share.of(share.sizes.files_count) + 1)


def unlink(share: Share) -> Iterator[None]:
    paths = share.small()
    yield
    for path in paths:
        os.unlink(path)


# -- programs ----------------------------------------------------------------------------------------------------------


def untar(share: Share) -> Iterator[None]:
    folder = share.folder / "untarred"
    folder.mkdir()
    line = ["tar", "-xf", str(archive(share.sources, share.processes)), "-C", str(folder)]
    yield
    subprocess.run(line, check=True)


def remove_tree(share: Share) -> Iterator[None]:
    yield
    subprocess.run(["rm", "-r", str(share.folder / "untarred")], check=True)


def clone(share: Share) -> Iterator[None]:
    line = ["git", "clone", "-q", f"file://{share.sources}/repository", str(share.folder / "cloned")]
    yield
    subprocess.run(line, check=True, env=_GIT)


_GIT: Final = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    **{f"GIT_{who}_{what}": "bench@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


def archive(sources: Path, processes: int) -> Path:
    """What each of so many processes unpacks."""
    return sources / f"{processes}.tar"


def make_sources(sources: Path, sizes: Sizes) -> None:
    """Archives, and with git a repository of four commits, of files of 1 to 16 KiB, twenty to a folder."""
    sources.mkdir()
    rng = random.Random(4)
    for processes in PROCESSES:
        with tarfile.open(archive(sources, processes), "w") as tar:
            for number in range(sizes.untarred_count // processes):
                member = tarfile.TarInfo(f"{number // 20:03}/{number:05}")
                body = rng.randbytes(rng.randrange(1024, 16 << 10))
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    if shutil.which("git") is not None:
        _make_repository(sources / "repository", sizes, rng)


def _make_repository(repository: Path, sizes: Sizes, rng: random.Random) -> None:
    for line in (["init", "-q", str(repository)], ["-C", str(repository), "config", "gc.auto", "0"]):
        subprocess.run(["git", *line], check=True, env=_GIT)
    for commit in range(4):
        for number in range(commit, sizes.committed_count, 4):
            path = repository / f"{number // 20:03}" / f"{number:05}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(rng.randbytes(rng.randrange(512, 8 << 10)).hex().encode())
        for line in (["add", "-A"], ["commit", "-q", "-m", str(commit)]):
            subprocess.run(["git", "-C", str(repository), *line], check=True, env=_GIT)


def _check(found: int, expected: int) -> None:
    if found != expected:
        raise SystemExit(f"{found} where {expected} was expected")


# -- all of them -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operation:
    """What is measured, in the order in which each finds what it needs."""

    name: str
    counted: str
    """What one operation is."""
    work: Work
    count: Callable[[Sizes], int]
    """Operations of all processes together."""
    is_cold: bool = False
    """The kernel's caches are emptied before: names, attributes and pages, of the mount and of the files below it."""
    is_warm: bool = False
    """It is carried out once before: emptying the kernel's caches for one file system empties those of all."""
    changes: bool = False
    processes: tuple[int, ...] = PROCESSES
    program: str = ""
    """Without it there is no such operation."""


READ_WARM: Final = "sequential read, warm"

OPERATIONS: Final = (
    Operation("sequential write, fsync", "MiB", write, lambda sizes: sizes.large_mib, changes=True),
    Operation("sequential read, cold", "MiB", read, lambda sizes: sizes.large_mib, is_cold=True),
    Operation(READ_WARM, "MiB", read, lambda sizes: sizes.large_mib, is_warm=True),
    Operation("random read", "4 KiB", read_randomly, lambda sizes: sizes.random_count, is_cold=True),
    Operation("random write, fsync", "4 KiB", write_randomly, lambda sizes: sizes.random_count, changes=True),
    Operation("create 4 KiB, close", "file", create, lambda sizes: sizes.files_count, changes=True),
    Operation("create 4 KiB, fsync each", "file", create_synced, lambda sizes: sizes.synced_count, changes=True),
    Operation("stat, cold", "file", stat, lambda sizes: sizes.files_count, is_cold=True),
    Operation("stat again", "file", stat, lambda sizes: sizes.files_count, is_warm=True),
    Operation("readdir", "entry", list_names, lambda sizes: sizes.files_count * sizes.listings_count),
    Operation("ls -l", "entry", list_long, lambda sizes: sizes.files_count * sizes.listings_count),
    Operation("unlink", "file", unlink, lambda sizes: sizes.files_count, changes=True),
    Operation("untar", "file", untar, lambda sizes: sizes.untarred_count, changes=True),
    Operation("rm -r of it", "file", remove_tree, lambda sizes: sizes.untarred_count, changes=True),
    Operation("git clone", "clone", clone, lambda sizes: 1, changes=True, processes=(1,), program="git"),
)
