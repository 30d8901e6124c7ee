"""System calls made to fail, the n-th of every thread: nothing wrong is ever read, nothing acknowledged is lost."""

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from pathlib import Path

import pytest
from daemon import QUICK, Node, wait_until
from workload import BUCKET, Expected, fill, step

# A write that makes no progress is a short write's end; a real short one comes from a disk that fills (test_full.py).
FAULTS = {
    "sync-EIO": ("fdatasync", "error=EIO"),
    "sync-ENOSPC": ("fdatasync", "error=ENOSPC"),
    "sync-EROFS": ("fdatasync", "error=EROFS"),
    "sync_dir-EIO": ("fsync", "error=EIO"),
    "write-EIO": ("pwritev,pwritev2", "error=EIO"),
    "write-ENOSPC": ("pwritev,pwritev2", "error=ENOSPC"),
    "write-EROFS": ("pwritev,pwritev2", "error=EROFS"),
    "write-nothing": ("pwritev,pwritev2", "retval=0"),
    "rename-EIO": ("rename,renameat,renameat2", "error=EIO"),
    "unlink-EIO": ("unlink,unlinkat", "error=EIO"),
    "read-EIO": ("pread64,preadv,preadv2", "error=EIO"),
    "sync-killed": ("fdatasync", "signal=KILL"),
    "write-killed": ("pwritev,pwritev2", "signal=KILL"),
}
AT_THE_END = ("rename-EIO",)
"""Renames come with the sums of the catalog's pages, which are stored when the daemon ends as it should."""
SILENT = ("unlink-EIO",)
"""A name that stays is found again at the next start; no word is said about it."""
TOLD = (
    *("EIO", "ENOSPC", "EROFS", "Input/output error", "No space left", "Read-only file system"),
    *("disk I/O error", "database disk image is malformed"),
)
"""How a call that failed is told in the log; the last ones by SQLite, which takes an EIO of a read for damage."""
NOT_LOADED = "cannot read file data"
"""Python itself, or a library of its, could not be read: nothing of ours ran."""
SOME = (
    ("sync-EIO", 3),
    ("write-ENOSPC", 2),
    ("write-EIO", 1),
    ("sync_dir-EIO", 1),
    ("write-nothing", 2),
    ("write-killed", 3),
)
STEPS = 80
NTH = (*range(1, 13), 15, 19, 24, 30, 37)
"""A start makes its calls among the first; what comes later repeats itself."""


def fail_the_nth(node: Node, expected: Expected, folder: Path, fault: str, count: int) -> bool:
    """One run of the daemon in which the n-th such call of each thread fails; False when none did: n is past the last.

    The daemon may refuse, and it may end where it cannot even start; else it is killed, or ended. After it, one that
    nothing happens to must have everything.
    """
    calls, what = FAULTS[fault]
    trace = folder / "trace"
    trace.unlink(missing_ok=True)
    # with --seccomp-bpf, which makes it quick, strace forgets to send signals
    quick = "" if "KILL" in what else "--seccomp-bpf"
    line = f"strace -D -f {quick} -o {trace} -e trace={calls} -e inject={calls}:{what}:when={count}"
    node.prefix = line.split()
    try:
        if node.spawn():
            random_ = random.Random(f"{fault} {count}")
            client = node.s3(timeout_s=20)
            for _ in range(STEPS):
                if not step(expected, client, random_, fault, keys_count=20) and not is_open(node):
                    break
            if is_open(node):
                expected.read_all(client)
        else:
            ended_well = '{"error": ' in node.said() or NOT_LOADED in node.said()
            assert ended_well or "KILL" in what, node.said()[-3000:]
    finally:
        # with workers another process takes the place of the one that was killed
        killed = not node.is_running() or "+++ killed by SIGKILL" in trace.read_text()
        if fault in AT_THE_END:
            node.terminate()
        node.kill()
        node.prefix = []
    # strace writes the end of each thread before it goes itself
    wait_until(lambda: "+++ " in trace.read_text(), 30, trace.read_text)
    found = trace.read_text()
    if "INJECTED" in found and fault not in SILENT:
        assert any(word in node.said() for word in TOLD), f"nobody noticed: {node.said()}"
    happened = killed if "KILL" in what else "INJECTED" in found
    node.start()
    expected.verify(node.s3())
    node.wait_healthy()
    node.stop()
    return happened


def is_open(node: Node) -> bool:
    """False when the daemon is gone, or opens its store again: new threads, in which the n-th call fails once more. Who
    asks meanwhile waits.
    """
    try:
        reasons = node.page("healthz")[1]["reasons"]
    except OSError:
        wait_until(lambda: not node.is_running(), 30, node.said)  # it is ending
        return False
    return not any(why.startswith("starting: ") for why in reasons)


@contextmanager
def store(folder: Path) -> Iterator[tuple[Node, Expected]]:
    """One that holds something, stopped."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    expected = Expected()
    with Node(folder / "data", settings={**QUICK, "COUCHESTORD_STORE__MONITOR_INTERVAL": "0.2 s"}) as node:
        node.start().s3().create_bucket(Bucket=BUCKET)
        fill(expected, node.s3(), "before", (0, 5000, 100_000, 700_000))
        node.stop()
        yield node, expected


def test_the_nth_call_fails(tmp_path: Path) -> None:
    with store(tmp_path) as (node, expected):
        for fault, count in SOME:
            assert fail_the_nth(node, expected, tmp_path, fault, count), f"no call was made to fail: {fault}"


@pytest.mark.soak
@pytest.mark.parametrize("fault", FAULTS)
def test_every_nth_call_fails(tmp_path: Path, fault: str) -> None:
    with store(tmp_path) as (node, expected):
        failed = takewhile(partial(fail_the_nth, node, expected, tmp_path, fault), NTH)
        assert sum(1 for _ in failed), f"no call was made to fail: {fault}"
