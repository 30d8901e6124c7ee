"""Seen to fail with: only the innermost group looked at, `max` taken for a number."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
from daemons import environment

from couchestord import memory


@pytest.mark.parametrize(
    ("memory_bytes", "cache_bytes"), [(64 << 30, 128 << 20), (1 << 30, 128 << 20), (512 << 20, 64 << 20)]
)
def test_caches_take_a_small_part_of_little_memory(memory_bytes: int, cache_bytes: int) -> None:
    assert memory.cache_bytes(memory_bytes) == cache_bytes


def make_groups(root: Path, limits: dict[str, str], group: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"0::{group}\n")
    for name, limit in limits.items():
        folder = root / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")


@pytest.mark.parametrize(
    ("limits", "found"),
    [
        ({"a/b": "4096", "a": "max"}, 4096),
        ({"a/b": "8192", "a": "4096"}, 4096),
        ({"a": "4096"}, 4096),
        ({"c": "4096"}, None),
        ({"a/b": "max"}, None),
        ({".": "4096"}, 4096),
    ],
)
def test_the_least_limit_of_the_groups_counts(tmp_path: Path, limits: dict[str, str], found: int | None) -> None:
    make_groups(tmp_path, limits, "/a/b")
    machine = memory.total_bytes(tmp_path / "nowhere")
    assert memory.total_bytes(tmp_path) == (found or machine)
    assert machine > 1 << 28


HOLDER = """
import re
from couchestord import memory

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10

memory.keep_freed(256 << 20)
first = resident()
for _ in range(3):
    pieces = [b"%d" % number * (1 << 20) for number in range(10, 42)]
    del pieces
    assert resident() > first + 48, "what was freed stays"
memory.give_back()
assert resident() < first + 16, "until it is given back"
"""


def test_what_was_freed_stays_until_it_is_given_back() -> None:
    subprocess.run([sys.executable, "-c", HOLDER], check=True, env=environment())


def test_another_c_library_keeps_what_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    memory.keep_freed(1 << 20)
    memory.give_back()
