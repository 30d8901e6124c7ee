from couchestord.io.catalog.generations import Generations
from couchestord.io.sharedpage import SharedPage
from couchestord.store.views import Views


def shared() -> tuple[Views, SharedPage]:
    page, views = SharedPage(), Views()
    views.share(page, list)
    return views, page


def commit(page: SharedPage) -> None:
    page.publish(Generations(), sequence=0, is_shut=False)


def test_without_other_processes_everything_may_go_at_once() -> None:
    views = Views()
    assert views.is_unseen(16)
    assert views.trim_point(7) == 7
    assert views.workers() == []


def test_segment_goes_once_every_reader_has_seen_what_was_there_when_it_was_asked_for() -> None:
    views, page = shared()
    for _ in range(3):
        commit(page)
    page.see(1, 2)
    page.see(2, 3)
    assert not views.is_unseen(16)
    commit(page)
    page.see(1, 2)
    assert not views.is_unseen(16)
    page.see(1, 3)
    assert views.is_unseen(16), "later commits do not put it off"
    assert not views._noted, "it is asked for no more"
    assert not views.is_unseen(17), "another one is another question"


def test_records_go_up_to_the_point_that_all_have_seen() -> None:
    views, page = shared()
    commit(page)
    page.see(1, 0)
    assert views.trim_point(10) == 0
    commit(page)
    assert views.trim_point(20) == 0
    page.see(1, 1)
    assert views.trim_point(30) == 10, "as far as it was when the first commit was there"
    page.see(1, 2)
    assert views.trim_point(30) == 30
    commit(page)
    assert views.trim_point(40) == 0
    page.see(1, 3)
    commit(page)
    assert views.trim_point(35) == 35, "what is held since then stays"
    assert views.trim_point(40) == 0
    page.see(1, 4)
    assert views.trim_point(50) == 50, "everybody has seen all there is"
