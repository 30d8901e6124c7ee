"""What a store must hold, as a plain dictionary: every fact with the values that it may have.

A fact has one value, until a change to it is neither acknowledged nor refused: then it has several, and the next look
after a restart tells which.
"""

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from typing import NamedTuple

Place = tuple[str, bytes]
"""(bucket, key)"""


class ModelBroken(AssertionError):
    """The store did what it must not do."""


class Version(NamedTuple):
    """`id` is None where it does not matter or nobody told it. `body` None: a delete marker."""

    id: str | None
    body: bytes | None


State = tuple[Version, ...]
"""All versions of an object, the newest first; empty: there is none."""


def top(state: State) -> bytes | None:
    """What a GET answers, None for NoSuchKey."""
    return state[0].body if state else None


def _version_ids(state: State) -> set[str]:
    """Of the versions that can be read."""
    return {version.id for version in state if version.id is not None and version.body is not None}


@dataclass(slots=True)
class OpenUpload:
    place: Place
    parts: dict[int, list[tuple[str, bytes]]] = field(default_factory=dict)
    """(etag, body) that each part may be; an empty etag: perhaps not there."""
    completing: bytes | None = None
    """The body that a complete may have made an object of."""
    aborting: bool = False


class Model:
    """Facts. `simple` holds those that are there or not: buckets (with their versioning), users, keys."""

    def __init__(self) -> None:
        self.objects: dict[Place, list[State]] = {}
        self.simple: dict[tuple[str, str], list[str | None]] = {}
        self.uploads: dict[str, OpenUpload] = {}
        self.busy: set[object] = set()
        """Facts that a change under way is about."""
        self._offered: dict[Place, list[bytes | None]] = {}
        self._offered_before: dict[Place, int] = {}

    def states(self, place: Place) -> list[State]:
        return self.objects.get(place, [()])

    def set_states(self, place: Place, states: Iterable[State]) -> None:
        self.objects[place] = list(dict.fromkeys(states))

    def value(self, kind: str, name: str) -> str | None:
        """The value of a simple fact that is certain, None for none."""
        values = self.simple.get((kind, name), [None])
        return values[0] if len(values) == 1 else None

    def names(self, kind: str) -> list[str]:
        """Names of the simple facts that are certainly there."""
        return [name for (each, name) in self.simple if each == kind and self.value(kind, name) is not None]

    def places(self, bucket: str) -> Iterator[Place]:
        return (place for place in list(self.objects) if place[0] == bucket)

    def is_certain(self, place: Place) -> bool:
        return len(self.states(place)) == 1

    # -- what a reader that runs beside writers may see ------------------------------------------------------------

    def offer(self, place: Place, states: Iterable[State]) -> None:
        """A change is under way that may lead to these states."""
        offered = self._offered.setdefault(place, [])
        self._offered_before[place] = len(offered)
        offered.extend(top(state) for state in states)

    def began(self, place: Place) -> int:
        """Call it when a read begins, and `visible` with the answer at its end."""
        return self._offered_before[place] if place in self.busy else len(self._offered.get(place, []))

    def visible(self, place: Place, began: int) -> set[bytes | None]:
        """Bodies that changes under way meanwhile may have led to."""
        return set(self._offered.get(place, [])[began:])

    # -- a look after a restart ------------------------------------------------------------------------------------

    def in_doubt(self, place: Place) -> set[str]:
        """Versions that some of the states of a place have, and others not."""
        states = [_version_ids(state) for state in self.states(place)]
        return states[0].union(*states) - states[0].intersection(*states)

    def settle(
        self, place: Place, body: bytes | None, version_id: str | None, *, restarted: bool, gone: Set[str] = frozenset()
    ) -> None:
        """The store answered this body, and has no version in `gone`, but all others that were in doubt.

        After a restart, or for a new value, that decides.
        """
        states = self.states(place)
        there = self.in_doubt(place) - gone
        fitting = [
            state
            for state in states
            if top(state) == body
            and (not restarted or (there <= _version_ids(state) and not gone & _version_ids(state)))
        ]
        if not fitting:
            told = "nothing" if body is None else f"{len(body)} bytes {body[:24]!r}"
            allowed = [None if top(state) is None else (top(state) or b"")[:24] for state in states]
            raise ModelBroken(f"{place}: the store has {told}, allowed: {allowed}")
        if len(states) > 1 and (restarted or body != top(states[0])):
            states = fitting[:1]
        if len(states) == 1 and states[0] and states[0][0].id is None and version_id is not None:
            states = [(Version(version_id, body), *states[0][1:])]
        self.objects[place] = states
