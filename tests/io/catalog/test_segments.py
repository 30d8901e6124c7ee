"""Questions about segments: right, and answered by an index, so that a step of a job costs little with many of them."""

import random
from collections import Counter
from pathlib import Path

from couchestord.io.catalog.catalog import Catalog
from couchestord.io.catalog.read import CatalogReader, PlacementRow
from couchestord.io.catalog.segments import STATE_SEALED, pack_disks
from couchestord.io.sqlite import Connection, open_writer
from couchestord.model import Policy

STORE_ID = b"store of a test!"
COUNT = 2000


class Spy:
    """A connection that notes how each question is answered."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.plans: list[str] = []

    def execute(self, statement: str, values: tuple[object, ...] = ()) -> object:
        rows = self._connection.execute(f"explain query plan {statement}", values).fetchall()
        self.plans.append(" ".join(str(row[3]) for row in rows))
        return self._connection.execute(statement, values)


def filled(path: Path) -> Connection:
    rng = random.Random(3)
    Catalog.create(path, STORE_ID, Policy())
    connection = open_writer(path)
    connection.execute("begin")
    for id_ in range(16, 16 + COUNT):
        turn = rng.randrange(6)
        disks = pack_disks([(turn + index) % 6 for index in range(6)])
        missing = rng.choice((0, 0, 0, 0, 0, 0, 0, 1, 6))
        live = rng.choice((0, rng.randrange(1, 4000), 16 * 4096 * 50))
        connection.execute(
            "insert into segment values (?, 1, ?, 4, 2, 65536, ?, ?, ?, ?, 0)",
            (id_, rng.choice((0, 1, 1, 1)), disks, missing, live, rng.choice((-1, 60, 65))),
        )
    connection.execute("commit")
    return connection


def test_segments_are_found_by_what_is_to_be_done_with_them(tmp_path: Path) -> None:
    connection = filled(tmp_path / "catalog.sqlite")
    reader = CatalogReader(connection)
    rows = reader.segments()
    sealed = [row for row in rows if row.state == STATE_SEALED]
    dead = {row.id for row in sealed if not row.live_bytes}
    assert {row.id for row in reader.segments_dead(COUNT)} == dead
    assert len(reader.segments_dead(7)) == 7
    unmeasured = {row.id for row in sealed if row.live_bytes and row.stripes_end < 0}
    thin = {row.id for row in sealed if row.live_bytes and row.live_bytes < 2048 * row.stripes_end * row.k}
    found = reader.segments_thin(2048, COUNT)
    assert {row.id for row in found} == thin | unmeasured
    assert {row.id for row in found[: len(unmeasured)]} == unmeasured
    fills = [row.live_bytes // (row.stripes_end * row.k) for row in found[len(unmeasured) :]]
    assert fills == sorted(fills)
    places = reader.placements()
    assert Counter({(place.disks, place.missing): place.segments_count for place in places}) == Counter(
        (row.disks, row.missing) for row in rows
    )
    for place in places:
        wanted = [row for row in rows if (row.disks, row.missing) == (place.disks, place.missing)]
        assert reader.segments_placed(place, COUNT) == wanted
    assert reader.segment_totals() == (len(rows), len(rows) - len(sealed), sum(row.live_bytes for row in rows))
    connection.close()


def test_each_question_of_a_job_has_its_index(tmp_path: Path) -> None:
    connection = filled(tmp_path / "catalog.sqlite")
    spy = Spy(connection)
    reader = CatalogReader(connection)
    reader.connect(spy)  # type: ignore[arg-type]
    reader.segments_dead(16)
    reader.segments_thin(2048, 64)
    reader.placements()
    reader.segments_placed(PlacementRow((0, 1, 2, 3, 4, 5), 1, 2, 0, 1), 64)
    reader.extents_count(16)
    indexes = ["segment_dead", "segment_thin", "segment_place", "segment_place", "extent_place"]
    for plan, index in zip(spy.plans, indexes, strict=True):
        assert f"INDEX {index}" in plan, plan
        assert "TEMP B-TREE" not in plan, plan
    connection.close()
