from pathlib import Path

import pytest
import trio
from replica_rig import commit_parted, pair
from small_store import read

from couchestord.errors import Unavailable
from couchestord.replica.catalog import ReplicaCatalog


async def test_row_that_is_read_while_a_commit_is_told_is_not_kept(tmp_path: Path) -> None:
    """A transaction that began before a commit finds the row of before, while the numbers are those of after."""
    async with pair(tmp_path) as both:
        await both.store.put("box", b"k", b"1")
        catalog = ReplicaCatalog(both.store.core.catalog.path, both.page, pytest.fail)
        root = catalog.reading.bucket("box").root  # type: ignore[union-attr]
        catalog.refresh()
        old = catalog.reading.versions(root, b"k")  # the transaction begins
        assert old == []
        await both.store.put("box", b"k", b"22")
        found = catalog.reading.entry(root, b"k")
        assert found is not None
        assert found.size == 1, "of the transaction's state"
        catalog.refresh()
        found = catalog.reading.entry(root, b"k")
        assert found is not None
        assert found.size == 2
        catalog.close()


async def test_row_of_before_a_commit_under_way_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers grew already, and stay as they are when the commit is seen, in which the bytes of before went."""
    async with pair(tmp_path) as both:
        await both.store.put("box", b"k", b"1")
        catalog, sizes = both.replica._core.catalog, list[int]()
        catalog.refresh()
        root = catalog.reading.bucket("box").root  # type: ignore[union-attr]

        def look() -> None:
            catalog.refresh()
            found = catalog.reading.entry(root, b"k")
            sizes.append(found.size if found is not None else -1)

        with commit_parted(both, monkeypatch, look, look):
            await both.store.put("box", b"k", b"22")
        assert sizes == [1, 2]


async def test_look_ups_hold_until_something_changes(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await both.store.put("box", b"k", b"1")
        await both.store.put("box", b"other", b"1")
        assert await read(both.replica, b"k") == b"1"
        look = both.replica.looks.look("box", b"k")
        assert look is not None
        assert look.holds()
        await both.store.put("box", b"other", b"2")
        both.replica.find_user("")  # begins
        assert look.holds()
        await both.store.put("box", b"k", b"2")
        both.replica.find_user("")
        assert not look.holds()


async def test_sequence_is_that_of_the_last_record_though_groups_have_several(tmp_path: Path) -> None:
    """From there on the log is looked through for what may have been done."""
    async with pair(tmp_path) as both:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for key in (b"a", b"b"):
                    nursery.start_soon(both.store.put, "box", key, b"1")
            assert both.replica.files.sequence == both.store.files.sequence == both.page.sequence
        before = both.store.files.sequence
        await both.store.put("box", b"c", b"1")
        assert both.replica.files.sequence == before + 1


async def test_catalog_that_cannot_be_opened_for_a_moment_is_tried_again(tmp_path: Path) -> None:
    """As when a reader looks for a file that is being replaced."""
    async with pair(tmp_path) as both:
        await both.store.put("box", b"k", b"1")
        catalog = both.store.core.catalog
        away = tmp_path / "away"
        catalog.path.rename(away)
        catalog.generations.open()
        both.page.publish(catalog.generations, sequence=0, is_shut=False)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await both.replica.head("box", b"k")
            # what lets go at the end of each turn lives on
            await trio.sleep(0.01)
        away.rename(catalog.path)
        assert await read(both.replica, b"k") == b"1"
        await trio.sleep(0.01)
        replicas = both.replica._core.catalog
        assert isinstance(replicas, ReplicaCatalog)
        assert not replicas._reader.in_transaction


async def test_who_asks_what_is_closed_is_told_so(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        await both.store.put("box", b"k", b"1")
        catalog = ReplicaCatalog(both.store.core.catalog.path, both.page, pytest.fail)
        catalog.close()
        for _ in range(2):
            with pytest.raises(Unavailable):
                catalog.files.node(1)
            catalog.refresh()
            with pytest.raises(Unavailable):
                catalog.reading.bucket("box")
        catalog.close()
