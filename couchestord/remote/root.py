"""What a store says of itself outside its node: roots, pieces and runs of its log, as bytes and keys. Pure.

A root names the pieces of one snapshot of the catalog, by their SHA-256, in order: together they are the catalog's file
as it was after a sequence. A run holds records of the log behind it, without their bodies. Whoever has a root, its
pieces, and the runs of the same epoch that go on where it ends, has the catalog.

Both begin with magic 4 | version 2 | reserved 2 | length of the payload 4 | XXH3 8, seeded with the version, of what
stands before it and of the payload: a MessagePack array that says itself whose it is.
"""

import hashlib
import re
import struct
from typing import Final, NamedTuple, TypeVar

import msgspec

from couchestord.errors import Corrupt, UnknownFormat
from couchestord.io.checksum import xxh3_64
from couchestord.remote.backend import Buffer

DIGEST_BYTES: Final = 32
_VERSION: Final = 1
_ROOT_MAGIC: Final = b"CROT"
_RUN_MAGIC: Final = b"CRUN"
_HEAD: Final = struct.Struct("<4sHHI")
_SUM: Final = struct.Struct("<Q")
_PAYLOAD_AT: Final = _HEAD.size + _SUM.size
_PLACED = re.compile(r"(roots|log)/([0-9a-f]{32})/([0-9a-f]{16})-([0-9a-f]{16})")
_PIECE = re.compile(r"pieces/([0-9a-f]{32})/([0-9a-f]{64})")


class RootName(NamedTuple):
    """Which root of which store. Names of a store sort by age: the newest is the last."""

    store_id: bytes
    epoch: int
    """Of the start that put it."""
    sequence: int
    """The catalog is that after this sequence."""

    @property
    def key(self) -> str:
        return f"roots/{self.store_id.hex()}/{self.epoch:016x}-{self.sequence:016x}"


class RunName(NamedTuple):
    """Which run of the log of which store."""

    store_id: bytes
    epoch: int
    """Of the start that put it: within one, a sequence means one record."""
    first: int

    @property
    def key(self) -> str:
        return f"log/{self.store_id.hex()}/{self.epoch:016x}-{self.first:016x}"


class Founding(msgspec.Struct, frozen=True, array_like=True):
    """The default policy as the store was made with it: a catalog that is made from nothing begins with it."""

    k: int
    m: int
    stripe_bytes: int
    min_healthy_shards: int
    created_ns: int


class Root(msgspec.Struct, frozen=True, array_like=True):
    """No pieces: the catalog is an empty one, and all there ever was is in the log."""

    store_id: bytes
    epoch: int
    sequence: int
    made_ns: int
    size_bytes: int
    """Of the pieces together."""
    founding: Founding
    pieces: tuple[bytes, ...] = ()
    """SHA-256 of each."""

    @property
    def name(self) -> RootName:
        return RootName(self.store_id, self.epoch, self.sequence)


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A record of the log: its meta, and what its body sums to. The body itself is elsewhere, or nowhere."""

    meta: bytes
    body_sum: int


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Records `first`, `first` + 1, ... of the log."""

    store_id: bytes
    epoch: int
    first: int
    made_ns: int
    entries: tuple[Entry, ...]

    @property
    def name(self) -> RunName:
        return RunName(self.store_id, self.epoch, self.first)

    @property
    def end(self) -> int:
        """The sequence behind the last."""
        return self.first + len(self.entries)


_T = TypeVar("_T", Root, Run)


def piece_key(store_id: bytes, digest: bytes) -> str:
    """Where the piece of that SHA-256 is kept."""
    return f"pieces/{store_id.hex()}/{digest.hex()}"


def digest_of(piece: Buffer) -> bytes:
    """SHA-256. For any thread."""
    return hashlib.sha256(piece).digest()


def parse_piece_key(key: str) -> bytes | None:
    """The digest in a piece's key; None for a key that is none."""
    match = _PIECE.fullmatch(key)
    return bytes.fromhex(match[2]) if match else None


def parse_root_key(key: str) -> RootName | None:
    """None for a key that is no root's."""
    match = _PLACED.fullmatch(key)
    if match is None or match[1] != "roots":
        return None
    return RootName(bytes.fromhex(match[2]), int(match[3], 16), int(match[4], 16))


def parse_run_key(key: str) -> RunName | None:
    """None for a key that is no run's."""
    match = _PLACED.fullmatch(key)
    if match is None or match[1] != "log":
        return None
    return RunName(bytes.fromhex(match[2]), int(match[3], 16), int(match[4], 16))


def pack_root(root: Root) -> bytes:
    assert all(len(digest) == DIGEST_BYTES for digest in root.pieces)
    return _pack(_ROOT_MAGIC, root)


def unpack_root(name: RootName, data: bytes) -> Root:
    """Raises Corrupt when it is not that root, UnknownFormat when a newer program wrote it."""
    root = _unpack(_ROOT_MAGIC, name.key, data, Root)
    if root.name != name or any(len(digest) != DIGEST_BYTES for digest in root.pieces):
        raise Corrupt(f"{name.key} is another root")
    return root


def pack_run(run: Run) -> bytes:
    assert run.entries
    return _pack(_RUN_MAGIC, run)


def unpack_run(name: RunName, data: bytes) -> Run:
    """Raises Corrupt when it is not that run, UnknownFormat when a newer program wrote it."""
    run = _unpack(_RUN_MAGIC, name.key, data, Run)
    if run.name != name:
        raise Corrupt(f"{name.key} is another run of the log")
    return run


def _pack(magic: bytes, value: Root | Run) -> bytes:
    payload = msgspec.msgpack.encode(value)
    head = _HEAD.pack(magic, _VERSION, 0, len(payload))
    return head + _SUM.pack(xxh3_64(head + payload, _VERSION)) + payload


def _unpack(magic: bytes, key: str, data: bytes, kind: type[_T]) -> _T:
    if len(data) < _PAYLOAD_AT:
        raise Corrupt(f"{key} is cut short")
    found, version, _, _ = _HEAD.unpack_from(data)
    payload = data[_PAYLOAD_AT:]
    if found != magic:
        raise Corrupt(f"{key} has no head of its own")
    if xxh3_64(data[: _HEAD.size] + payload, version) != _SUM.unpack_from(data, _HEAD.size)[0]:
        raise Corrupt(f"{key} fails its checksum")
    if version > _VERSION:
        raise UnknownFormat(f"{key} has format {version}; this program reads {_VERSION}. Use a newer couchestord.")
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except msgspec.DecodeError as error:
        raise Corrupt(f"{key} does not decode: {error}") from error
