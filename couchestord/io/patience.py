"""How often to look again for bytes that the system has begun to read."""

from typing import Final

LOOK_BYTES_MAX: Final = 64 << 10
"""Of longer reads the bytes do not come soon enough."""
LOOKS_MAX: Final = 8
_TO_PASS_MAX: Final = 63


class Patience:
    """A look that finds nothing makes the system begin to read. A fast device has answered a few turns of the loop
    later, at a part of what it takes to wait for it. After looks in vain ever more reads pass without any, up to 63.
    Belongs to one trio loop.
    """

    __slots__ = ("_passed", "_to_pass")

    def __init__(self) -> None:
        self._to_pass = self._passed = 0

    def begins(self) -> bool:
        """Whether to look up to LOOKS_MAX times for this read. To be told how that ended."""
        if self._passed < self._to_pass:
            self._passed += 1
            return False
        self._passed = 0
        return True

    def has_paid(self) -> None:
        self._to_pass = 0

    def was_in_vain(self) -> None:
        self._to_pass = min(2 * self._to_pass + 1, _TO_PASS_MAX)
