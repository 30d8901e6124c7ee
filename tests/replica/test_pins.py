from couchestord.io.catalog.generations import Generations
from couchestord.io.sharedpage import SharedPage
from couchestord.replica import messages as ms
from couchestord.replica.pins import ReplicaPins

READER = 2


class Rig:
    """Pins whose messages are written down; `seen` is what the reader sees."""

    def __init__(self) -> None:
        self.page, self.seen = SharedPage(), 0
        self.pins = ReplicaPins(self.page, READER, lambda: self.seen)
        self.held: list[tuple[list[int], list[int]]] = []
        self.released: list[ms.Release] = []

    async def tell(self) -> int:
        """One round; returns what the reader then says that it sees."""

        async def ask(segments: list[int], records: list[int]) -> None:
            # until the answer is there, the word has to protect
            assert self.page.seen(READER) <= self.seen
            self.held.append((segments, records))

        await self.pins.tell(self.released.append, ask)
        return self.page.seen(READER)

    def commit(self) -> None:
        self.page.publish(Generations(), sequence=0, is_shut=False)
        self.seen = self.page.version


async def test_short_reads_tell_nothing() -> None:
    rig = Rig()
    rig.pins.hold([7], [3])
    rig.pins.release([7], [3])
    rig.commit()
    assert await rig.tell() == 1
    assert not rig.held
    assert not rig.released


async def test_word_stays_until_what_is_held_was_told() -> None:
    rig = Rig()
    rig.commit()
    rig.pins.hold([7], [3])
    rig.commit()
    assert await rig.tell() == 1
    assert rig.held == []
    rig.commit()
    assert await rig.tell() == 3
    assert rig.held == [([7], [3])]
    rig.pins.hold([7])
    assert await rig.tell() == 3
    rig.pins.release([7], [3])
    await rig.tell()
    assert rig.released == [ms.Release([], [3])]
    rig.pins.release([7])
    await rig.tell()
    assert rig.released[1:] == [ms.Release([7], [])]


async def test_what_is_released_and_held_again_is_told_again() -> None:
    rig = Rig()
    rig.pins.hold([7])
    await rig.tell()
    await rig.tell()
    rig.pins.release([7])
    rig.commit()
    rig.pins.hold([7])
    assert await rig.tell() == 1
    assert rig.released == [ms.Release([7], [])]
    rig.commit()
    assert await rig.tell() == 2
    assert rig.held == [([7], [])] * 2
