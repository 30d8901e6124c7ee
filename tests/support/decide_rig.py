"""A catalog with its decider and no journal: one request, one transaction; and a log to replay."""

import hashlib
import random
from pathlib import Path
from typing import Any

from couchestord.errors import Error
from couchestord.io import mutations as mu
from couchestord.io import requests as rq
from couchestord.io.catalog.catalog import Catalog
from couchestord.io.checksum import xxh3_64
from couchestord.io.records import record_digest
from couchestord.model import Attributes, Conditions, Policy
from couchestord.store.decide import Decider
from couchestord.store.mounts import Mounts

STORE_ID = b"store of a test!"
ANY = Conditions()


class StepClock:
    """A second passes at each look; the same randomness for the same seed."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = random.Random(seed)
        self.now = 1_700_000_000 * 10**9

    def now_ns(self) -> int:
        self.now += 10**9
        return self.now

    def random_bytes(self, count: int) -> bytes:
        return self._rng.randbytes(count)


def md5(body: bytes) -> bytes:
    return hashlib.md5(body, usedforsecurity=False).digest()


def put_request(
    bucket: str,
    key: bytes,
    body: bytes = b"",
    *,
    attributes: Attributes | None = None,
    conditions: Conditions = ANY,
    extents: tuple[mu.Extent, ...] | None = None,
) -> rq.PutObject:
    """A PUT whose body rides in the record, unless `extents` say otherwise."""
    if extents is None:
        extents = (mu.Extent(len(body)),) if body else ()
    size = sum(extent.length for extent in extents)
    return rq.PutObject(
        bucket, key, size, md5(body), attributes or Attributes(), conditions, extents, body, xxh3_64(body)
    )


class DecideRig:
    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.path = folder / "catalog.sqlite"
        Catalog.create(self.path, STORE_ID, Policy())
        self.catalog = Catalog(self.path)
        self.clock = StepClock(seed)
        self.decider = Decider(self.catalog, self.clock, lambda: 7, Mounts(folder / "mounts.json"))
        self.log: list[tuple[bytes, int]] = []

    def do(self, request: object) -> Any:
        """Decide and apply, or raise the refusal with nothing changed."""
        self.catalog.begin()
        try:
            decision = self.decider.decide(request)
            if decision.outcome is not None:
                total = decision.body_sum if decision.body else xxh3_64(b"")
                assert total is not None
                meta = mu.encode(decision.outcome)
                applier = self.catalog.applier
                applier.apply(decision.outcome, applier.sequence + 1, record_digest(meta, total))
                self.log.append((meta, total))
            self.catalog.commit()
        except Error:
            self.catalog.rollback()
            raise
        return decision.answer

    def replay(self, path: Path) -> Path:
        """The log on an empty catalog at `path`, which is left closed."""
        Catalog.create(path, STORE_ID, Policy())
        other = Catalog(path)
        other.begin()
        for sequence, (meta, total) in enumerate(self.log, start=1):
            other.applier.apply(mu.decode(meta), sequence, record_digest(meta, total))
            if sequence % 7 == 0:
                other.commit()
                other.begin()
        other.commit()
        other.close()
        return path

    # -- short forms -----------------------------------------------------------------------------------------------

    def bucket(self, name: str = "bucket", versioning: str = "") -> None:
        self.do(rq.MakeUser("owner", False))
        self.do(rq.MakeBucket(name, "owner"))
        if versioning:
            self.do(rq.SetVersioning(name, versioning))

    def put(self, key: bytes, body: bytes = b"", bucket: str = "bucket", **fields: Any) -> Any:
        return self.do(put_request(bucket, key, body, **fields))

    def delete(
        self, key: bytes, version_id: str | None = None, bucket: str = "bucket", conditions: Conditions = ANY
    ) -> Any:
        return self.do(rq.DeleteObject(bucket, key, version_id, conditions))

    def upload(self, key: bytes, bucket: str = "bucket") -> str:
        made: str = self.do(rq.MakeUpload(bucket, key, Attributes())).upload_id
        return made

    def part(self, key: bytes, upload: str, number: int, size: int, bucket: str = "bucket", tag: bytes = b"") -> str:
        """A part of `size` bytes that lie in the record; returns its etag."""
        etag = md5(b"%d %d " % (number, size) + tag)
        request = rq.PutPart(bucket, key, upload, number, size, etag, {}, (mu.Extent(size),) if size else ())
        made: str = self.do(request).etag
        return made

    def complete(
        self,
        key: bytes,
        upload: str,
        parts: list[tuple[int, str]],
        bucket: str = "bucket",
        conditions: Conditions = ANY,
    ) -> Any:
        return self.do(rq.CompleteUpload(bucket, key, upload, tuple(parts), conditions))

    def copy(
        self,
        key: bytes,
        source: bytes,
        *,
        bucket: str = "bucket",
        source_bucket: str = "bucket",
        version_id: str | None = None,
        attributes: Attributes | None = None,
        conditions: Conditions = ANY,
        source_conditions: Conditions = ANY,
    ) -> Any:
        return self.do(
            rq.CopyObject(bucket, key, source_bucket, source, version_id, attributes, conditions, source_conditions)
        )

    def close(self) -> None:
        self.catalog.close()
