"""From requests to outcomes: all that is decided when a mutation is committed.

A decision reads the writer's open transaction, so it sees every mutation before it in the same group, " "and takes its
ids and time here. It changes nothing: the outcome does, when it is applied. A request that cannot be is an error.
"""

from couchestord.store.decide.decider import Decider, Decision

__all__ = ["Decider", "Decision"]
