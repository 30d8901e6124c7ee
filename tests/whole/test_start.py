"""What a start loads: a store without a bucket does not pay for what it takes to ask one, nor one that nobody mounts
for what a mount takes, pyfuse3 above all, which need not be there.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from daemons import environment

OF_A_BUCKET = {
    "couchestord.remote.blobs",
    "couchestord.remote.claims",
    "couchestord.remote.folder",
    "couchestord.remote.leftovers",
    "couchestord.remote.opening",
    "couchestord.remote.publisher",
    "couchestord.remote.restoring",
    "couchestord.remote.roots",
    "couchestord.remote.s3",
    "couchestord.remote.uploader",
    "couchestord.store.cleaning",
    "couchestord.store.copies",
    "couchestord.store.evicting",
    "couchestord.store.history",
    "couchestord.store.l3",
    "couchestord.store.ledger",
    "couchestord.store.overflow",
    "couchestord.store.packing",
    "couchestord.store.remake",
}

OF_A_MOUNT = {
    "couchestord.frontends.posix",
    "couchestord.frontends.posix.filesystem",
    "couchestord.frontends.posix.fuse",
    "couchestord.processes.mount",
    "pyfuse3",
}

PROGRAM = """
import sys
from pathlib import Path
import trio
from couchestord.cli import entry
from couchestord import daemon
from couchestord.config import Config, StoreConfig

async def start():
    config = Config(store=StoreConfig(data=Path(sys.argv[1])))
    await daemon.create_store(config, 6)
    async with daemon.open_store(config) as store:
        print(store.health().state)

entry.build_parser()
trio.run(start)
print(*sys.modules)
"""


def test_a_start_loads_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    line = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=environment())
    state, modules = done.stdout.splitlines()
    assert state == "healthy"
    assert sorted((OF_A_BUCKET | OF_A_MOUNT) & set(modules.split())) == []
    names = (OF_A_BUCKET | OF_A_MOUNT) - {"pyfuse3"}
    assert all(find_spec(name) for name in names), "these are their names"
