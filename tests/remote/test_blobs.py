"""Blobs in a backend: what `put` says is there, is; what is read is what was put, or an error."""

import random

import pytest
from memory_backend import MemoryBackend

from couchestord.errors import BlobExists, Corrupt, NoSuchBlob, RemoteUnavailable, Unavailable
from couchestord.remote.blob import BlobName, BlobPacker, Held
from couchestord.remote.blobs import Blobs

STORE = bytes(range(16))
MIB = 1 << 20


def contents(seed: int, count: int = 5, most: int = 300_000) -> dict[int, bytes]:
    source = random.Random(seed)
    return {extent: source.randbytes(source.randrange(1, most)) for extent in source.sample(range(1000), count)}


def pack(data: dict[int, bytes]) -> BlobPacker:
    packer = BlobPacker(64 * MIB)
    for extent, bytes_ in data.items():
        assert packer.add(extent, bytes_)
    return packer


async def put(blobs: Blobs, name: BlobName, data: dict[int, bytes]) -> dict[int, Held]:
    return {held.extent: held for held in await blobs.put(name, pack(data))}


async def test_what_is_put_is_read() -> None:
    backend = MemoryBackend()
    blobs = Blobs(backend, STORE)
    name, data = blobs.name(2, 9), contents(1)
    held = await put(blobs, name, data)
    assert {extent: one.length for extent, one in held.items()} == {extent: len(it) for extent, it in data.items()}
    for extent, one in held.items():
        assert await blobs.read(name, one, 0, one.length) == data[extent]
        middle = one.length // 2
        assert await blobs.read(name, one, middle, 1) == data[extent][middle : middle + 1]
    assert await blobs.index(name) == tuple(held.values())
    assert list(backend.objects) == [name.key]


async def test_an_index_of_many_extents_is_read_whole() -> None:
    blobs = Blobs(MemoryBackend(), STORE)
    name = blobs.name(1, 1)
    data = {extent: extent.to_bytes(3, "big") for extent in range(5000)}
    held = await put(blobs, name, data)
    assert await blobs.read(name, held[4999], 0, 3) == data[4999]


async def test_what_lies_near_is_read_together() -> None:
    backend = MemoryBackend()
    blobs = Blobs(backend, STORE)
    name = blobs.name(1, 1)
    data = {extent: random.Random(extent).randbytes(9000) for extent in range(1500)} | {
        5000: bytes(9 * MIB),
        5001: b"x",
    }
    held = await put(blobs, name, data)
    asked: list[int] = []
    get = backend.get

    async def watched(key: str, offset: int, length: int) -> bytes:
        asked.append(length)
        return await get(key, offset, length)

    backend.get = watched  # type: ignore[method-assign]

    async def read_all(*extents: int) -> None:
        found: dict[int, bytes] = {}
        async for one, piece in blobs.read_all(name, [held[extent] for extent in extents]):
            found[one.extent] = found.get(one.extent, b"") + piece
        assert found == {extent: data[extent] for extent in extents}

    await read_all(*range(0, 1500, 5))
    assert len(asked) <= 5, "what lies between is read with them"
    assert max(asked) < 4.1 * MIB
    asked.clear()
    await read_all(0, 1, 1000, 1001)
    assert len(asked) == 2
    assert sum(asked) < 40_000, "but not so much of it"
    asked.clear()
    await read_all(1499, 5000, 5001)
    assert len(asked) == 4
    assert max(asked) < 4.1 * MIB
    await read_all()


async def test_reading_back_takes_few_requests_and_meets_every_byte() -> None:
    backend = MemoryBackend()
    blobs = Blobs(backend, STORE)
    name = blobs.name(1, 1)
    held = await put(blobs, name, contents(3, count=400, most=60_000) | {5000: bytes(9 * MIB)})
    whole = backend.objects[name.key]
    assert len(backend.calls) < 15
    for at in (*random.Random(1).sample(range(len(whole)), 40), len(whole) - 1, len(whole) - 9, held[5000].offset):
        spoilt = bytearray(whole)
        spoilt[at] ^= 1
        backend.objects[name.key] = bytes(spoilt)
        with pytest.raises(Corrupt):
            await blobs.verify(name, await blobs.index(name))
    backend.objects[name.key] = whole
    await blobs.verify(name, await blobs.index(name))


@pytest.mark.parametrize("what", ["a byte", "the index", "the end", "all"])
async def test_a_backend_that_keeps_something_else_is_noticed_by_put(what: str) -> None:
    backend = MemoryBackend()
    blobs = Blobs(backend, STORE)
    name = blobs.name(1, 1)

    def spoil(call: str, key: str) -> None:
        if call == "size":
            kept = bytearray(backend.objects[key])
            if what == "all":
                kept = bytearray(len(kept))
            elif what == "the end":
                del kept[-1]
            else:
                kept[-9 if what == "a byte" else 60] ^= 1
            backend.objects[key] = bytes(kept)

    backend.before = spoil
    with pytest.raises(Corrupt):
        await blobs.put(name, pack(contents(2)))


async def test_bytes_are_read_back_only_when_that_is_wanted() -> None:
    backend = MemoryBackend()
    blobs = Blobs(backend, STORE)
    name = blobs.name(1, 1)
    await blobs.put(name, pack({1: bytes(9 * MIB)}), read_back=False)
    assert [call for call, _ in backend.calls] == ["put_new", "size", "get"]


async def test_a_name_is_given_to_one_blob() -> None:
    blobs = Blobs(MemoryBackend(), STORE)
    name = blobs.name(1, 1)
    await put(blobs, name, {1: b"one"})
    await put(blobs, name, {1: b"one"})
    with pytest.raises(BlobExists):
        await put(blobs, name, {1: b"two"})
    with pytest.raises(BlobExists):
        await put(blobs, name, {2: b"one"})


async def test_names_that_are_taken_are_left_for_others_a_few_times(caplog: pytest.LogCaptureFixture) -> None:
    backend = MemoryBackend()
    blobs = Blobs(backend, STORE)
    begun: list[BlobName] = []

    async def begin() -> BlobName:
        begun.append(blobs.name(1, len(begun)))
        return begun[-1]

    for number in (0, 1):
        backend.objects[blobs.name(1, number).key] = b"of a copy of this store"
    data = contents(6)
    name, index = await blobs.begin_and_put(begin, pack(data))
    assert name == begun[2] == blobs.name(1, 2)
    for held in index:
        assert await blobs.read(name, held, 0, held.length) == data[held.extent]
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    for number in range(3, 99):
        backend.objects[blobs.name(1, number).key] = b"of a copy of this store"
    with pytest.raises(Unavailable, match="taken again"):
        await blobs.begin_and_put(begin, pack(data))
    assert len(begun) == 3 + 4
    assert set(backend.objects.values()) == {b"of a copy of this store", backend.objects[name.key]}


async def test_after_a_failure_at_any_call_it_is_put_again() -> None:
    data = contents(4)
    for failing in range(1, 99):
        backend = MemoryBackend()
        blobs = Blobs(backend, STORE)
        name = blobs.name(1, 1)
        calls = iter(range(1, 999))

        def fail(call: str, _key: str, calls: object = calls, failing: int = failing) -> None:
            if next(calls) == failing:  # type: ignore[call-overload]
                raise RemoteUnavailable(call)

        backend.before = fail
        try:
            await put(blobs, name, data)
            assert failing > 3
            return
        except RemoteUnavailable:
            held = await put(blobs, name, data)
        for extent, one in held.items():
            assert await blobs.read(name, one, 0, one.length) == data[extent]
    raise AssertionError("it never came through")


async def test_names_are_those_of_the_store() -> None:
    backend = MemoryBackend()
    blobs, others = Blobs(backend, STORE), Blobs(backend, bytes(16))
    names = [blobs.name(epoch, number) for epoch, number in ((1, 7), (1, 300), (2, 1), (16, 0))]
    for name in reversed(names):
        await put(blobs, name, {1: b"x"})
    await put(others, others.name(1, 1), {1: b"x"})
    backend.objects[f"blobs/{STORE.hex()}/notes"] = b"x"
    assert await blobs.names() == names
    await blobs.delete(names[0])
    await blobs.delete(names[0])
    assert await blobs.names() == names[1:]
    with pytest.raises(NoSuchBlob):
        await blobs.index(names[0])
