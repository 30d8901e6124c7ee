"""Rows of blobs and of what lies in them, kept in step: a blob's live bytes are the lengths of the extents with a copy
in it, and some of these lie nowhere else.
"""

from couchestord.errors import InternalError
from couchestord.io import mutations as mu
from couchestord.io.sqlite import Connection, Execute, Shut

STATE_BEGUN = 0
STATE_CONFIRMED = 1
STATE_DROPPED = 2


class BlobRows:
    """Applies what concerns blobs. Inside the caller's transaction."""

    def __init__(self, connection: Connection) -> None:
        self.connect(connection)

    def connect(self, connection: Connection | Shut) -> None:
        """Work through this connection from now on."""
        self._run: Execute = connection.execute

    def begun(self, it: mu.BlobBegun) -> None:
        self._run("insert into blob values (?, ?, ?, 0, 0, 0, 0)", (it.id, it.epoch, STATE_BEGUN))

    def confirmed(self, it: mu.BlobConfirmed) -> list[int]:
        """Answers the extents that lie in another place now."""
        moved = []
        self._run("update blob set state=?, size=? where id=?", (STATE_CONFIRMED, it.size, it.id))
        for copied in it.copies:
            extent, start = copied.extent, copied.start
            length, segment, old = self._run(
                "select length, segment, copy_blob from extent where id=?", (extent,)
            ).fetchone()
            if old is not None:
                self.add_live(old, -length)
            self.add_copy(extent, it.id, start, length)
            if segment == mu.IN_BLOB:
                self.add_only(old, -length)
                self._run("update extent set stripe=?, stripe_start=? where id=?", (it.id, start, extent))
                self.add_only(it.id, length)
                moved.append(extent)
        return moved

    def dropped(self, it: mu.BlobDropped, sequence: int) -> None:
        self._run("update blob set state=?, dropped=? where id=?", (STATE_DROPPED, sequence, it.id))

    def forgotten(self, it: mu.BlobForgotten) -> None:
        self._run("delete from blob where id=?", (it.id,))

    def copies_lost(self, it: mu.CopiesLost) -> None:
        for extent in it.extents:
            length, blob = self._run("select length, copy_blob from extent where id=?", (extent,)).fetchone()
            self._run("update extent set copy_blob=null, copy_start=null where id=?", (extent,))
            self.add_live(blob, -length)

    def add_copy(self, extent: int, blob: int, start: int, length: int) -> None:
        self._run("update extent set copy_blob=?, copy_start=? where id=?", (blob, start, extent))
        self.add_live(blob, length)

    def add_live(self, blob: int, length: int) -> None:
        self._add("live_bytes", blob, length)

    def add_only(self, blob: int, length: int) -> None:
        self._add("only_bytes", blob, length)

    def _add(self, column: str, blob: int, length: int) -> None:
        changed = self._run(f"update blob set {column}={column}+? where id=?", (length, blob)).rowcount
        if changed != 1:
            raise InternalError(f"an extent has a copy in blob {blob}, which does not exist")
