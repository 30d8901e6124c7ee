"""What new data may take of each file system between two looks at its room. Pure."""

from collections.abc import Callable, Mapping


class Account:
    """Disks by index, on file systems by number; nothing is accounted for before the first look."""

    def __init__(self) -> None:
        self._file_systems: dict[int, int] = {}
        self._left_bytes: dict[int, int] = {}

    def note(self, file_systems: Mapping[int, int], left_bytes: Mapping[int, int]) -> None:
        """Which file system each disk lies on, and what each of them has left for new data now."""
        self._file_systems, self._left_bytes = dict(file_systems), dict(left_bytes)

    @property
    def file_systems(self) -> frozenset[int]:
        """The numbers of those that disks lie on (`io.disk.Capacity`)."""
        return frozenset(self._file_systems.values())

    @property
    def left_bytes(self) -> int | None:
        """What new data may take of all of them; None before the first look."""
        return sum(max(0, left) for left in self._left_bytes.values()) if self._left_bytes else None

    def spend(self, index: int, length: int) -> list[int]:
        """New data goes to a disk. When less was left than that: all disks on its file system, else none."""
        file_system = self._file_systems.get(index)
        if file_system is None:
            return []
        self._left_bytes[file_system] -= length
        if self._left_bytes[file_system] >= 0:
            return []
        return [other for other, its in self._file_systems.items() if its == file_system]

    def is_within(self, index: int, kept_bytes: Callable[[int], int]) -> bool:
        """Whether no more than half of what is kept on the disk's file system has been spent."""
        file_system = self._file_systems.get(index)
        return file_system is None or 2 * self._left_bytes[file_system] >= -kept_bytes(file_system)
