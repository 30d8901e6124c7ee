"""A disk that stops answering (fsfreeze) while it is written to: the store goes on without it, and has it back."""

from pathlib import Path

from daemon import PREFERS_UNCACHED, QUICK, Node, wait_until
from loops import LoopStore, need
from workload import BUCKET, Expected, Load

SETTINGS = {
    **QUICK,
    **PREFERS_UNCACHED,
    "COUCHESTORD_STORE__DISK_DEADLINE": "1 s",
    "COUCHESTORD_STORE__SEGMENT_SIZE": "16 MiB",
}


def test_puts_go_on_while_a_disk_is_frozen(tmp_path: Path) -> None:
    need("mkfs.ext4", "losetup", "mount", "fsfreeze")
    expected = Expected()
    with (
        LoopStore(tmp_path, "ext4", 256 << 20) as loops,
        Node(loops.data, settings=SETTINGS, log=tmp_path / "log") as node,
    ):
        node.start().s3().create_bucket(Bucket=BUCKET)
        frozen = loops.disks[2]
        try:
            with Load(expected, node.s3(timeout_s=60), 7) as load:
                load.wait_for(30)
                frozen.freeze()
                load.progressed()
                load.wait_for(100)
            assert expected.failed_count == 0, expected.first_failure
            wait_until(lambda: node.page("healthz")[1]["state"] == "degraded", 30, node.said)
            assert node.page("readyz")[0] == 200
            expected.verify(node.s3())
            threads = len(list(Path(f"/proc/{node.pid}/task").iterdir()))
            assert threads < 80, "hung calls are bounded"
        finally:
            frozen.thaw()
        node.wait_healthy()
        expected.verify(node.s3())
        node.restart()
        expected.verify(node.s3())
