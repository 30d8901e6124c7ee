"""The machine's clock."""

from pathlib import Path

from couchestord.clock import SystemClock


def test_what_the_kernel_stamps_is_later(tmp_path: Path) -> None:
    clock, file = SystemClock(), tmp_path / "file"
    for _ in range(1000):
        now_ns = clock.now_ns()
        file.write_bytes(b"")
        assert now_ns < file.stat().st_mtime_ns
