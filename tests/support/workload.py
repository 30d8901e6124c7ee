"""Mixed load on a store, and what may be read from it afterwards.

The expected state lives here, outside the daemon. An acknowledged operation leaves one thing that a key may hold; one
that failed or was cut off leaves two, what was there before and what it would have made: until the key is written
again, or read after a start, for a commit that failed may turn out at the next start to have happened.
"""

import hashlib
import random
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import botocore.exceptions
import urllib3

ABSENT: Final = None
Digest = bytes | None
FAILURES: Final = (
    botocore.exceptions.BotoCoreError,
    botocore.exceptions.ClientError,
    urllib3.exceptions.HTTPError,
    OSError,
)
"""HTTPError: a body that breaks off."""
SMALL_BYTES: Final = (0, 1, 100, 4096, 20_000, 100_000)
LARGE_BYTES: Final = (200_000, 1_300_000)
LISTED_KEYS: Final = 50
BUCKET: Final = "load"


def digest_of(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def content(seed: str, length: int) -> bytes:
    """Bytes that no other seed gives."""
    return random.Random(seed).randbytes(length)


def read(client: Any, bucket: str, key: str) -> bytes | None:
    """The whole object, None when there is none. Raises what the client raises, and for a body that is cut short."""
    try:
        answer = client.get_object(Bucket=bucket, Key=key)
    except botocore.exceptions.ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            return None
        raise
    with answer["Body"] as body:
        data: bytes = body.read()
    return data


class Expected:
    """What each key may hold."""

    def __init__(self, bucket: str = BUCKET) -> None:
        self.bucket = bucket
        self.keys: dict[str, set[Digest]] = {}
        self.acknowledged_count = 0
        self.failed_count = 0
        self.first_failure: BaseException | None = None
        self.promises_end = threading.Event()
        """Once set, an answer is no promise any more: the power is going."""
        self._lock = threading.Lock()

    def write(self, key: str, digest: Digest, call: Callable[[], object]) -> bool:
        """Do one operation that leaves `digest` under the key; False when it failed."""
        try:
            call()
        except FAILURES as error:
            with self._lock:
                self.failed_count += 1
                self.first_failure = self.first_failure or error
                self.keys.setdefault(key, {ABSENT}).add(digest)
            return False
        with self._lock:
            self.acknowledged_count += 1
            if self.promises_end.is_set():
                self.keys.setdefault(key, {ABSENT}).add(digest)
            else:
                self.keys[key] = {digest}
        return True

    def put(self, client: Any, key: str, data: bytes) -> bool:
        return self.write(key, digest_of(data), lambda: client.put_object(Bucket=self.bucket, Key=key, Body=data))

    def delete(self, client: Any, key: str) -> bool:
        return self.write(key, ABSENT, lambda: client.delete_object(Bucket=self.bucket, Key=key))

    def upload(self, client: Any, key: str, parts: list[bytes]) -> bool:
        """A multipart upload."""

        def run() -> None:
            place = {"Bucket": self.bucket, "Key": key}
            upload = client.create_multipart_upload(**place)["UploadId"]
            etags = [
                client.upload_part(**place, UploadId=upload, PartNumber=number, Body=part)["ETag"]
                for number, part in enumerate(parts, start=1)
            ]
            listed = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, start=1)]
            client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": listed})

        return self.write(key, digest_of(b"".join(parts)), run)

    def check(self, key: str, data: bytes | None, *, settled: bool = False) -> None:
        """What was read must be one whole thing that the key may hold; if `settled`, from now on it is the only one."""
        found = ABSENT if data is None else digest_of(data)
        may_be = self.keys.get(key, {ABSENT})
        if found not in may_be:
            size = "nothing" if data is None else f"{len(data)} bytes"
            kinds = sorted("absent" if digest is None else digest.hex()[:8] for digest in may_be)
            raise AssertionError(f"{key} holds {size} ({found and found.hex()[:8]}), it may hold {kinds}")
        if settled:
            self.keys[key] = {found}

    def verify(self, client: Any, *, settled: bool = True) -> None:
        """Read every key, byte for byte, then list: the listing must agree.

        `settled`: no commit has failed since the start, so what is there now stays.
        """

        def look(key: str) -> str | None:
            data = read(client, self.bucket, key)
            self.check(key, data, settled=settled)
            return None if data is None else key

        with ThreadPoolExecutor(4) as pool:
            present = [key for key in pool.map(look, list(self.keys)) if key is not None]
        assert listing(client, self.bucket) == sorted(present)

    def read_all(self, client: Any) -> int:
        """As `verify` while things are broken: a read may fail, it may never be wrong. How many failed."""
        failed = 0
        for key in list(self.keys):
            try:
                data = read(client, self.bucket, key)
            except FAILURES:
                failed += 1
            else:
                self.check(key, data)
        return failed


def listing(client: Any, bucket: str) -> list[str]:
    """All keys, in pages that are small, so that even a few files need several."""
    small = {"PageSize": LISTED_KEYS}
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig=small)
    return [row["Key"] for page in pages for row in page.get("Contents", ())]


def step(expected: Expected, client: Any, random_: random.Random, owner: str, keys_count: int = 40) -> bool:
    """One operation on a key of `owner`: put small or large, multipart, delete, or read; False when it failed."""
    key = f"{owner}/{random_.randrange(keys_count)}"
    seed = f"{key} {random_.random()}"
    chance = random_.random()
    if chance < 0.55:
        return expected.put(client, key, content(seed, random_.choice(SMALL_BYTES)))
    if chance < 0.67:
        return expected.put(client, key, content(seed, random_.randrange(*LARGE_BYTES)))
    if chance < 0.70:
        return expected.upload(client, key, [content(seed, 5 << 20), content(seed, 70_000)])
    if chance < 0.85:
        return expected.delete(client, key)
    try:
        data = read(client, expected.bucket, key)
    except FAILURES:
        return False
    expected.check(key, data)
    return True


class Load:
    """Threads that each step on keys of their own until told to stop. A context manager."""

    def __init__(self, expected: Expected, client: Any, seed: int, threads_count: int = 4) -> None:
        self._expected = expected
        self._client = client
        self._stop = threading.Event()
        self._progress = threading.Semaphore(0)
        self._wrong: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(f"t{number}", random.Random(f"{seed} {number}")))
            for number in range(threads_count)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._wrong:
            raise self._wrong[0]

    def _run(self, owner: str, random_: random.Random) -> None:
        failures = 0
        try:
            while not self._stop.is_set() and failures < 20:
                failures = 0 if step(self._expected, self._client, random_, owner) else failures + 1
                if failures:
                    self._stop.wait(0.02)
                else:
                    self._progress.release()
        except BaseException as error:
            self._wrong.append(error)

    def wait_for(self, steps_count: int, timeout_s: float = 60.0) -> None:
        """Until that many more steps have succeeded."""
        for _ in range(steps_count):
            assert self._progress.acquire(timeout=timeout_s), f"no step within {timeout_s} s: {self._wrong}"

    def progressed(self) -> None:
        """Forget the steps done so far, so that `wait_for` counts new ones."""
        while self._progress.acquire(blocking=False):
            pass


def fill(expected: Expected, client: Any, prefix: str, sizes: Iterable[int]) -> None:
    """Put one object of each size; all must be acknowledged."""
    for number, size in enumerate(sizes):
        key = f"{prefix}/{number}"
        assert expected.put(client, key, content(f"{key} {size}", size)), f"{key}: {expected.first_failure}"
