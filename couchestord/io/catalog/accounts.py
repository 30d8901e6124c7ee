"""Questions about uploads, users, policies, settings and jobs."""

from typing import NamedTuple

from couchestord.io.sqlite import Connection, OnError, Questions, Shut
from couchestord.model import Policy


class UploadRow(NamedTuple):
    id: str
    bucket: str
    key: bytes
    created_ns: int
    attributes: bytes | None


class PartRow(NamedTuple):
    number: int
    size: int
    etag: bytes
    modified_ns: int
    checksums: bytes | None
    pieces: bytes


class FinishedRow(NamedTuple):
    bucket: str
    key: bytes
    result: bytes


class UserRow(NamedTuple):
    name: str
    admin: int
    created_ns: int


class KeyRow(NamedTuple):
    id: str
    user: str
    secret: str
    created_ns: int


_POLICY = "id, name, k, m, stripe_bytes, min_healthy_shards, disk_class, created_ns"


class AccountReader:
    """Reads through one connection. Synchronous."""

    def __init__(self, connection: Connection | Shut, on_error: OnError | None = None) -> None:
        self.connect(connection, on_error)

    def connect(self, connection: Connection | Shut, on_error: OnError | None = None) -> None:
        """Read through this connection from now on. `on_error`: as for `Questions`."""
        ask = Questions(connection, on_error)
        self._row, self._rows = ask.row, ask.rows

    def upload(self, id_: str) -> UploadRow | None:
        row = self._row("select id, bucket, object_key, created_ns, attributes from upload where id=?", (id_,))
        return UploadRow(*row) if row else None

    def uploads(self, bucket: str, low: tuple[bytes, str], limit: int) -> list[UploadRow]:
        """Open uploads of a bucket after (key, id), by key, then id."""
        rows = self._rows(
            "select id, bucket, object_key, created_ns, attributes from upload where bucket=? and "
            "(object_key>? or (object_key=? and id>?)) order by object_key, id limit ?",
            (bucket, low[0], low[0], low[1], limit),
        )
        return [UploadRow(*row) for row in rows]

    def parts(self, upload: str, after: int = 0, limit: int = 10_001) -> list[PartRow]:
        rows = self._rows(
            "select number, size, etag, modified_ns, checksums, pieces from part where upload=? and "
            "number>? order by number limit ?",
            (upload, after, limit),
        )
        return [PartRow(*row) for row in rows]

    def finished(self, upload: str) -> FinishedRow | None:
        row = self._row("select bucket, object_key, result from finished_upload where id=?", (upload,))
        return FinishedRow(*row) if row else None

    def uploads_idle_since(self, before_ns: int, limit: int) -> list[UploadRow]:
        """Open uploads, the oldest first, that were begun and got their newest part before that time."""
        rows = self._rows(
            # an id begins with the time
            "select id, bucket, object_key, created_ns, attributes from upload where id<? and not exists "
            "(select 1 from part where upload=upload.id and modified_ns>=?) order by id limit ?",
            (f"{before_ns:016x}", before_ns, limit),
        )
        return [UploadRow(*row) for row in rows]

    def finished_before(self, finished_ns: int) -> bool:
        return self._row("select 1 from finished_upload where finished_ns<? limit 1", (finished_ns,)) is not None

    def user(self, name: str) -> UserRow | None:
        row = self._row("select name, admin, created_ns from account where name=?", (name,))
        return UserRow(*row) if row else None

    def users(self) -> list[UserRow]:
        return [
            UserRow(*row) for row in self._rows("select name, admin, created_ns from account order by created_ns, name")
        ]

    def keys(self) -> list[KeyRow]:
        rows = self._rows("select id, account, secret, created_ns from access_key order by created_ns, id")
        return [KeyRow(*row) for row in rows]

    def key(self, id_: str) -> KeyRow | None:
        row = self._row("select id, account, secret, created_ns from access_key where id=?", (id_,))
        return KeyRow(*row) if row else None

    def policies(self) -> list[Policy]:
        """The default first, then as they were made."""
        return [Policy(*row) for row in self._rows(f"select {_POLICY} from policy order by id")]

    def policy(self, id_: int) -> Policy:
        """The policy of that id, which something names: it must be there."""
        return Policy(*self._row(f"select {_POLICY} from policy where id=?", (id_,)))

    def policy_named(self, name: str) -> Policy | None:
        row = self._row(f"select {_POLICY} from policy where name=?", (name,))
        return Policy(*row) if row else None

    def jobs(self) -> dict[str, bytes]:
        return dict(self._rows("select name, state from job order by name"))
