"""The catalog that the tests of this folder decide on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from catalog_check import check_catalog
from decide_rig import DecideRig

from couchestord.io.catalog.catalog import dump


@pytest.fixture
def bare_rig(tmp_path: Path) -> Iterator[DecideRig]:
    """Nothing is in it. Whatever a test did, the catalog is sound at its end, and the log makes the same one."""
    made = DecideRig(tmp_path)
    yield made
    check_catalog(made.path)
    assert dump(made.replay(tmp_path / "again.sqlite")) == dump(made.path)
    made.close()


@pytest.fixture
def rig(bare_rig: DecideRig) -> DecideRig:
    """With a bucket named `bucket`."""
    bare_rig.bucket()
    return bare_rig
