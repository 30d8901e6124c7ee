"""Servers and backends that the tests of this folder share."""

from backends import couchestord_bucket, open_backend, seaweedfs_bucket

__all__ = ["couchestord_bucket", "open_backend", "seaweedfs_bucket"]
