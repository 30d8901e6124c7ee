"""What a start loads: a store without a bucket does not pay for what it takes to ask one."""

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

PROGRAM = """
import sys
from pathlib import Path
import trio
import couchestord.cli
from couchestord import daemon
from couchestord.config import Config, StoreConfig

async def start():
    config = Config(store=StoreConfig(data=Path(sys.argv[1])))
    await daemon.create_store(config, 6)
    async with daemon.open_store(config) as store:
        print(store.health().state)

trio.run(start)
print(*sys.modules)
"""


def test_a_store_without_a_bucket_loads_nothing_that_asks_one(tmp_path: Path) -> None:
    line = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=environment())
    state, modules = done.stdout.splitlines()
    assert state == "healthy"
    assert sorted(OF_A_BUCKET & set(modules.split())) == []
    assert all(find_spec(name) for name in OF_A_BUCKET), "these are their names"
