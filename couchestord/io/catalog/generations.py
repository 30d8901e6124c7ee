"""How long what was looked up in the catalog may be kept. Pure."""

from dataclasses import dataclass


@dataclass(slots=True)
class Generations:
    """Numbers that grow when one of what they stand for changes or goes: who keeps a look-up keeps its number with it.

    What is new changes none: that something is not there must not be kept.
    The one door through which look-ups are dropped. The writer's numbers grow as outcomes are applied and fall back
    with a rollback; those that readers see follow when they are committed and never fall.
    """

    tree: int = 0
    """Directories that moved or went."""
    names: int = 0
    """Buckets, users and keys."""
    segments: int = 0
    """Segments, but for how much of them is in use."""
    rows: int = 0
    """Anything at all."""
    opened: int = 0
    """Connections that readers had: another one may lead to a catalog that was made anew. Not followed."""

    def follow(self, other: "Generations") -> None:
        """Be what the other is now."""
        self.tree, self.names, self.segments, self.rows = other.tree, other.names, other.segments, other.rows
