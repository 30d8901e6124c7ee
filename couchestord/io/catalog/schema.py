"""The catalog's tables, for the whole design, in SQL that SQLite and PostgreSQL share. Pure.

Ids (directories, inodes, contents, extents, markers, segments, cookies) come from one counter and are never used
again. The object that a plain PUT makes has one number for its inode, its cookie, its content and its first extent.
"""

SCHEMA_VERSION = 5

TABLES: dict[str, str] = {
    # one row: what the catalog is, and up to where the log has been applied
    "state": """
        store_id blob not null, schema_version integer not null, sequence integer not null, digest blob not null,
        next_id integer not null, tree_generation integer not null""",
    "bucket": "name text not null primary key, root integer not null, owner text not null, created_ns "
    "integer not null, "
    "versioning text not null, policy integer not null",
    # how data is coded and placed; 0 is the default. A segment has the geometry that its policy had when it was made
    "policy": """
        id integer not null primary key, name text not null unique, k integer not null, m integer not null,
        stripe_bytes integer not null, min_healthy_shards integer not null, disk_class text not null,
        created_ns integer not null""",
    # root directories have parent 0; kept: made or touched through a mount, stays when it is empty. The inode of one
    # that is kept has its number; changed_ns: of those without; children: directories in it
    "directory": "id integer not null primary key, parent integer not null, name blob not null, kept integer not null, "
    "changed_ns integer not null, children integer not null",
    # the tree: (directory, name) to the live object, or with `child` to a directory (name ends in a slash). content:
    # the content that is all of the inode, when one is. modified_ns: when the bytes were published. flags: 1 = the
    # object has a version id of its own
    "entry": """
        directory integer not null, name blob not null, child integer not null, inode integer, cookie integer not null,
        content integer, size integer, etag blob, modified_ns integer, flags integer not null, attributes blob,
        primary key (directory, name)""",
    # noncurrent versions and delete markers; a higher id is newer. flags: 1 = versioned, 2 = delete marker
    "version": """
        directory integer not null, name blob not null, id integer not null, content integer, size integer not null,
        etag blob not null, modified_ns integer not null, flags integer not null, attributes blob,
        primary key (directory, name, id)""",
    # nlink: entries that name it and versions that are it. directory, name: one of these, an entry if there is one.
    # null in mode, times: those of an object put through S3 (a file of mode 0644 of root's, as old as its entry says)
    "inode": """
        id integer not null primary key, nlink integer not null, size integer not null, content integer,
        directory integer, name blob, mode integer, uid integer, gid integer, rdev integer, target blob,
        accessed_ns integer, modified_ns integer, changed_ns integer""",
    "xattr": "inode integer not null, name blob not null, value blob not null, primary key (inode, name)",
    # the other entries that name an inode, and versions that are it: hard links
    "link": "inode integer not null, directory integer not null, name blob not null, primary key (inode, "
    "directory, name)",
    # inodes without a name that a mount may hold open
    "orphan": "inode integer not null primary key",
    # what a file is made of that is not one whole content; zeroes where there is none
    "piece": """
        inode integer not null, start integer not null, content integer not null, content_start integer not null,
        length integer not null, primary key (inode, start)""",
    # files that mounts have written and that are made of pieces: how many, and above how many they are to be joined;
    # live: bytes of the pieces; held: bytes of the contents that they are of, each counted once
    "worn": "inode integer not null primary key, pieces integer not null, bound integer not null, live integer not "
    "null, held integer not null",
    # refs: pieces and parts that name it. Its extents have the ids id to id + extents - 1; policy: what they lie under
    "content": "id integer not null primary key, refs integer not null, extents integer not null, length "
    "integer not null, policy integer not null",
    # segment 0: in the body of the journal record of sequence `stripe`; 1: in the blob `stripe`, and not on the disks;
    # 2: nowhere, lost. stored_length, codec, crypt_key null: as is. copy_blob, copy_start: the confirmed blob that
    # holds it as well, and where its frames begin there; null: it has no copy
    "extent": """
        id integer not null primary key, start integer not null, length integer not null, segment integer not null,
        stripe integer not null, stripe_start integer not null, stored_length integer, codec integer, crypt_key
        integer, copy_blob integer, copy_start integer""",
    # objects in a bucket of another store. state: 0 begun, 1 confirmed, 2 dropped by the record of sequence `dropped`.
    # live_bytes: of the extents with a copy there; only_bytes: of those among them that are not on the disks
    "blob": """
        id integer not null primary key, epoch integer not null, state integer not null, size integer not null,
        live_bytes integer not null, only_bytes integer not null, dropped integer not null""",
    # state: 0 open, 1 sealed. disks: little-endian int16 per shard, -1 for none. missing: bit i, shard i is not whole
    "segment": """
        id integer not null primary key, epoch integer not null, state integer not null, k integer not null,
        m integer not null, stripe_bytes integer not null, disks blob not null, missing integer not null,
        live_bytes integer not null, stripes_end integer not null, policy integer not null""",
    "upload": "id text not null primary key, bucket text not null, object_key blob not null, created_ns "
    "integer not null, "
    "attributes blob",
    "part": """
        upload text not null, number integer not null, size integer not null, etag blob not null,
        modified_ns integer not null, checksums blob, pieces blob not null, primary key (upload, number)""",
    # what a completed upload answered, kept for a day so that a repeated complete answers the same
    "finished_upload": "id text not null primary key, bucket text not null, object_key blob not null, "
    "finished_ns integer not null, result blob not null",
    "account": "name text not null primary key, admin integer not null, created_ns integer not null",
    "access_key": "id text not null primary key, account text not null, secret text not null, created_ns "
    "integer not null",
    "setting": "name text not null primary key, value blob not null",
    "job": "name text not null primary key, state blob not null",
}

CLUSTERED = frozenset({"entry", "version", "xattr", "link", "piece", "part"})
"""Tables kept in the order of their primary key (WITHOUT ROWID in SQLite)."""

INDEXES: dict[str, str] = {
    "piece_content": "piece (content)",
    "worn_crowded": "worn (1000 * pieces / bound) where pieces > bound",
    "worn_loose": "worn (1000 * held / live) where 3 * held > 4 * live",
    "extent_place": "extent (segment, stripe)",
    "extent_copy": "extent (copy_blob) where copy_blob is not null",
    "blob_begun": "blob (id) where state = 0",
    "blob_dead": "blob (id) where state = 1 and live_bytes = 0",
    "blob_dropped": "blob (id) where state = 2",
    "blob_thin": "blob (1000 * live_bytes / size) where state = 1 and live_bytes > 0 and size > 2 * live_bytes",
    "upload_key": "upload (bucket, object_key, id)",
    "segment_place": "segment (disks, missing, m, policy)",
    "segment_dead": "segment (id) where state = 1 and live_bytes = 0",
    "segment_thin": "segment (live_bytes / (stripes_end * k)) where state = 1 and live_bytes > 0",
}


def statements() -> list[str]:
    """What makes an empty catalog, in SQLite's dialect."""
    made = [
        f"create table {name} ({columns}){' without rowid' if name in CLUSTERED else ''}"
        for name, columns in TABLES.items()
    ]
    return made + [f"create index {name} on {on}" for name, on in INDEXES.items()]
