"""What a mount shows otherwise because of outcomes that were applied: the kernel above it keeps what it once looked up.
Pure.
"""

from collections.abc import Iterable

import msgspec


class Changes(msgspec.Struct, frozen=True, array_like=True):
    """Of one outcome, or of many."""

    names: frozenset[tuple[int, bytes]] = frozenset()
    """Entries that came, went, or name something else: (directory, name without the slash that one of a directory ends
    in). The attributes of that directory are others, too.
    """
    nodes: frozenset[int] = frozenset()
    """Files and directories that have other attributes."""
    bodies: frozenset[int] = frozenset()
    """Files that have other bytes, and attributes."""
    buckets: frozenset[str] = frozenset()
    """Those that came or went."""
    everything: bool = False
    """Whatever was looked up may be otherwise."""


def join(changes: Iterable[Changes]) -> Changes:
    """All of them as one."""
    found = list(changes)
    if len(found) == 1:
        return found[0]
    return Changes(
        frozenset[tuple[int, bytes]]().union(*(each.names for each in found)),
        frozenset[int]().union(*(each.nodes for each in found)),
        frozenset[int]().union(*(each.bodies for each in found)),
        frozenset[str]().union(*(each.buckets for each in found)),
        any(each.everything for each in found),
    )


class Watch:
    """Notes changes as rows change, while somebody wants to know."""

    def __init__(self) -> None:
        self.is_on = False
        self._names: set[tuple[int, bytes]] = set()
        self._nodes: set[int] = set()
        self._bodies: set[int] = set()
        self._buckets: set[str] = set()

    def name(self, directory: int, name: bytes) -> None:
        """See `Changes.names`; a slash at the end is taken off here."""
        if self.is_on:
            self._names.add((directory, name.removesuffix(b"/")))

    def node(self, id_: int) -> None:
        if self.is_on:
            self._nodes.add(id_)

    def body(self, id_: int) -> None:
        if self.is_on:
            self._bodies.add(id_)

    def bucket(self, name: str) -> None:
        if self.is_on:
            self._buckets.add(name)

    def take(self) -> Changes | None:
        """What was noted since the last time; None: nothing."""
        if not (self._names or self._nodes or self._bodies or self._buckets):
            return None
        found = Changes(
            frozenset(self._names), frozenset(self._nodes), frozenset(self._bodies), frozenset(self._buckets)
        )
        self._names.clear()
        self._nodes.clear()
        self._bodies.clear()
        self._buckets.clear()
        return found
