"""What bench.files measures is what it says, and the bare file system that it measures beside is one."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounted import tree_of

from bench.figures import Figures, Measured
from bench.file_cells import OPERATIONS, PROCESSES, QUICK, SMALL_BYTES, Operation, Share, make_sources
from bench.file_mounts import BARE, JUICEFS, JUICEFS_SYNCED, OURS, passthrough
from bench.files import Sample, carry_out, conclude, report, row_name, rows_of
from bench.process import cpu_s

ROOT = Path(__file__).resolve().parents[2]
needs_fuse = pytest.mark.skipif(not Path("/dev/fuse").exists() or os.geteuid() != 0, reason="needs /dev/fuse and root")


def nothing(share: Share) -> Iterator[None]:
    yield


def share_out(top: Path, sources: Path, processes: int) -> list[Share]:
    shares = [Share(top / str(number), sources, QUICK, processes, number) for number in range(processes)]
    for share in shares:
        share.folder.mkdir(parents=True)
    return shares


def files_below(shares: list[Share], name: str) -> int:
    """But those of git itself."""
    found = [path for share in shares for path in (share.folder / name).rglob("*") if path.is_file()]
    return sum(1 for path in found if ".git" not in path.parts)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bench") / "sources"
    make_sources(made, QUICK)
    return made


@pytest.mark.parametrize("processes", PROCESSES)
def test_operations_do_together_what_they_count(tmp_path: Path, sources: Path, processes: int) -> None:
    shares = share_out(tmp_path, sources, processes)
    expected = {
        "create 4 KiB, close": ("small", QUICK.files_count),
        "create 4 KiB, fsync each": ("synced", QUICK.synced_count),
        "unlink": ("small", 0),
        "untar": ("untarred", QUICK.untarred_count),
        "rm -r of it": ("untarred", 0),
        "git clone": ("cloned", QUICK.committed_count),
    }
    for operation in OPERATIONS:
        if operation.program and shutil.which(operation.program) is None:
            pytest.skip(f"needs {operation.program}")
        if processes in operation.processes:
            before = tree_of(tmp_path)
            for share in shares:
                carry_out(operation.work, share, 0)
            assert (tree_of(tmp_path) != before) is operation.changes
            if operation.name in expected:
                name, count = expected.pop(operation.name)
                assert files_below(shares, name) == count
    assert list(expected) == ["git clone"][: processes - 1]
    assert sum(share.large.stat().st_size for share in shares) == QUICK.large_mib << 20


def test_random_writes_change_as_many_pages_as_they_count(tmp_path: Path, sources: Path) -> None:
    (share,) = share_out(tmp_path, sources, 1)
    works = {operation.name: operation.work for operation in OPERATIONS}
    carry_out(works["sequential write, fsync"], share, 0)
    before = share.large.read_bytes()
    carry_out(works["random write, fsync"], share, 0)
    after = share.large.read_bytes()
    pages = range(0, len(before), SMALL_BYTES)
    assert len(after) == len(before)
    assert sum(before[at : at + SMALL_BYTES] != after[at : at + SMALL_BYTES] for at in pages) == QUICK.random_count


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if not one.changes], ids=lambda one: one.name)
def test_an_operation_that_finds_less_than_was_written_fails(
    tmp_path: Path, sources: Path, operation: Operation
) -> None:
    (share,) = share_out(tmp_path, sources, 1)
    for one in OPERATIONS:
        if one.name in ("sequential write, fsync", "create 4 KiB, close"):
            carry_out(one.work, share, 0)
    carry_out(operation.work, share, 0)
    os.truncate(share.large, (QUICK.large_mib << 20) // 2)
    for path in share.small()[::2]:
        os.unlink(path)
        if operation.name.startswith("stat"):
            Path(path).touch()
    with pytest.raises(SystemExit):
        carry_out(operation.work, share, 0)


def test_a_process_begins_when_all_are_to(tmp_path: Path) -> None:
    begin_at = time.monotonic() + 0.2
    assert carry_out(nothing, Share(tmp_path, tmp_path, QUICK, 1, 0), begin_at) >= begin_at


BURN = """
import subprocess, sys, time
def burn(s):
    while time.process_time() < s: pass
if sys.argv[1:]:
    burn(0.2)
else:
    subprocess.run([sys.executable, sys.argv[0], "child"])
    burn(0.3)
    print("burnt", flush=True)
    sys.stdin.read()
"""


def test_cpu_time_is_that_of_a_process_and_its_children_that_ended(tmp_path: Path) -> None:
    program = tmp_path / "burn.py"
    program.write_text(BURN)
    line = [sys.executable, str(program)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline()
        used_s = cpu_s(process.pid)
        assert cpu_s(process.pid) == pytest.approx(used_s, abs=0.005)
        process.stdin.close()
    assert used_s == pytest.approx(0.5, abs=0.05)


# -- the bare file system ----------------------------------------------------------------------------------------------


@contextmanager
def bare(folder: Path) -> Iterator[Path]:
    with passthrough(folder) as mount:
        yield mount.folder


@needs_fuse
def test_the_bare_file_system_does_what_the_one_below_does(tmp_path: Path, sources: Path) -> None:
    with bare(tmp_path / "bare") as top:
        for folder in (top, tmp_path / "plain"):
            shares = share_out(folder / "a", sources, 1)
            for operation in OPERATIONS:
                if 1 in operation.processes and operation.name not in ("rm -r of it", "git clone"):
                    carry_out(operation.work, shares[0], 0)
            some = folder / "a" / "0" / "untarred"
            (folder / "a").rename(folder / "b")
            assert not some.exists()
            some = folder / "b" / "0" / "untarred"
            first, second, *_ = (path for path in sorted(some.rglob("*")) if path.is_file())
            os.symlink("nowhere", some / "link")
            os.chmod(second, 0o640)
            os.truncate(second, 100)
            os.utime(second, ns=(1, 2))
            assert second.stat().st_mtime_ns == 2
            with first.open("ab") as file:
                file.write(b"more")
                first.unlink()
                assert os.fstat(file.fileno()).st_nlink == 0
            with pytest.raises(FileNotFoundError):
                first.stat()
            with pytest.raises(OSError, match="not empty"):
                some.rmdir()
        assert tree_of(top) == tree_of(tmp_path / "plain")
    assert tree_of(tmp_path / "bare" / "data") == tree_of(tmp_path / "plain")
    assert list(top.iterdir()) == []


@needs_fuse
def test_the_bare_file_system_writes_half_as_much_again(tmp_path: Path) -> None:
    with bare(tmp_path / "bare") as top:
        (top / "file").write_bytes(bytes(3 << 20))
        (top / "small").write_bytes(b"abc")
    assert (tmp_path / "bare" / "data" / "file").stat().st_size == 3 << 20
    assert (tmp_path / "bare" / "copy").stat().st_size == (3 << 19) + 2


# -- what is concluded -------------------------------------------------------------------------------------------------


def test_rows_say_where_we_are_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def row(name: str, processes: int = 1) -> str:
        return row_name(next(one for one in OPERATIONS if one.name == name), processes)

    samples = {
        (row("unlink"), OURS): [Sample(100, 10), Sample(300, 30), Sample(200, 20)],
        (row("unlink"), JUICEFS): [Sample(400, 50)],
        (row("unlink"), JUICEFS_SYNCED): [Sample(500, 4)],
        (row("unlink"), BARE): [Sample(50, 200)],
        (row("readdir", 8), OURS): [Sample(20, 300)],
        (row("readdir", 8), JUICEFS): [Sample(10, 100)],
        (row("readdir", 8), BARE): [Sample(5, 600)],
        (row("sequential read, warm"), OURS): [Sample(1, 9)],
        (row("sequential read, warm"), JUICEFS): [Sample(1, 10)],
        (row("sequential read, warm"), BARE): [Sample(1, 10)],
    }
    rows = rows_of(samples)
    figures = Figures(tmp_path / "figures")
    (tmp_path / "figures").touch()
    report(rows)
    conclude(rows, figures, is_full=True)
    said = capsys.readouterr().out
    assert "| unlink, 1 process | file | 200 | 400 | 500 | 50 | 2 | 4 | 100% |" in said
    assert "| unlink, 1 process | file | 20 | 50 | 4 | 200 | 0.4 | 0.1 |" in said
    assert "| readdir, 8 processes | entry | 20 | 10 |  | 5 | 0.5 | 4 | 0% |" in said
    assert "behind JuiceFS in rate, 1 of 2: unlink, 1 process 0.40\n" in said
    assert "behind JuiceFS in CPU, 1 of 2: readdir, 8 processes 0.50\n" in said
    assert "behind JuiceFS + fsync in rate, 0 of 1: nowhere\n" in said
    assert Measured.load(tmp_path / "figures").values == {
        "files rate/JuiceFS": 0.4,
        "files rate/JuiceFS/warm": 0.9,
        "files CPU/JuiceFS": 0.5,
        "files CPU/JuiceFS/warm": 1,
        "files rate/JuiceFS + fsync": 5,
        "files CPU/JuiceFS + fsync": 2.5,
    }


@needs_fuse
@pytest.mark.soak
def test_a_short_run_ends_with_figures(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "bench.files", "--quick", "--folder", os.fspath(tmp_path)]
    said = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert said.returncode == 0, said.stderr
    for operation in OPERATIONS:
        for processes in operation.processes:
            assert said.stdout.count(f"| {row_name(operation, processes)} |") == 2
    assert "rename of a directory of 10,000 keys" in said.stdout
    assert list(tmp_path.iterdir()) == []
