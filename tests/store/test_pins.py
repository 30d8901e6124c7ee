from couchestord.store.pins import Pins


class Pool:
    """Counts as SegmentPool does."""

    def __init__(self) -> None:
        self.pinned: list[int] = []

    def pin(self, segment: int) -> None:
        self.pinned.append(segment)

    def unpin(self, segments: list[int]) -> None:
        for segment in segments:
            self.pinned.remove(segment)


def test_each_hold_counts() -> None:
    pool = Pool()
    pins = Pins(pool)  # type: ignore[arg-type]
    assert pins.oldest_record() is None
    pins.hold([3, 4], [90, 70])
    pins.hold({4: "row"}, [70])
    assert (sorted(pool.pinned), pins.oldest_record()) == ([3, 4, 4], 70)
    pins.release([3, 4], [90, 70])
    assert (pool.pinned, pins.oldest_record()) == ([4], 70)
    pins.release({4: "row"}, [70])
    assert (pool.pinned, pins.oldest_record()) == ([], None)


def test_the_oldest_is_the_least_not_the_first() -> None:
    pins = Pins(Pool())  # type: ignore[arg-type]
    pins.hold([], [8])
    pins.hold([], [5])
    pins.hold([], [9])
    assert pins.oldest_record() == 5
    pins.release([], [5])
    assert pins.oldest_record() == 8


def test_a_record_held_twice_by_one_reader() -> None:
    pins = Pins(Pool())  # type: ignore[arg-type]
    pins.hold([], [5, 5])
    pins.release([], [5, 5])
    assert pins.oldest_record() is None
