"""A process that writes files of its own in a folder, in the ways that programs do, and says what it begins and what is
done: synced, closed, renamed, removed.

It says `begin NAME VERSION`, then `done NAME VERSION WAY` or `failed NAME VERSION WAY ERROR`; `absent NAME VERSION WAY`
when it was to remove what is not there. What a version of a file holds can be told from both; version 0, and others as
`is_absent` says, are none.
"""

import errno
import os
import random
import select
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

FILES_COUNT = 6
HELD = "held"
"""This one is kept open by its writer, from its first version on."""
_CREATED = -1
"""The version of a file that was made and not written yet: that is durable, too."""
_LENGTHS = (0, 100, 5000, 130_000, 200_000, 1_300_000)


def is_absent(name: str, version: int) -> bool:
    return version == 0 or (name != HELD and version % 7 == 0)


def bytes_of(name: str, version: int) -> bytes | None:
    """None: there is no file."""
    if is_absent(name, version):
        return None
    if version == _CREATED:
        return b""
    rng = random.Random(f"{name} {version}")
    return rng.randbytes(rng.choice(_LENGTHS))


def write(number: int, data: bytes, rng: random.Random) -> None:
    """In pieces of several sizes, those behind first: half of it would have a hole."""
    cuts = sorted({0, len(data), *(rng.randrange(len(data) + 1) for _ in range(3))})
    for start, end in reversed(list(pairwise(cuts))):
        os.pwrite(number, data[start:end], start)


class Writer:
    """Each way leaves one version of a file, durably."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._held = -1

    def ways(self, data: bytes | None, name: str) -> list[Callable[[Path, bytes], None]]:
        """What can be done to have a file hold that."""
        if name == HELD:
            return [self.keep_open]
        if data is None:
            return [self.unlink]
        return [self.write_anew, self.write_and_close, self.write_over]

    def keep_open(self, path: Path, data: bytes) -> None:
        if self._held < 0:
            self._held = os.open(path, os.O_RDWR | os.O_CREAT)
        write(self._held, data, self._rng)
        os.ftruncate(self._held, len(data))
        os.fsync(self._held)

    def unlink(self, path: Path, _: bytes) -> None:
        path.unlink()

    def write_anew(self, path: Path, data: bytes) -> None:
        new = path.with_name(path.name + ".new")
        with new.open("wb", buffering=0) as file:
            write(file.fileno(), data, self._rng)
            os.fsync(file.fileno())
        new.rename(path)

    def write_and_close(self, path: Path, data: bytes) -> None:
        with path.open("wb", buffering=0) as file:
            write(file.fileno(), data, self._rng)

    def write_over(self, path: Path, data: bytes) -> None:
        number = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            write(number, data, self._rng)
            os.ftruncate(number, len(data))
            os.fdatasync(number)
        finally:
            os.close(number)


def main(folder: Path, seed: str, first_version: int) -> None:
    """Until its input ends."""
    rng, version = random.Random(seed), first_version
    writer = Writer(rng)
    names = [HELD, *(f"file-{number}" for number in range(FILES_COUNT))]
    while not select.select([sys.stdin], [], [], 0)[0]:
        name, version = rng.choice(names), version + 1
        data = bytes_of(name, version)
        way = rng.choice(writer.ways(data, name))
        print(f"begin {name} {version}", flush=True)
        try:
            way(folder / name, data or b"")
        except OSError as error:
            word = "absent" if data is None and error.errno == errno.ENOENT else "failed"
            print(f"{word} {name} {version} {way.__name__} {error.errno}", flush=True)
            time.sleep(0.02)
        else:
            print(f"done {name} {version} {way.__name__}", flush=True)


class Told(NamedTuple):
    """One line of a writer."""

    word: str
    name: str
    version: int
    way: str
    error: int


def told(line: str) -> Told:
    word, name, version, way, error, *_ = [*line.split(), "", "0"]
    return Told(word, name, int(version), way, int(error or 0))


class Versions:
    """What the files of a writer may hold."""

    def __init__(self) -> None:
        self._may_be: dict[str, set[int]] = {}
        self.last = 0

    def hear(self, lines: Iterable[str], *, is_promise: bool = True) -> None:
        """`is_promise`: what it said is done is done."""
        for each in map(told, lines):
            self.last = max(self.last, each.version)
            if each.word == "absent":
                # no promise: over a mount that is dead the kernel knows names that are not there yet
                assert any(is_absent(each.name, version) for version in self._may_be[each.name] - {each.version})
            elif each.word == "begin":
                may_be = self._may_be.setdefault(each.name, {0})
                may_be |= {_CREATED for version in may_be if is_absent(each.name, version)} | {each.version}
            elif each.word == "done" and is_promise:
                self._may_be[each.name] = {each.version}

    def check(self, found: Mapping[str, bytes]) -> None:
        """Each file holds one whole version, which it may hold; from now on that is the only one."""
        for name, versions in self._may_be.items():
            held = found.get(name)
            settled = {version for version in versions if bytes_of(name, version) == held}
            size = "nothing" if held is None else f"{len(held)} bytes"
            assert settled, f"{name} holds {size}, it may hold versions {sorted(versions)}"
            self._may_be[name] = settled
        assert set(found) <= {each + end for each in self._may_be for end in ("", ".new")}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
