from couchestord.io.patience import Patience


def looked(patience: Patience, reads_count: int, *, in_vain: bool) -> int:
    """How many of so many reads looked again."""
    count = 0
    for _ in range(reads_count):
        if patience.begins():
            count += 1
            if in_vain:
                patience.was_in_vain()
            else:
                patience.has_paid()
    return count


def test_looks_in_vain_become_few_and_one_that_paid_brings_all_back() -> None:
    patience = Patience()
    assert looked(patience, 100, in_vain=False) == 100
    assert looked(patience, 127, in_vain=True) == 7
    assert looked(patience, 640, in_vain=True) == 10
    assert looked(patience, 64, in_vain=False) == 1
    assert looked(patience, 100, in_vain=False) == 100
