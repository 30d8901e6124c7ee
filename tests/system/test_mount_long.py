"""Files of which more is written than a mount keeps in memory.

Seen to fail with the bugs of `planted_bugs.py` that name a test of this file.
"""

import time
from pathlib import Path

import pytest
from daemon import wait_until
from direct_writer import mebibyte
from mounted import mounted_box, needs_mounts, orphans
from telling import Telling
from workload import read

from couchestord.frontends.posix.openfiles import DIRTY_S_MAX

pytestmark = needs_mounts


@pytest.mark.parametrize("workers_count", [0, 2])
def test_a_long_file_is_seen_when_it_is_closed(tmp_path: Path, workers_count: int) -> None:
    """Over kill -9 of the daemon. Until then S3 has what was there before."""
    with mounted_box(tmp_path, workers_count) as (node, mount):
        path = mount.folder / "long"
        path.write_bytes(b"before")
        began_s = time.monotonic()
        with Telling("direct_writer.py", path) as writer:
            writer.ask("80")
            wait_until(lambda: orphans(node) == 1, 20, node.status)
            time.sleep(1.5)  # what nobody holds would be freed
            node.kill()
            node.start()
            writer.ask("30")
            time.sleep(1.5)
            if time.monotonic() < began_s + 0.8 * DIRTY_S_MAX:
                assert read(node.s3(), "box", "long") == b"before"
                assert orphans(node) == 1
            assert path.stat().st_size == 110 << 20
            writer.finish()
        expected = b"".join(map(mebibyte, range(110)))
        assert read(node.s3(), "box", "long") == expected
        assert path.read_bytes() == expected
