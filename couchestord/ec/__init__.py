"""Erasure coding. Rule: buffers in, buffers out; no disk, no task, no clock.

`EcEncoder` and `EcDecoder` stand alone: bytes to shards and back. The store uses `Codec` with the engine of
`choose_engine`. `galois` is the arithmetic and the reference, `isal` and `codec` hold the engines.
"""

from couchestord.ec.choice import choose_engine
from couchestord.ec.codec import Buffer, Codec, Engine, ZfecEngine
from couchestord.ec.isal import IsalEngine
from couchestord.ec.library import EcDecoder, EcEncoder

__all__ = ["Buffer", "Codec", "EcDecoder", "EcEncoder", "Engine", "IsalEngine", "ZfecEngine", "choose_engine"]
