"""Open directories, while others make and remove entries in them."""

import random
from collections.abc import Callable

import pytest

from couchestord.frontends.posix import listing
from couchestord.frontends.posix.listing import PARENT, SELF, Listed, OpenDirectory
from couchestord.io.catalog.files import NamedRow, NodeRow
from couchestord.store.files import Shown

DIRECTORY = 500


def node(id_: int) -> NodeRow:
    return NodeRow(id_, False, 1, 0, None, *(None,) * 8, 0, None)


class Tree:
    """One directory, as a store has it: entries in order of their names."""

    def __init__(self, seed: object = 0, count: int = 0) -> None:
        self.rng = random.Random(f"{seed}")
        self.version = 0
        self.numbers: dict[bytes, int] = {}
        self.unchanged: dict[bytes, int] = {}
        """What was there all the time since the test began to look."""
        self._last = 1000
        for _ in range(count):
            self.make(b"%d" % self.rng.randrange(1 << 40))
        self.unchanged = dict(self.numbers)

    def node(self, id_: int) -> NodeRow:
        return node(id_)._replace(is_directory=True)

    def name_of(self, directory: int, number: int) -> bytes | None:
        assert directory == DIRECTORY
        return next((name for name, own in self.numbers.items() if own == number), None)

    def entries(self, directory: int, after: bytes | None, limit: int) -> list[Shown]:
        assert directory == DIRECTORY
        names = sorted(name for name in self.numbers if after is None or name > after)[:limit]
        return [Shown(name, NamedRow(name, self.numbers[name], node(self.numbers[name]))) for name in names]

    def make(self, name: bytes) -> None:
        self._last += 1
        self.version += 1
        self.numbers[name] = self._last

    def remove(self, name: bytes) -> None:
        self.version += 1
        del self.numbers[name]
        self.unchanged.pop(name, None)

    def disturb(self) -> None:
        """As others do between two pages."""
        for _ in range(self.rng.choice([0, 0, 1, 5, 60])):
            if self.numbers and self.rng.random() < 0.6:
                self.remove(self.rng.choice(sorted(self.numbers)))
            else:
                name = b"%d" % self.rng.randrange(1 << 40)
                if name not in self.numbers:
                    self.make(name)


def walk(
    tree: Tree, directory: OpenDirectory, after: int = 0, between: Callable[[], None] | None = None
) -> list[Listed]:
    """All that is shown behind a number, taken as the kernel does: as much of a page as fits."""
    found: list[Listed] = []
    while page := directory.read(tree, after):
        taken = page[: tree.rng.choice([1, 2, 7, 50, 1000])]
        found += taken
        assert len(found) < 20_000, "the listing does not come to an end"
        after = taken[-1].number
        if between is not None:
            between()
    return found


def names(found: list[Listed]) -> list[bytes]:
    return [each.name for each in found]


def test_an_empty_directory_has_itself_and_what_it_lies_in() -> None:
    tree, directory = Tree(), OpenDirectory(DIRECTORY)
    own, parent = directory.read(tree, 0)
    assert own == Listed(b".", DIRECTORY, tree.node(DIRECTORY), SELF)
    assert parent == Listed(b"..", DIRECTORY, None, PARENT)
    assert directory.read(tree, PARENT) == []
    assert directory.read(tree, SELF) == [parent]


@pytest.mark.parametrize("count", [1, 127, 128, 129, 700])
def test_all_entries_are_shown_once(count: int) -> None:
    tree, directory = Tree(count, count), OpenDirectory(DIRECTORY)
    found = walk(tree, directory)
    assert names(found) == [b".", b"..", *sorted(tree.numbers)]
    assert [each.number for each in found[2:]] == [tree.numbers[each.name] for each in found[2:]]
    assert names(walk(tree, directory)) == names(found)  # rewound


@pytest.mark.parametrize("seed", range(30))
def test_a_straight_pass_while_others_change_the_directory(seed: int) -> None:
    tree, directory = Tree(seed, 600), OpenDirectory(DIRECTORY)
    for _ in range(2):
        found = walk(tree, directory, between=tree.disturb)
        numbers = [each.number for each in found]
        assert len(set(numbers)) == len(numbers)
        assert names(found[:2]) == [b".", b".."]
        assert names(found) == [b".", b"..", *sorted(names(found[2:]))]
        assert set(tree.unchanged) <= set(names(found))
        tree.unchanged = dict(tree.numbers)


@pytest.mark.parametrize("seed", range(30))
def test_what_is_gone_is_not_shown(seed: int) -> None:
    tree, directory = Tree(seed, 400), OpenDirectory(DIRECTORY)
    after, pages = 0, 0
    while page := directory.read(tree, after):
        pages += 1
        assert pages < 20_000, "the listing does not come to an end"
        assert {each.number for each in page if each.number > PARENT} <= set(tree.numbers.values())
        after = page[min(len(page) - 1, tree.rng.randrange(20))].number
        tree.disturb()


def test_removing_all_while_listing_comes_to_an_end() -> None:
    tree, directory = Tree(1, 700), OpenDirectory(DIRECTORY)

    def remove_all_shown() -> None:
        for name in sorted(tree.numbers)[:100]:
            tree.remove(name)

    assert len(walk(tree, directory, between=remove_all_shown)) < 702
    while tree.numbers:  # as rm -r does, from the beginning again
        for each in directory.read(tree, 0)[2:]:
            tree.remove(each.name)
    assert names(directory.read(tree, 0)) == [b".", b".."]


@pytest.mark.parametrize("seed", range(40))
def test_going_on_behind_any_number_that_was_shown(seed: int) -> None:
    """Each pass from a number shows what was shown behind it before and is there all the time, once, and nothing that
    was there when the directory was opened and was shown before that number.
    """
    tree, directory = Tree(seed, 500), OpenDirectory(DIRECTORY)
    first = set(tree.numbers.values())
    order = walk(tree, directory, between=tree.disturb)
    shown = [each.number for each in order]
    for _ in range(12):
        tree.disturb()
        at = tree.rng.randrange(len(shown))
        found = [each.number for each in walk(tree, directory, shown[at], tree.disturb)]
        assert len(set(found)) == len(found)
        assert not set(found) & set(shown[: at + 1]) & first
        assert set(tree.unchanged.values()) & set(shown[at + 1 :]) <= set(found)


def test_number_of_a_removed_entry_is_not_forgotten_when_its_page_is_read_again() -> None:
    tree, directory = Tree(2, 100), OpenDirectory(DIRECTORY)
    first = directory.read(tree, 0)[2:]
    one, other = first[40], first[60]
    tree.remove(one.name)
    tree.remove(other.name)
    directory.read(tree, first[80].number)  # the page before is not the last one any more
    rest = names(first[41:60] + first[61:])
    for _ in range(3):
        assert names(walk(tree, directory, one.number)) == rest
        assert names(walk(tree, directory, other.number)) == names(first[61:])


def test_rewinding_shows_what_is_there_now() -> None:
    tree, directory = Tree(3, 300), OpenDirectory(DIRECTORY)
    before = walk(tree, directory)
    tree.remove(before[5].name)
    tree.make(b"!")
    found = names(walk(tree, directory))
    assert found == [b".", b"..", *sorted(tree.numbers)]
    assert before[5].name not in found


@pytest.mark.parametrize("seed", range(20))
def test_numbers_lead_on_after_going_back_to_the_beginning(seed: int) -> None:
    """As seekdir to what telldir said at the beginning does. What a number led to may be gone."""
    tree, directory = Tree(seed, 500), OpenDirectory(DIRECTORY)
    shown = [each.number for each in walk(tree, directory)]
    for _ in range(12):
        directory.read(tree, 0)
        tree.disturb()
        at = tree.rng.randrange(2, len(shown))
        found = [each.number for each in walk(tree, directory, shown[at])]
        assert not set(found) & set(shown[: at + 1])
        assert set(tree.unchanged.values()) & set(shown[at + 1 :]) <= set(found)


def test_what_is_kept_of_a_directory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAGES_KEPT_MAX", 3)
    tree, directory = Tree(5, 1000), OpenDirectory(DIRECTORY)
    shown = walk(tree, directory)
    assert len(directory._pages) == 3
    gone, there = shown[60], shown[70]
    tree.remove(gone.name)
    assert names(walk(tree, directory, there.number)) == names(shown[71:]), "its name tells where it is"
    assert names(walk(tree, directory, gone.number)) == sorted(tree.numbers), "rather all than nothing"
    directory = OpenDirectory(DIRECTORY)
    for number in range(3000):  # all in one page
        name = b"0%d" % number
        tree.make(name)
        directory.read(tree, 0)
        tree.remove(name)
    assert sum(map(len, directory._pages.values())) < 1000
