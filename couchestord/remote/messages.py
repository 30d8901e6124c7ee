"""Requests and replies, as values. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from couchestord.remote.backend import Buffer


class Ask(NamedTuple):
    """A request. `target` as it goes over the wire; `headers` with Host and, for a body, Content-Length."""

    method: bytes
    target: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: Sequence[Buffer] = ()


class Reply(NamedTuple):
    """A reply, read to its end. Headers by lower-case name; of one that came twice, the last."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes
