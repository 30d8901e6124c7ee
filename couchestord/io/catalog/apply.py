"""Outcomes into rows. The same code runs when a mutation is committed and when the log is replayed.

Nothing here decides: no clock, no randomness, no condition on the request. What follows from an outcome (an inode that
lost its last name, a content without references, a directory without entries) is worked out from the rows, which are
the same in both runs.
"""

import struct
from collections.abc import Callable
from typing import Any

from couchestord.errors import InternalError
from couchestord.io import mutations as mu
from couchestord.io.catalog.accountrows import AccountRows
from couchestord.io.catalog.blobrows import BlobRows
from couchestord.io.catalog.changes import Watch
from couchestord.io.catalog.directoryrows import DirectoryRows
from couchestord.io.catalog.filerows import FileRows
from couchestord.io.catalog.generations import Generations
from couchestord.io.catalog.inoderows import InodeRows
from couchestord.io.catalog.piecerows import PieceRows
from couchestord.io.catalog.segments import SegmentRows
from couchestord.io.sqlite import Connection, Execute, Shut

ENTRY_VERSIONED = 1
VERSION_MARKER = 2
_DIGEST = struct.Struct("<Q")
_OF_NAMES = frozenset((mu.BucketRemoved, mu.BucketVersioned, mu.BucketPolicySet, mu.UserRemoved, mu.KeyRemoved))
_OF_SEGMENTS = frozenset((mu.SegmentSealed, mu.SegmentDropped, mu.ShardsLost, mu.ShardPlaced))


class Applier:
    """Applies outcomes through the writing connection, inside the caller's transaction."""

    def __init__(self, connection: Connection) -> None:
        self._run: Execute = connection.execute
        self.store_id = b""
        self.sequence = 0
        self.digest = 0
        self.next_id = 0
        self.tree_generation = 0
        self.generations = Generations()
        self.watch = Watch()
        """For mounts."""
        self._accounts = AccountRows(connection)
        self._blobs = BlobRows(connection)
        self._segments = SegmentRows(connection, self._blobs)
        self._pieces = PieceRows(connection, self._segments, self)
        self._inodes = InodeRows(connection, self._segments, self._pieces, self)
        self._directories = DirectoryRows(connection, self)
        self._files = FileRows(connection, self._inodes, self._pieces, self._directories, self)
        self._by_type: dict[type, Callable[[Any], None]] = {
            mu.BucketMade: self._bucket_made,
            mu.BucketRemoved: self._bucket_removed,
            mu.BucketVersioned: self._accounts.bucket_versioned,
            mu.BucketPolicySet: self._accounts.bucket_policy_set,
            mu.ObjectPut: self._object_put,
            mu.ObjectDeleted: self._object_deleted,
            mu.VersionDeleted: self._version_deleted,
            mu.UploadMade: self._upload_made,
            mu.PartPut: self._part_put,
            mu.UploadAborted: self._upload_aborted,
            mu.ResultsForgotten: self._results_forgotten,
            mu.UserMade: self._accounts.user_made,
            mu.UserRemoved: self._accounts.user_removed,
            mu.KeyMade: self._accounts.key_made,
            mu.KeyRemoved: self._accounts.key_removed,
            mu.SettingPut: self._accounts.setting_put,
            mu.JobPut: self._accounts.job_put,
            mu.PolicyPut: self._accounts.policy_put,
            mu.SegmentMade: self._segment_made,
            mu.SegmentSealed: self._segments.sealed,
            mu.SegmentDropped: self._segments.dropped,
            mu.ShardsLost: self._segments.shards_lost,
            mu.ShardPlaced: self._segments.shard_placed,
            mu.ExtentsMoved: self._extents_moved,
            mu.BlobBegun: self._blob_begun,
            mu.BlobConfirmed: self._blob_confirmed,
            mu.BlobDropped: self._blob_dropped,
            mu.BlobForgotten: self._blobs.forgotten,
            mu.CopiesLost: self._blobs.copies_lost,
            **self._files.by_type,
        }
        self.load()

    def connect(self, connection: Connection | Shut) -> None:
        """Work through this connection from now on. `load` comes next."""
        self._run = connection.execute
        contents = self._blobs, self._segments, self._pieces, self._inodes
        for rows in (self._accounts, *contents, self._directories, self._files):
            rows.connect(connection)

    def load(self) -> None:
        """Take the counters from the state row: at the start, and after a rollback."""
        row = self._run("select store_id, sequence, digest, next_id, tree_generation from state").fetchone()
        self.store_id, self.sequence, digest, self.next_id, self.tree_generation = row
        self.digest = _DIGEST.unpack(digest)[0]

    def apply(self, outcome: mu.AnyOutcome, sequence: int, digest: int) -> None:
        """Apply the record of the next sequence. Call `save` before the transaction is committed."""
        if sequence != self.sequence + 1:
            raise InternalError(f"record {sequence} does not follow {self.sequence}")
        self.sequence = sequence
        self.digest = digest
        kind = type(outcome)
        if kind in _OF_NAMES:
            self.generations.change_names()
        elif kind in _OF_SEGMENTS:
            self.generations.change_segments()
        self._by_type[kind](outcome)

    def save(self) -> None:
        """Write the counters, in the same transaction as the rows."""
        self._run(
            "update state set sequence=?, digest=?, next_id=?, tree_generation=?",
            (self.sequence, _DIGEST.pack(self.digest), self.next_id, self.tree_generation),
        )

    def change_tree(self) -> None:
        """A directory moved or went."""
        self.tree_generation += 1
        self.generations.change_tree()

    def change_object(self, directory: int, name: bytes) -> None:
        """An entry names another object, or none."""
        self.generations.change_object(directory, name)
        self.watch.name(directory, name)

    def use_ids(self, first: int, count: int = 1) -> None:
        """These are never given out again."""
        self.next_id = max(self.next_id, first + count)

    # -- buckets -----------------------------------------------------------------------------------------------------

    def _bucket_made(self, it: mu.BucketMade) -> None:
        self._directories.insert_root(it.root, it.created_ns)
        self._run(
            "insert into bucket values (?, ?, ?, ?, '', ?)", (it.name, it.root, it.owner, it.created_ns, it.policy)
        )
        self.use_ids(it.root)
        self.watch.bucket(it.name)

    def _bucket_removed(self, it: mu.BucketRemoved) -> None:
        (root,) = self._run("select root from bucket where name=?", (it.name,)).fetchone()
        for (upload,) in self._run("select id from upload where bucket=?", (it.name,)).fetchall():
            self._forget_upload(upload)
        self._run("delete from finished_upload where bucket=?", (it.name,))
        self._run("delete from bucket where name=?", (it.name,))
        for table in ("directory", "inode"):
            self._run(f"delete from {table} where id=?", (root,))
        self._run("delete from xattr where inode=?", (root,))
        self.change_tree()
        self.watch.bucket(it.name)

    # -- objects ---------------------------------------------------------------------------------------------------

    def _object_put(self, it: mu.ObjectPut) -> None:
        self.change_object(it.directory, it.name)
        self._directories.insert_made(it.made, it.modified_ns)
        content: int | None = None
        if it.extents is not None:
            content = it.content or it.id
            self._inodes.insert_content(content, it.extents, it.size, it.policy)
        else:
            content = self._pieces.insert(it.id, it.pieces, it.size)
        if it.upload:
            self._forget_upload(it.upload)
            self._run(
                "insert into finished_upload select ?, b.name, ?, ?, ? from bucket b where b.root=?",
                (
                    it.upload,
                    self._directories.key_of(it.directory, it.name),
                    it.modified_ns,
                    it.result,
                    self._directories.root_of(it.directory),
                ),
            )
        if not self._leave_current(it.directory, it.name, it) and it.keep_open:
            self._directories.touch(it.made[0].parent if it.made else it.directory, it.modified_ns)
        if it.drop_null:
            self._drop_null(it.directory, it.name, it.modified_ns)
        self._inodes.insert_object(it.id, it.size, content, it.directory, it.name)
        self._run(
            "insert or replace into entry values (?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?)",
            (it.directory, it.name, it.id, it.id, content, it.size, it.etag, it.modified_ns,
             ENTRY_VERSIONED if it.versioned else 0, it.attributes or None),
        )  # fmt: skip
        self.use_ids(it.id)

    def _object_deleted(self, it: mu.ObjectDeleted) -> None:
        self.change_object(it.directory, it.name)
        self._directories.insert_made(it.made, it.modified_ns)
        self._leave_current(it.directory, it.name, it)
        self._run("delete from entry where directory=? and name=?", (it.directory, it.name))
        if it.keep_open:
            self._directories.touch(it.directory, it.modified_ns)
        if it.drop_null:
            self._drop_null(it.directory, it.name, it.modified_ns)
        if it.marker:
            flags = VERSION_MARKER | (ENTRY_VERSIONED if it.marker_versioned else 0)
            self._run(
                "insert into version values (?, ?, ?, null, 0, x'', ?, ?, null)",
                (it.directory, it.name, it.marker, it.modified_ns, flags),
            )
            self.use_ids(it.marker)
        changed_ns = it.modified_ns if it.keep_open else None
        self._directories.prune(it.directory, changed_ns, kept_too=it.with_directory)

    def _version_deleted(self, it: mu.VersionDeleted) -> None:
        self.change_object(it.directory, it.name)
        where = (it.directory, it.name)
        live = self._run("select inode from entry where directory=? and name=? and child=0", where).fetchone()
        if live and live[0] == it.id:
            self._run("delete from entry where directory=? and name=?", where)
            self._inodes.release(it.id, where)
            live = None
        else:
            self._drop_version(it.directory, it.name, it.id)
        if not live:
            self._promote_newest(it.directory, it.name, it.id)
        self._directories.prune(it.directory)

    def _promote_newest(self, directory: int, name: bytes, deleted: int) -> None:
        """In place of the live object or marker of that number."""
        row = self._run(
            "select id, content, size, etag, modified_ns, flags, attributes from version where directory=? and name=? "
            "order by id desc limit 1",
            (directory, name),
        ).fetchone()
        if not row or row[5] & VERSION_MARKER:
            return
        id_, content, size, etag, modified_ns, flags, attributes = row
        self._run(
            "insert into entry values (?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?)",
            # its own number may be the cookie of another of its names
            (directory, name, id_, deleted, content, size, etag, modified_ns, flags, attributes),
        )
        self._run("delete from version where directory=? and name=? and id=?", (directory, name, id_))
        self._inodes.restore(id_, (directory, name))

    def _leave_current(self, directory: int, name: bytes, it: mu.ObjectPut | mu.ObjectDeleted) -> bool:
        """The entry's present object becomes noncurrent, or goes; the entry's row stays for the caller. False: there is
        none.
        """
        row = self._run("select inode from entry where directory=? and name=?", (directory, name)).fetchone()
        if row is None:
            return False
        if it.keep_current:
            self._run(
                "insert into version select directory, name, inode, content, size, etag, modified_ns, "
                "flags, attributes "
                "from entry where directory=? and name=?",
                (directory, name),
            )
            self._inodes.shelve(row[0], (directory, name))
        else:
            self._inodes.release(row[0], (directory, name), changed_ns=it.modified_ns, keep=it.keep_open)
        return True

    def _drop_null(self, directory: int, name: bytes, changed_ns: int) -> None:
        rows = self._run(
            "select id from version where directory=? and name=? and (flags & 1) = 0", (directory, name)
        ).fetchall()
        for (id_,) in rows:
            self._drop_version(directory, name, id_, changed_ns)

    def _drop_version(self, directory: int, name: bytes, id_: int, changed_ns: int | None = None) -> None:
        where = (directory, name, id_)
        row = self._run("select flags from version where directory=? and name=? and id=?", where).fetchone()
        if row is None:
            return
        self._run("delete from version where directory=? and name=? and id=?", where)
        if not row[0] & VERSION_MARKER:
            self._inodes.release(id_, (directory, name), changed_ns=changed_ns)

    # -- uploads -----------------------------------------------------------------------------------------------------

    def _upload_made(self, it: mu.UploadMade) -> None:
        self._run(
            "insert into upload values (?, ?, ?, ?, ?)",
            (it.upload, it.bucket, it.key, it.created_ns, it.attributes or None),
        )

    def _part_put(self, it: mu.PartPut) -> None:
        if it.pieces or (it.size and not it.extents):  # of others; or of nothing, zeroes that a mount has left out
            pieces = it.pieces
            for piece in pieces:
                self._run("update content set refs=refs+1 where id=?", (piece.content,))
        else:
            self._inodes.insert_content(it.id, it.extents, it.size, it.policy)
            pieces = (mu.Piece(0, it.id, 0, it.size),)
        old = self._run("select pieces from part where upload=? and number=?", (it.upload, it.number)).fetchone()
        self._run(
            "insert or replace into part values (?, ?, ?, ?, ?, ?, ?)",
            (it.upload, it.number, it.size, it.etag, it.modified_ns, it.checksums or None, mu.encode_pieces(pieces)),
        )
        if old:
            self._release_pieces(old[0])

    def _upload_aborted(self, it: mu.UploadAborted) -> None:
        self._forget_upload(it.upload)

    def _forget_upload(self, upload: str) -> None:
        for (pieces,) in self._run("select pieces from part where upload=?", (upload,)).fetchall():
            self._release_pieces(pieces)
        self._run("delete from part where upload=?", (upload,))
        self._run("delete from upload where id=?", (upload,))

    def _release_pieces(self, encoded: bytes) -> None:
        for piece in mu.decode_pieces(encoded):
            self._segments.release_content(piece.content)

    def _results_forgotten(self, it: mu.ResultsForgotten) -> None:
        self._run("delete from finished_upload where finished_ns<?", (it.before_ns,))

    # -- segments ----------------------------------------------------------------------------------------------------

    def _extents_moved(self, it: mu.ExtentsMoved) -> None:
        for move in it.moves:
            self.generations.change_place(move.extent)
        self._segments.extents_moved(it)

    def _segment_made(self, it: mu.SegmentMade) -> None:
        self._segments.made(it)
        self.use_ids(it.id)

    def _blob_begun(self, it: mu.BlobBegun) -> None:
        self._blobs.begun(it)
        self.use_ids(it.id, it.ids)

    def _blob_confirmed(self, it: mu.BlobConfirmed) -> None:
        for extent in self._blobs.confirmed(it):
            self.generations.change_place(extent)

    def _blob_dropped(self, it: mu.BlobDropped) -> None:
        self._blobs.dropped(it, self.sequence)
