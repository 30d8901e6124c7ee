"""Backends that are not fit, and copies of a store that run at the same time."""

from collections.abc import Sequence
from contextlib import suppress

import pytest
import trio
from backends import OpenBackend
from memory_backend import MemoryBackend

from couchestord.clock import SystemClock
from couchestord.errors import BlobExists, RemoteDenied, RemoteRefused, RemoteUnavailable
from couchestord.remote.backend import Buffer, Page
from couchestord.remote.claims import Claim, Gate, try_backend

RANDOM = SystemClock().random_bytes
STORE = bytes(range(16))


async def test_a_good_backend_passes_and_keeps_nothing(open_backend: OpenBackend) -> None:
    async with open_backend() as backend:
        await try_backend(backend, RANDOM)
        assert (await backend.list("")).objects == ()


class Replaces(MemoryBackend):
    """As a server that ignores If-None-Match."""

    async def put_new(self, key: str, parts: Sequence[Buffer]) -> None:
        self.objects[key] = b"".join(parts)


class ReplacesAndDenies(MemoryBackend):
    """As one that refuses the second put after it took it."""

    async def put_new(self, key: str, parts: Sequence[Buffer]) -> None:
        is_new = key not in self.objects
        self.objects[key] = b"".join(parts)
        if not is_new:
            raise BlobExists(key)


class Forgets(MemoryBackend):
    async def list(self, prefix: str, after: str = "") -> Page:
        return Page((), False)


class Keeps(MemoryBackend):
    async def delete(self, key: str) -> None:
        return None


@pytest.mark.parametrize("kind", [Replaces, ReplacesAndDenies, Forgets, Keeps])
async def test_one_that_breaks_its_promise_is_refused(kind: type[MemoryBackend]) -> None:
    with pytest.raises(RemoteRefused):
        await try_backend(kind(), RANDOM)


async def test_one_that_fails_leaves_nothing_behind() -> None:
    backend = MemoryBackend()

    def fail(call: str, _key: str) -> None:
        if call == "list":
            raise RemoteUnavailable("planted")

    backend.before = fail
    with pytest.raises(RemoteUnavailable):
        await try_backend(backend, RANDOM)
    assert backend.objects == {}


async def test_starts_follow_each_other() -> None:
    backend = MemoryBackend()
    for epoch in (1, 2, 9, 10, 300):
        claim = Claim(backend, STORE, epoch)
        await claim.take(RANDOM)
        await claim.check()
    assert list(backend.objects) == [f"claims/{STORE.hex()}/{300:016x}"]
    await Claim(backend, bytes(16), 1).take(RANDOM)


async def test_a_claim_that_cannot_be_deleted_keeps_no_later_one_out() -> None:
    backend = MemoryBackend()
    await Claim(backend, STORE, 1).take(RANDOM)

    def refuse(call: str, key: str) -> None:
        if call == "delete" and key.endswith("1"):
            raise RemoteDenied(key)

    backend.before = refuse
    for epoch in (2, 3, 4):
        claim = Claim(backend, STORE, epoch)
        await claim.take(RANDOM)
        await claim.check()
    assert [int(key[-16:], 16) for key in backend.objects] == [1, 4]


async def test_a_copy_in_the_same_epoch_is_refused() -> None:
    backend = MemoryBackend()
    claim = Claim(backend, STORE, 5)
    await claim.take(RANDOM)
    with pytest.raises(RemoteRefused, match="copy of this store"):
        await Claim(backend, STORE, 5).take(RANDOM)
    await claim.check()


async def test_of_copies_in_different_epochs_the_older_one_stops() -> None:
    backend = MemoryBackend()
    older, newer = Claim(backend, STORE, 5), Claim(backend, STORE, 16)
    await older.take(RANDOM)
    await newer.take(RANDOM)
    with pytest.raises(RemoteRefused):
        await older.check()
    with pytest.raises(RemoteRefused):
        await Claim(backend, STORE, 6).take(RANDOM)
    await newer.check()


async def test_a_newer_claim_that_comes_late_stays() -> None:
    backend = MemoryBackend()
    newer = f"claims/{STORE.hex()}/{6:016x}"

    def come(call: str, _key: str) -> None:
        if call == "list" and [name for name, _ in backend.calls].count("list") == 2:
            backend.objects[newer] = b"x"

    backend.before = come
    claim = Claim(backend, STORE, 5)
    await claim.take(RANDOM)
    assert newer in backend.objects
    with pytest.raises(RemoteRefused):
        await claim.check()


async def test_two_that_claim_at_once_are_never_both_content() -> None:
    """Tasks take turns by chance: whoever is older finds out when it takes the claim, or when it looks again."""
    for _ in range(100):
        backend = MemoryBackend()
        content: set[int] = set()

        async def take(epoch: int, backend: MemoryBackend = backend, content: set[int] = content) -> None:
            with suppress(RemoteRefused):
                await Claim(backend, STORE, epoch).take(RANDOM)
                content.add(epoch)

        async with trio.open_nursery() as nursery:
            for epoch in (5, 6):
                nursery.start_soon(take, epoch)
        assert 6 in content
        with pytest.raises(RemoteRefused):
            await Claim(backend, STORE, 5).check()


class Node:
    """What is left of a node over its starts."""

    def __init__(self, backend: MemoryBackend, epoch: int = 0, claims: Sequence[bytes] = ()) -> None:
        self.backend = backend
        self.epoch = epoch
        self.known = tuple(claims)

    def claims(self) -> Sequence[bytes]:
        return self.known

    async def keep(self, claims: Sequence[bytes]) -> None:
        await trio.lowlevel.checkpoint()
        self.known = tuple(claims)

    def copy(self) -> "Node":
        return Node(self.backend, self.epoch, self.known)

    async def start(self) -> Gate:
        self.epoch += 1
        gate = Gate(self.backend, STORE, self.epoch, RANDOM, self)
        await gate.check()
        return gate


async def test_a_node_that_was_replaced_never_takes_the_bucket_back() -> None:
    """Its epochs grow with each start, beyond those of the one in its place."""
    backend = MemoryBackend()
    old = Node(backend, 5)
    await old.start()
    new = Node(backend, 6)
    await Claim(backend, STORE, new.epoch + 1).take(RANDOM)  # as it is made anew
    new.epoch += 1
    gate = await new.start()
    for _ in range(5):
        with pytest.raises(RemoteRefused, match="copy of this store"):
            await old.start()
        await gate.check()
    assert old.epoch > new.epoch
    with pytest.raises(RemoteRefused, match=f"delete claims/{STORE.hex()}/{new.epoch:016x} there"):
        await old.start()
    new.epoch = old.epoch + 1
    await new.start()
    (left,) = backend.objects
    del backend.objects[left]
    await old.start()


async def test_of_two_copies_one_has_the_bucket_however_often_they_start() -> None:
    backend = MemoryBackend()
    one = Node(backend, 5)
    await one.start()
    two = one.copy()
    gate = await two.start()
    for _ in range(5):
        with pytest.raises(RemoteRefused):
            await one.start()
        await gate.check()


@pytest.mark.parametrize("call", ["put_new", "list", "get", "delete"])
@pytest.mark.parametrize("is_done", [False, True])
async def test_starts_that_are_cut_off_at_their_claim_keep_no_later_one_out(call: str, is_done: bool) -> None:
    backend = MemoryBackend()
    node = Node(backend)
    await node.start()
    for turn in range(40):

        def fail(name: str, key: str) -> None:
            if name == call and key.startswith("claims/"):
                raise RemoteUnavailable("planted")

        if turn % 20 < 18:
            setattr(backend, "after" if is_done else "before", fail)
        with suppress(RemoteUnavailable):
            await node.start()
        backend.before = backend.after = lambda _call, _key: None
    await node.start()
    assert len(node.known) <= 16
