"""What a store's process and those that read beside it tell each other. Pure.

Both ends are forked from one program: nothing of this is kept, and there are no versions. Requests to the writer go by
the name of their class, and only those that a front end makes.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from couchestord import errors
from couchestord.ec.choice import Preference
from couchestord.io import filerequests as fr
from couchestord.io import requests as rq
from couchestord.io.catalog.changes import Changes
from couchestord.io.catalog.files import NodeRow
from couchestord.io.superblock import Identity, Slot
from couchestord.model import BucketInfo, DeleteResult, ObjectInfo, PartInfo, UploadInfo
from couchestord.store.beside import ReaderStats


class _Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages. `id`, where there is one, is said again by the answer."""


# -- from a reader ---------------------------------------------------------------------------------------------------


class Hello(_Message, frozen=True, tag=1):
    """A reader is ready to read: nothing is freed any more that it may see from then on, as it has said in the page.
    Answered with `Opened`, once there is an open store.
    """

    id: int
    pid: int


class Submit(_Message, frozen=True, tag=2):
    """A request to the writer."""

    id: int
    kind: str
    request: msgspec.Raw


class FindRecord(_Message, frozen=True, tag=3):
    """Where does a record of the journal lie? `count` records of the file (epoch, first) are known. Answered with
    `Places`.
    """

    id: int
    sequence: int
    epoch: int
    first: int
    count: int


class Hold(_Message, frozen=True, tag=4):
    """Keep these segments, and the journal from these records on, until they are released. Answered with None."""

    id: int
    segments: list[int]
    records: list[int]


class Release(_Message, frozen=True, tag=5):
    segments: list[int]
    records: list[int]


class Damage(_Message, frozen=True, tag=6):
    """A shard could not be read."""

    segment: int
    index: int
    disk: int


class ReplicaDamage(_Message, frozen=True, tag=9):
    """A copy of a journal file could not be read."""

    path: str
    disk: int


class CopyDamage(_Message, frozen=True, tag=16):
    """The copy of an extent in a blob is missing or wrong."""

    blob: int
    extent: int


class SegmentsRead(_Message, frozen=True, tag=17):
    """Segments that were read from since the last time."""

    segments: list[int]


class Counted(_Message, frozen=True, tag=7):
    """Requests since the last time, as `Metrics.take` gives them."""

    counts: msgspec.Raw


class CatalogFailed(_Message, frozen=True, tag=8):
    """The catalog's file cannot be read."""

    reason: str


class Counts(_Message, frozen=True, tag=10):
    """What the reader has counted since it opened the store."""

    stats: ReaderStats


class KeepChunk(_Message, frozen=True, tag=11):
    """For the second cache: a chunk, whole and verified."""

    extent: int
    chunk: int
    data: bytes


class ChunkDamage(_Message, frozen=True, tag=12):
    """What lies there in the second cache is not the chunk that was put."""

    extent: int
    chunk: int
    place: int


class FlushChunks(_Message, frozen=True, tag=13):
    """Write what is to be kept. Answered with None."""

    id: int


class ClaimMount(_Message, frozen=True, tag=14):
    """The reader shows a bucket as a file system, or with None all of them, until it is gone. Answered with None."""

    id: int
    bucket: str | None
    writes: bool


class EndMount(_Message, frozen=True, tag=15):
    """The reader shows nothing any more, and has no file open. Answered with None."""

    id: int


# -- from the store --------------------------------------------------------------------------------------------------


class Answer(_Message, frozen=True, tag=20):
    """To what either side asked."""

    id: int
    value: msgspec.Raw


class Refusal(_Message, frozen=True, tag=21):
    """The request failed with an error of that class."""

    id: int
    name: str
    message: str
    facts: dict[str, Any]


class Closing(_Message, frozen=True, tag=22):
    """The store is about to close: finish what is under way, then say hello again."""


class GoodDisks(_Message, frozen=True, tag=23):
    """Which disks are good now: index, folder and id of each."""

    disks: list[tuple[int, str, bytes]]


class EvictCaches(_Message, frozen=True, tag=24):
    """Forget what a tier holds, or, with None, all do. Answered with how many bytes went."""

    id: int
    tier: str | None


class WarmCaches(_Message, frozen=True, tag=25):
    """A step of a warm-up. Answered with `Warmed`."""

    id: int
    bucket: str
    prefix: bytes
    start_after: bytes


class WhichOpen(_Message, frozen=True, tag=26):
    """Which of these files the reader has open. Answered with a list of them."""

    id: int
    inodes: list[int]


class Show(_Message, frozen=True, tag=27):
    """What is otherwise than before. Answered with None once the kernel above the reader's mount has forgotten it."""

    id: int
    changes: Changes


FromReader = (
    Hello
    | Submit
    | FindRecord
    | Hold
    | Release
    | Damage
    | ReplicaDamage
    | CopyDamage
    | SegmentsRead
    | Counted
    | CatalogFailed
    | Counts
    | KeepChunk
    | ChunkDamage
    | FlushChunks
    | ClaimMount
    | EndMount
    | Answer
    | Refusal
)
FromStore = Answer | Refusal | Closing | GoodDisks | EvictCaches | WarmCaches | WhichOpen | Show


class Opened(msgspec.Struct, frozen=True, array_like=True):
    """What a reader needs to know of the open store."""

    catalog: str
    engine: Preference
    identity: Identity
    slot: Slot
    disks: list[tuple[int, str, bytes]]
    """The good ones: index, folder and id."""
    l2_opening: int
    """By which the second cache is found in shared memory; 0: there is none."""


class Places(msgspec.Struct, frozen=True, array_like=True):
    """Where records of a file of the journal lie: `offsets`, 8 bytes each, from its record number `start` on. Those
    behind them, if there are more, are asked for again.
    """

    epoch: int
    first: int
    void_from: int
    replicas: list[int]
    start: int
    offsets: bytes
    end_offset: int
    """Where the last of them ends."""
    oldest: int
    """Records before it are in no file any more."""


class LongBody(msgspec.Struct, frozen=True, array_like=True):
    """The head of a body that comes over a socket of its own: how long it is, when that is known, the policy it is kept
    under, whether its MD5 is wanted, and whether the record has room for its end.
    """

    size: int | None
    policy: int
    hashed: bool = True
    inlined: bool = True


ANSWERS: Final[dict[type, Any]] = {
    rq.MakeBucket: BucketInfo,
    rq.RemoveBucket: None,
    rq.SetVersioning: None,
    rq.PutObject: ObjectInfo,
    rq.CopyObject: ObjectInfo,
    rq.DeleteObject: DeleteResult,
    rq.MakeUpload: UploadInfo,
    rq.PutPart: PartInfo,
    rq.CopyPart: PartInfo,
    rq.CompleteUpload: ObjectInfo,
    rq.AbortUpload: None,
    fr.MakeNode: NodeRow,
    fr.LinkNode: NodeRow,
    fr.UnlinkNode: None,
    fr.RemoveDirectory: None,
    fr.RenameNode: None,
    fr.ChangeInode: NodeRow,
    fr.MakeSpill: int,
    fr.PublishFile: NodeRow,
    fr.SetXattr: None,
}
"""Requests that readers may hand over, and what they are answered with."""

_ENCODER: Final = msgspec.msgpack.Encoder()
_REQUESTS: Final[dict[str, msgspec.msgpack.Decoder[Any]]] = {
    kind.__name__: msgspec.msgpack.Decoder(kind) for kind in ANSWERS
}
_FROM_READER: Final = msgspec.msgpack.Decoder(FromReader)
_FROM_STORE: Final = msgspec.msgpack.Decoder(FromStore)


def pack(message: object) -> bytes:
    """A message, or a value within one."""
    return _ENCODER.encode(message)


def raw(value: object) -> msgspec.Raw:
    """A value to be put into a message."""
    return msgspec.Raw(_ENCODER.encode(value))


def unpack_from_reader(data: bytes | memoryview) -> FromReader:
    """Raises msgspec.DecodeError."""
    found: FromReader = _FROM_READER.decode(data)
    return found


def unpack_from_store(data: bytes | memoryview) -> FromStore:
    """Raises msgspec.DecodeError."""
    found: FromStore = _FROM_STORE.decode(data)
    return found


def unpack_request(message: Submit) -> object:
    """Raises NotSupported for what no reader may ask, msgspec.DecodeError."""
    decoder = _REQUESTS.get(message.kind)
    if decoder is None:
        raise errors.NotSupported(f"{message.kind} is no request of a front end")
    return decoder.decode(message.request)


def unpack_value(value: msgspec.Raw, kind: Any) -> Any:
    """Raises msgspec.DecodeError."""
    return msgspec.msgpack.decode(value, type=kind)


def refuse(id_: int, error: errors.Error) -> Refusal:
    """The message that says that a request failed."""
    return Refusal(id_, type(error).__name__, str(error), dict(error.__dict__))


def error_of(refusal: Refusal) -> errors.Error:
    """The error that a request failed with."""
    kind = _BY_NAME.get(refusal.name, errors.InternalError)
    error = kind.__new__(kind, refusal.message)
    error.args = (refusal.message,)
    error.__dict__.update(refusal.facts)
    return error


def _tree(kind: type[errors.Error]) -> Iterator[type[errors.Error]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _tree(below)


_BY_NAME: Final = {kind.__name__: kind for kind in _tree(errors.Error)}
