"""What a running server costs, read from /proc: CPU time, memory, system calls that sync; and where it runs."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20


def _stat(pid: int) -> list[str]:
    # the name in parentheses may hold spaces
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                parents[int(entry)] = int(_stat(int(entry))[1])
    found = [pid]
    for one in found:
        found.extend(child for child, parent in parents.items() if parent == one)
    return found


def cpu_s(pid: int) -> float:
    """CPU time, user and system, of a process with its threads, its descendants, and children that have ended."""
    total_s = 0.0
    for one in tree(pid):
        with suppress(OSError):
            ended_ticks = sum(map(int, _stat(one)[13:15]))
            total_s += time.clock_gettime(_cpu_clock(one)) + ended_ticks / TICKS_PER_SECOND
    return total_s


def _cpu_clock(pid: int) -> int:
    """As clock_getcpuclockid(3) has it: nanoseconds, where /proc/PID/stat has ticks of 10 ms."""
    return ~pid << 3 | 2


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where: servers on one core and the client on another, so that neither takes time from the other. With a
    single core all are the same.
    """

    server: frozenset[int]
    client: frozenset[int]
    all: frozenset[int]

    @classmethod
    def here(cls) -> "Cores":
        cores = sorted(os.sched_getaffinity(0))
        return cls(frozenset(cores[:1]), frozenset(cores[-1:]), frozenset(cores))


def pin(pid: int, cores: frozenset[int]) -> None:
    """Keeps the threads of a process and of its descendants on `cores`, those that they start later, too."""
    for one in tree(pid):
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{one}/task"):
                os.sched_setaffinity(int(thread), cores)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants; what they share counts once for each."""
    return _status_bytes(pid, "VmRSS")


def peak_resident_bytes(pid: int) -> int:
    """The most that was resident since `forget_peak`, or since the start."""
    return _status_bytes(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    for one in tree(pid):
        Path(f"/proc/{one}/clear_refs").write_text("5")


def _status_bytes(pid: int, field: str) -> int:
    total = 0
    for one in tree(pid):
        with suppress(OSError):
            found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{one}/status").read_text(), re.MULTILINE)
            total += int(found[1]) * 1024 if found else 0
    return total


def disk_bytes(folder: Path) -> int:
    """What `du` says of a folder."""
    return int(
        subprocess.run(["du", "-s", "-B1", folder], capture_output=True, text=True, check=True).stdout.split()[0]
    )


@contextmanager
def counted_syncs(pid: int) -> Iterator[dict[str, int]]:
    """Counts a process's syncs by strace. The dictionary is filled when the block ends: system call to count."""
    counts: dict[str, int] = {}
    line = ["strace", "-f", "-q", "-c", "-e", "trace=fdatasync,fsync,sync_file_range,msync,sync,syncfs", "-p", str(pid)]
    tracer = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    time.sleep(1)
    try:
        yield counts
    finally:
        tracer.send_signal(signal.SIGINT)
        table = tracer.communicate()[1]
    for row in table.splitlines():
        found = re.match(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", row)
        if found and found[2] != "total":
            counts[found[2]] = int(found[1])


def stop(process: subprocess.Popen[str], timeout_s: float = 60) -> None:
    """SIGTERM, then SIGKILL to one that does not end. Closes the pipe from its output."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()
