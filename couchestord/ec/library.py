"""Erasure coding for programs that need nothing else of couchestord: bytes to shards, and back from any k of them."""

from collections.abc import Mapping, Sequence

from couchestord.ec.choice import choose_engine
from couchestord.ec.codec import Buffer, Codec, Engine
from couchestord.errors import InvalidArgument


class EcEncoder:
    """Cuts data in k shards and adds m parity shards; any k of the k + m give the data back.

    Make one and keep it: making one loads and checks an engine, which takes some 20 ms, unless `engine` is given. It
    may be used from several threads at once, and the GIL is released while it computes. Raises InvalidArgument unless
    1 <= k, 0 <= m and k + m <= 255.

    >>> shards = EcEncoder(4, 2).encode(b"precious bytes")
    >>> [len(shard) for shard in shards]
    [4, 4, 4, 4, 4, 4]
    >>> shards[0], shards[3]
    (b'prec', b'es\\x00\\x00')
    >>> shards[1] = shards[4] = None
    >>> EcDecoder(4, 2).decode(shards, length=14)
    b'precious bytes'
    """

    def __init__(self, k: int, m: int, *, engine: Engine | None = None) -> None:
        self._codec = Codec(k, m, engine or choose_engine())

    def encode(self, data: Buffer) -> list[bytes]:
        """The k + m shards of `data`, each of ceil(length / k) bytes: the data in order, zeros to fill up, then parity.

        The length is not in the shards: keep it for `EcDecoder.decode`. Empty data gives empty shards.
        """
        k = self._codec.k
        view = memoryview(data).cast("B")
        size_bytes = -(-len(view) // k)
        shards = [bytes(view[index * size_bytes : (index + 1) * size_bytes]) for index in range(k)]
        shards = [shard.ljust(size_bytes, b"\0") for shard in shards]
        return shards + [bytes(parity) for parity in self._codec.encode(shards)]


class EcDecoder:
    """Gives data back from any k of the shards that an `EcEncoder` of the same k and m made.

    It cannot tell a wrong shard from a right one: verify checksums of your own first. Make one and keep it, as with
    `EcEncoder`. Raises InvalidArgument unless 1 <= k, 0 <= m and k + m <= 255.

    >>> shards = EcEncoder(2, 1).encode(b"abcd")
    >>> EcDecoder(2, 1).decode({1: shards[1], 2: shards[2]}, length=4)
    b'abcd'
    >>> EcDecoder(2, 1).decode({1: shards[1]}, length=4)
    Traceback (most recent call last):
    couchestord.errors.DataLost: 1 of 2+1 shards are left, 2 are needed
    """

    def __init__(self, k: int, m: int, *, engine: Engine | None = None) -> None:
        self._codec = Codec(k, m, engine or choose_engine())

    def decode(self, shards: Mapping[int, Buffer] | Sequence[Buffer | None], length: int) -> bytes:
        """The first `length` bytes of the data.

        `shards` maps an index (data 0 to k-1, parity k to k+m-1) to a shard, or is a list of all k + m with None for
        each that is lost. Raises DataLost with fewer than k shards; InvalidArgument for a list of another length, an
        index out of range, shards not equally long, or more bytes asked for than the shards hold.
        """
        k, total = self._codec.k, self._codec.k + self._codec.m
        if isinstance(shards, Mapping):
            present = dict(shards)
        elif len(shards) == total:
            present = {index: shard for index, shard in enumerate(shards) if shard is not None}
        else:
            raise InvalidArgument(f"{len(shards)} shards in the list, {total} are needed, None for each that is lost")
        lost = [index for index in range(k) if index not in present]
        rebuilt = self._codec.reconstruct(present, lost)
        data = b"".join([rebuilt[index] if index in rebuilt else present[index] for index in range(k)])
        if not 0 <= length <= len(data):
            raise InvalidArgument(f"length is {length}, the shards hold {len(data)} bytes")
        return data[:length]
