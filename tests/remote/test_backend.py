"""What every backend does alike: one suite, run on each of them."""

import random
from contextlib import aclosing

import pytest
import trio
from backends import OpenBackend
from memory_backend import MemoryBackend

from couchestord.errors import BlobExists, InvalidArgument, NoSuchBlob, RemoteRefused
from couchestord.remote.backend import Backend, Page, all_objects

MIB = 1 << 20


async def keys_of(backend: Backend, prefix: str = "") -> list[tuple[str, int]]:
    """All of a listing, page by page."""
    found: list[tuple[str, int]] = []
    while True:
        page = await backend.list(prefix, found[-1][0] if found else "")
        assert page.objects or not page.more
        found += [(stored.key, stored.size_bytes) for stored in page.objects]
        assert len(found) == len(set(found)), "a page begins where one before it did"
        if not page.more:
            return found


async def test_reads_back_what_was_stored(open_backend: OpenBackend) -> None:
    async with open_backend() as backend:
        await backend.put_new("a/b/c", [b"hello ", bytearray(b"wide "), b"", memoryview(b"-world-")[1:-1]])
        assert await backend.size("a/b/c") == 16
        assert await backend.get("a/b/c", 0, 100) == b"hello wide world"


async def test_ranges(open_backend: OpenBackend) -> None:
    async with open_backend() as backend:
        await backend.put_new("x", [b"0123456789"])
        assert await backend.get("x", 3, 4) == b"3456"
        assert await backend.get("x", 9, 1) == b"9"
        assert await backend.get("x", 8, 100) == b"89"
        assert await backend.get("x", 10, 1) == b""
        assert await backend.get("x", 1000, 1) == b""
        assert await backend.get("x", 2, 0) == b""
        for offset, length in ((-1, 1), (0, -1)):
            with pytest.raises(InvalidArgument):
                await backend.get("x", offset, length)


async def test_an_empty_object(open_backend: OpenBackend) -> None:
    async with open_backend() as backend:
        await backend.put_new("empty", [])
        assert await backend.size("empty") == 0
        assert await backend.get("empty", 0, 10) == b""
        await backend.put_new("empty", [b""])
        with pytest.raises(BlobExists):
            await backend.put_new("empty", [b"x"])


async def test_what_is_there_stays(open_backend: OpenBackend) -> None:
    async with open_backend() as backend:
        await backend.put_new("k/1", [b"first"])
        await backend.put_new("k/1", [b"fir", b"st"])
        for other in (b"other", b"firs", b"first!", b""):
            with pytest.raises(BlobExists):
                await backend.put_new("k/1", [other])
        assert await backend.get("k/1", 0, 100) == b"first"


async def test_of_many_at_once_one_wins(open_backend: OpenBackend) -> None:
    won: list[bytes] = []

    async def put(backend: Backend, data: bytes) -> None:
        try:
            await backend.put_new("race/k", [data])
        except BlobExists:
            return
        won.append(data)

    async with open_backend() as backend:
        async with trio.open_nursery() as nursery:
            for index in range(8):
                nursery.start_soon(put, backend, bytes([index]) * 1000)
        assert len(won) == 1
        assert await backend.get("race/k", 0, 2000) == won[0]


async def test_large_objects_at_once(open_backend: OpenBackend) -> None:
    data = {f"big/{index}": random.Random(index).randbytes(3 * MIB + index) for index in range(4)}

    async def there_and_back(backend: Backend, key: str) -> None:
        view = memoryview(data[key])
        await backend.put_new(key, [view[:MIB], view[MIB : 2 * MIB + 1], view[2 * MIB + 1 :]])
        assert await backend.get(key, 0, 4 * MIB) == data[key]
        assert await backend.get(key, MIB - 5, MIB + 10) == data[key][MIB - 5 : 2 * MIB + 5]

    async with open_backend() as backend, trio.open_nursery() as nursery:
        for key in data:
            nursery.start_soon(there_and_back, backend, key)


async def test_parts_of_any_length(open_backend: OpenBackend) -> None:
    rng = random.Random(4)
    short = [rng.choice([8, 500, 16_384]) for _ in range(200)]
    lengths = [0, 1, 300_000, 8, 262_144, 262_143, 2, 0, *short, 600_000, 3]
    parts = [memoryview(rng.randbytes(length)) for length in lengths]
    async with open_backend() as backend:
        await backend.put_new("a", parts)
        await backend.put_new("a", parts)
        assert await backend.get("a", 0, sum(lengths) + 1) == b"".join(parts)
        with pytest.raises(BlobExists):
            await backend.put_new("a", [*parts[:-1], b"no!"])


async def test_what_is_not_there(open_backend: OpenBackend) -> None:
    async with open_backend() as backend:
        await backend.put_new("a/b", [b"x"])
        for key in ("c", "a", "a/c", "a/b2", "a/bb/c"):
            with pytest.raises(NoSuchBlob):
                await backend.get(key, 0, 1)
            with pytest.raises(NoSuchBlob):
                await backend.size(key)
            await backend.delete(key)
        assert await keys_of(backend) == [("a/b", 1)]


async def test_a_deleted_object_is_gone_and_its_key_free(open_backend: OpenBackend) -> None:
    async with open_backend() as backend:
        await backend.put_new("a/b", [b"x"])
        await backend.delete("a/b")
        with pytest.raises(NoSuchBlob):
            await backend.get("a/b", 0, 1)
        assert await keys_of(backend) == []
        await backend.put_new("a/b", [b"other"])
        assert await backend.get("a/b", 0, 9) == b"other"


async def test_lists_by_prefix_and_page_by_page(open_backend: OpenBackend) -> None:
    keys = ["a/b", "a/b-1", "a/b.c", "a/b0", "a/c/1", "a/c/2", "a-b/c", "a0", "b/a", "z_"]
    async with open_backend() as backend:
        for size, key in enumerate(random.Random(5).sample(keys, len(keys))):
            await backend.put_new(key, [bytes(size)])
        found = await keys_of(backend)
        assert sorted(key for key, _ in found) == sorted(keys)
        assert sorted(size for _, size in found) == list(range(len(keys)))
        assert len((await backend.list("")).objects) == 3, "pages of these backends have three keys"
        for prefix in ("a/", "a/b", "a/c/", "a", "z_", "q/"):
            wanted = [key for key in sorted(keys) if key.startswith(prefix)]
            assert sorted(key for key, _ in await keys_of(backend, prefix)) == wanted


async def test_a_listing_is_asked_for_as_far_as_it_is_read() -> None:
    backend = MemoryBackend(keys_per_page=2)
    for number in range(5):
        await backend.put_new(f"a/{number}", [b"x"])
    asked = [0, 0, 1, 1, 2]
    async with aclosing(all_objects(backend, "a/")) as found:
        async for stored in found:
            lists = [call for call, _ in backend.calls].count("list")
            assert lists == 1 + asked.pop(0), stored
    assert asked == []


async def test_a_listing_that_begins_anew_with_each_page_is_refused() -> None:
    class Forgetful(MemoryBackend):
        async def list(self, prefix: str, after: str = "") -> Page:
            return await super().list(prefix)

    backend = Forgetful(keys_per_page=2)
    for number in range(5):
        await backend.put_new(f"a/{number}", [b"x"])
    with trio.fail_after(30), pytest.raises(RemoteRefused):
        async for _ in all_objects(backend, "a/"):
            pass


async def test_keys_of_one_length_in_one_folder_come_in_order(open_backend: OpenBackend) -> None:
    async with open_backend() as backend:
        for number in (5, 1, 4, 2, 3, 0, 6):
            await backend.put_new(f"box/{number:04x}", [b"x"])
        assert [key for key, _ in await keys_of(backend, "box/")] == [f"box/{number:04x}" for number in range(7)]


@pytest.mark.parametrize(
    "key", ["", "/", "a/", "/a", "a//b", "..", "a/../b", ".new", "A", "a b", "ä", "a\n", "x" * 201]
)
async def test_other_keys_are_refused(open_backend: OpenBackend, key: str) -> None:
    async with open_backend() as backend:
        for call in (backend.put_new(key, [b""]), backend.get(key, 0, 1), backend.size(key), backend.delete(key)):
            with pytest.raises(InvalidArgument):
                await call
        with pytest.raises(InvalidArgument):
            await backend.list(key + "//")
