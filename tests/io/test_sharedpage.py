import os

from couchestord.io.catalog.generations import Generations, slot_of_name
from couchestord.io.sharedpage import ALONE, NOBODY, READERS_MAX, SharedPage


def test_numbers_arrive_with_the_version() -> None:
    page, written, read = SharedPage(), Generations(), Generations()
    written.change_names()
    written.change_tree()
    written.change_tree()
    before = page.version
    page.publish(written, sequence=9, is_shut=False)
    assert (page.version, page.sequence) == (before + 1, 9)
    assert page.read(read) == page.version
    assert (read.names, read.tree, page.is_shut) == (1, 2, False)
    page.publish(written, sequence=0, is_shut=True)
    assert page.is_shut


def test_slots_are_shared_from_where_they_were() -> None:
    page, writer = SharedPage(), Generations()
    writer.change_object(7, b"k")
    writer.share(page.generations)
    reader = Generations(page.generations)
    slot = slot_of_name(7, b"k")
    assert reader.slots[slot] == 1
    writer.change_object(7, b"k")
    writer.change_names()
    assert (reader.slots[slot], reader.names) == (2, 1)


def test_a_child_sees_what_its_parent_writes_and_the_other_way() -> None:
    page = SharedPage()
    asked, told = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        os.read(asked[0], 1)
        page.see(5, page.version)
        os.write(told[1], b".")
        os._exit(0)
    page.publish(Generations(), sequence=0, is_shut=False)
    os.write(asked[1], b".")
    os.read(told[0], 1)
    os.waitpid(pid, 0)
    for descriptor in (*asked, *told):
        os.close(descriptor)
    assert page.seen(5) == page.version == 1


def test_the_oldest_reader_counts_and_nobody_does_not() -> None:
    page = SharedPage()
    assert page.seen_by_all() == NOBODY
    page.see(0, 9)
    page.see(READERS_MAX - 1, 4)
    assert page.seen_by_all() == 4
    page.clear(READERS_MAX - 1)
    assert page.seen_by_all() == 9


def test_who_is_let_in_counts_until_it_is_given_up_whatever_it_says_later() -> None:
    page = SharedPage()
    gone, stays = page.apart(), page.apart()
    page.see(ALONE, 9)  # a worker of that number
    assert gone.seen(ALONE) == stays.seen(ALONE) == NOBODY
    page.let_in |= {gone, stays}
    gone.see(ALONE, 3)
    stays.see(ALONE, 5)
    assert page.seen_by_all() == 3
    page.let_in.remove(gone)
    for late in (1, 7):
        gone.see(ALONE, late)
        gone.beat(ALONE)
        assert page.seen_by_all() == 5
    assert (page.seen(ALONE), page.beats(ALONE), stays.beats(ALONE)) == (9, 0, 0)


def test_a_page_opened_by_descriptors_is_the_same_page() -> None:
    made, written, read = SharedPage(), Generations(), Generations()
    page = made.apart()
    page.see(2, 7)
    other = SharedPage(*(os.dup(each) for each in page.descriptors))
    assert other.seen(2) == 7  # opening it has changed nothing
    written.change_tree()
    made.publish(written, sequence=0, is_shut=True)
    assert (other.read(read), read.tree, other.is_shut) == (1, 1, True)
    other.see(5, 1)
    other.beat(5)
    assert (page.seen(5), page.beats(5)) == (1, 1)
    other.close()
    other.see(5, 3)
    other.generations[0] = 9
    assert (page.seen(5), page.generations[0]) == (3, 9)  # the memory outlives the descriptor
