"""What the jobs that put things into a backend can be told. Apart from them, as a store without one loads none."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UploadOptions:
    blob_bytes: int = 64 << 20
    extents_max: int = 16_384
    """In a blob."""
    linger_s: float = 600.0
    """So long extents wait for others to fill a blob, and for their own deletion."""
    read_back: bool = True
    """Prove every byte before a blob counts; else its size and index only."""
    retry_s: float = 1.0
    """After a failure; twice as long after each further one, up to `retry_s_max`."""
    retry_s_max: float = 300.0


@dataclass(frozen=True, slots=True)
class PublishOptions:
    run_bytes: int = 4 << 20
    """So much of the log is put at once."""
    run_age_s: float = 60.0
    """So long a record waits for others, and so much may be lost of the catalog with the node."""
    runs_max: int = 1024
    """Behind a root; then a new one is due."""
    root_age_s: float = 6 * 3600.0
    """Of the newest root, while somebody waits for a newer one."""
    retry_s: float = 1.0
    """After a failure; twice as long after each further one, up to `retry_s_max`."""
    retry_s_max: float = 300.0
