"""Backends for tests, each with nothing in it and three keys to a page of a listing."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from couchestord.clock import SystemClock
from couchestord.remote.backend import Backend
from couchestord.remote.folder import FolderBackend

OpenBackend = Callable[[], AbstractAsyncContextManager[Backend]]
KEYS_PER_PAGE = 3


@pytest.fixture(params=["folder"])
def backends(request: pytest.FixtureRequest, tmp_path: Path) -> OpenBackend:
    """Opens the backend; every time the same one."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Backend]:
        folder = tmp_path / "bucket"
        folder.mkdir(exist_ok=True)
        backend = FolderBackend(folder, SystemClock().random_bytes, keys_per_page=KEYS_PER_PAGE)
        try:
            yield backend
        finally:
            await backend.aclose()

    return opened
