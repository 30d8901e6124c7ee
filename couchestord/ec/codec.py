"""Reed-Solomon coding of equally long shards, over one of two engines that write the same bytes.

An `Engine` (zfec here, ISA-L in `isal`) makes a `Coder` for a geometry of k data and m parity shards; `Codec` checks
what callers hand in and drives the coders. Data shards have the indexes 0 to k-1, parity shards k to k+m-1.

Everything here is synchronous and may be called from any thread, from several at once: both engines release the GIL
while they compute. 1 MiB of data takes about 0.1 ms with ISA-L, too little to be worth a thread, and 1 ms with zfec.

This module is the only door to zfec.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import zfec

from couchestord.ec.galois import check_geometry
from couchestord.errors import DataLost, InvalidArgument

Buffer = bytes | bytearray | memoryview
"""Contiguous bytes that are read only by whoever takes them."""
Target = bytearray | memoryview
"""Contiguous bytes to be written."""

SHARD_BYTES_MAX = 1 << 30
"""ISA-L counts in a C int; a store's shards are a thousand times smaller."""


class Coder(Protocol):
    """The arithmetic for one k and m. Trusts its arguments: `Codec` has checked counts, indexes and lengths.

    Shards are never empty, m is at least 1, and nothing that comes in is changed. Safe from several threads at once.
    """

    def encode(self, data: Sequence[Buffer], size_bytes: int) -> list[bytes] | list[bytearray]:
        """The m parity shards of k data shards."""
        ...

    def encode_into(self, data: Sequence[Buffer], parity: Sequence[Target], size_bytes: int) -> None:
        """The same, written over m existing buffers."""
        ...

    def reconstruct(
        self, have: tuple[int, ...], shards: Sequence[Buffer], want: tuple[int, ...], size_bytes: int
    ) -> list[bytearray]:
        """The shards `want` from k shards, whose indexes are `have`, ascending. No index is in both."""
        ...


class Engine(Protocol):
    """A library that codes. `name` is "zfec" or "isal".

    `note` is a line for a person: where the library was found, or why a faster engine is not in use. Shards shorter
    than `least_bytes` are coded faster by zfec, because of what a call costs.
    """

    name: str
    note: str
    least_bytes: int

    def coder(self, k: int, m: int) -> Coder: ...


class ZfecEngine:
    """zfec: portable C, about 1.2 GB/s with two parity shards. Always there."""

    __slots__ = ("least_bytes", "name", "note")

    def __init__(self, note: str = "") -> None:
        self.name = "zfec"
        self.note = note
        self.least_bytes = 0

    def coder(self, k: int, m: int) -> Coder:
        return _ZfecCoder(k, m)


class _ZfecCoder:
    __slots__ = ("_decoder", "_encoder", "_k", "_parity")

    def __init__(self, k: int, m: int) -> None:
        self._k = k
        self._parity = tuple(range(k, k + m))
        # zfec's m counts all shards.
        self._encoder = zfec.Encoder(k, k + m)
        self._decoder = zfec.Decoder(k, k + m)

    def encode(self, data: Sequence[Buffer], size_bytes: int) -> list[bytes]:
        return self._encode(data, self._parity)

    def _encode(self, data: Sequence[Buffer], indexes: tuple[int, ...]) -> list[bytes]:
        # Parity indexes only: for a data index zfec returns the caller's own object.
        parity: list[bytes] = self._encoder.encode(tuple(data), indexes)
        return parity

    def encode_into(self, data: Sequence[Buffer], parity: Sequence[Target], size_bytes: int) -> None:
        for target, shard in zip(parity, self.encode(data, size_bytes), strict=True):
            target[:] = shard

    def reconstruct(
        self, have: tuple[int, ...], shards: Sequence[Buffer], want: tuple[int, ...], size_bytes: int
    ) -> list[bytearray]:
        data = self._data(have, shards)
        wanted_parity = tuple(index for index in want if index >= self._k)
        parity = dict(zip(wanted_parity, self._encode(data, wanted_parity), strict=True)) if wanted_parity else {}
        return [bytearray(parity[index] if index >= self._k else data[index]) for index in want]

    def _data(self, have: tuple[int, ...], shards: Sequence[Buffer]) -> Sequence[Buffer]:
        """All data shards; those present are the caller's own objects."""
        if have[-1] < self._k:
            return shards
        # zfec moves data shards to their places within the very sequence it is given, a tuple as well: give it a copy.
        data: list[Buffer] = self._decoder.decode(list(shards), have)
        return data


class Codec:
    """Coding with k data and m parity shards: any k of the k + m give back all.

    Raises InvalidArgument unless 1 <= k, 0 <= m and k + m <= 255. No method changes the shards it is given, and none
    verifies them: a shard that is wrong gives wrong bytes, so checksums come before reconstruct. Inputs may be any
    contiguous buffers, and must not change while a call runs. Safe from several threads at once; the GIL is
    released while an engine computes.
    """

    __slots__ = ("_coder", "_least_bytes", "_small", "engine", "k", "m")

    def __init__(self, k: int, m: int, engine: Engine) -> None:
        check_geometry(k, m)
        self.k = k
        self.m = m
        self.engine = engine
        self._least_bytes = engine.least_bytes
        self._coder = engine.coder(k, m)
        self._small = ZfecEngine().coder(k, m) if engine.least_bytes else self._coder

    def encode(self, shards: Sequence[Buffer]) -> list[bytes] | list[bytearray]:
        """The m parity shards of k data shards, in order of index, as long as these are.

        Raises InvalidArgument when the shards are not k or not equally long.
        """
        size_bytes = self._size_of_data(shards)
        if self.m == 0 or size_bytes == 0:
            return [bytearray() for _ in range(self.m)]
        return self._coder_for(size_bytes).encode(shards, size_bytes)

    def encode_into(self, shards: Sequence[Buffer], parity: Sequence[Target]) -> None:
        """As `encode`, written over m buffers of the caller's, which must not overlap the data.

        Fresh memory costs more than the coding of it: this is for callers that keep a pool. Raises InvalidArgument
        when the buffers are not m, or not as long as the data shards.
        """
        size_bytes = self._size_of_data(shards)
        if len(parity) != self.m:
            raise InvalidArgument(f"{len(parity)} buffers for {self.m} parity shards")
        for target in parity:
            if _size(target) != size_bytes:
                raise InvalidArgument(f"a buffer of {_size(target)} bytes for a parity shard of {size_bytes}")
        if self.m and size_bytes:
            self._coder_for(size_bytes).encode_into(shards, parity, size_bytes)

    def reconstruct(self, present: Mapping[int, Buffer], want: Sequence[int]) -> dict[int, bytearray]:
        """The shards `want`, data or parity, from at least k shards by index.

        With more than k shards present the lowest indexes are used. A wanted index that is present comes back as a
        copy. Raises DataLost with fewer than k, InvalidArgument for an index out of range or shards not equally long.
        """
        have = sorted(present)
        for index in (*have[:1], *have[-1:], *want):
            if not 0 <= index < self.k + self.m:
                raise InvalidArgument(f"there is no shard {index} in {self.k}+{self.m}")
        if len(have) < self.k:
            raise DataLost(f"{len(have)} of {self.k}+{self.m} shards are left, {self.k} are needed")
        size_bytes = _common_size(list(present.values()))
        found = {index: bytearray(present[index]) for index in want if index in present}
        missing = tuple(sorted({index for index in want if index not in present}))
        if not missing:
            return found
        if size_bytes == 0:
            return found | {index: bytearray() for index in missing}
        used = tuple(have[: self.k])
        shards = [present[index] for index in used]
        rebuilt = self._coder_for(size_bytes).reconstruct(used, shards, missing, size_bytes)
        return found | dict(zip(missing, rebuilt, strict=True))

    def _coder_for(self, size_bytes: int) -> Coder:
        return self._small if size_bytes < self._least_bytes else self._coder

    def _size_of_data(self, shards: Sequence[Buffer]) -> int:
        if len(shards) != self.k:
            raise InvalidArgument(f"{len(shards)} data shards given, k is {self.k}")
        return _common_size(shards)


def _size(shard: Buffer) -> int:
    # len() of a memoryview counts items, which need not be bytes, and C trusts this number.
    return len(shard) if isinstance(shard, (bytes, bytearray)) else memoryview(shard).nbytes


def _common_size(shards: Sequence[Buffer]) -> int:
    """The size of every shard, in bytes. Raises InvalidArgument when they differ or are over the limit."""
    size_bytes = _size(shards[0])
    for shard in shards:
        if _size(shard) != size_bytes:
            raise InvalidArgument(f"shards differ in length: {size_bytes} and {_size(shard)} bytes")
    if size_bytes > SHARD_BYTES_MAX:
        raise InvalidArgument(f"a shard of {size_bytes} bytes is over the limit of {SHARD_BYTES_MAX}")
    return size_bytes
