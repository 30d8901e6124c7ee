"""A backend in memory, which can be told to fail."""

from collections.abc import Callable, Sequence

import trio

from couchestord.errors import BlobExists, NoSuchBlob
from couchestord.remote.backend import Buffer, Page, Stored, check_key


class MemoryBackend:
    """As `Backend` promises; `objects` is what is stored, for tests to look at and to spoil."""

    name = "memory"

    def __init__(self, keys_per_page: int = 3) -> None:
        self.objects: dict[str, bytes] = {}
        self.calls: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda _call, _key: None
        """Called with the name of each call and its key before it takes effect; may raise."""
        self.after: Callable[[str, str], None] = lambda _call, _key: None
        """Called once a call has taken effect; may raise, as when an answer is lost."""
        self._keys_per_page = keys_per_page

    async def put_new(self, key: str, parts: Sequence[Buffer]) -> None:
        await self._begin("put_new", key)
        data = b"".join(parts)
        if self.objects.setdefault(key, data) != data:
            raise BlobExists(key)
        self.after("put_new", key)

    async def get(self, key: str, offset: int, length: int) -> bytes:
        await self._begin("get", key)
        return self._find(key)[offset : offset + length]

    async def size(self, key: str) -> int:
        await self._begin("size", key)
        return len(self._find(key))

    async def list(self, prefix: str, after: str = "") -> Page:
        await self._begin("list", prefix or "x")
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        found = tuple(Stored(key, len(self.objects[key])) for key in keys[: self._keys_per_page])
        return Page(found, len(keys) > len(found))

    async def delete(self, key: str) -> None:
        await self._begin("delete", key)
        self.objects.pop(key, None)
        self.after("delete", key)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _begin(self, call: str, key: str) -> None:
        check_key(key.removesuffix("/"))
        await trio.lowlevel.checkpoint()
        self.calls.append((call, key))
        self.before(call, key)

    def _find(self, key: str) -> bytes:
        if key not in self.objects:
            raise NoSuchBlob(key)
        return self.objects[key]
