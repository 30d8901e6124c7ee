"""What outcomes are made of. Pure."""

import msgspec


class Extent(msgspec.Struct, frozen=True, array_like=True):
    """A run of a content's bytes. `segment` 0: in the body of this very record, at `start`; else at (segment,
    stripe, start).
    """

    length: int
    segment: int = 0
    stripe: int = 0
    start: int = 0


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A range of a content within an inode."""

    offset: int
    content: int
    content_offset: int
    length: int


class MadeDirectory(msgspec.Struct, frozen=True, array_like=True):
    """A directory that the mutation made on its way; `name` ends in a slash."""

    id: int
    parent: int
    name: bytes


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """Base of all outcomes."""
