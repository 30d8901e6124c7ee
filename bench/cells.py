"""What bench.s3 measures: operations, and the servers on which each is measured."""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from bench import zipf
from bench.load import Request
from bench.peers import Server

KIB: Final = 1 << 10
MIB: Final = 1 << 20
SMALL_BYTES: Final = 4 * KIB
LARGE_BYTES: Final = 64 * MIB
SMALL_KEYS: Final = 1000
LARGE_KEYS: Final = 4
LISTED_KEYS: Final = 1000
OURS, NGINX, SENDFILE = "couchestord", "nginx", "sendfile"
DURABLE, FAST = "SeaweedFS + fsync", "SeaweedFS"
MD5, SHARDS = "MD5", "shards written"
READ: Final = (OURS, DURABLE)
"""A read costs SeaweedFS the same with and without syncs, so it is measured once."""
WRITE: Final = (OURS, DURABLE, FAST)
Requests = Callable[["Subject"], Iterator[Request]]


@dataclass(frozen=True, slots=True)
class Subject:
    """One way of using a server: which bucket, and under which name its figures stand."""

    name: str
    server: Server
    bucket: str
    serial: Iterator[int]

    def request(self, method: str, key: str, body: bytes = b"", query: str = "", headers: str = "") -> Request:
        return self.server.signer.request(method, f"/{self.bucket}/{key}", query, body, headers)


@dataclass(frozen=True, slots=True)
class Operation:
    """What is measured. `requests` is called before the clock starts, so what it signs at once costs nothing."""

    name: str
    clients: int
    requests: Requests
    on: tuple[str, ...] = READ
    is_large: bool = False
    """Takes longer, and the server may use all cores."""


class Bodies:
    """What is stored: random bytes, the same for every server."""

    def __init__(self) -> None:
        rng = random.Random(0)
        self.small = rng.randbytes(SMALL_BYTES)
        self.large = rng.randbytes(LARGE_BYTES)


GET_1 = "GET 4 KiB, 1 client"
GET_32 = "GET 4 KiB, 32 clients"
GET_64 = "GET 4 KiB, 64 clients"
GET_ZIPF = "GET 4 KiB, Zipf, 32 clients"
HEAD_1 = "HEAD, 1 client"
HEAD_32 = "HEAD, 32 clients"
PUT_1 = "PUT 4 KiB, 1 client"
PUT_32 = "PUT 4 KiB, 32 clients"
MIXED_95 = "95 % GET, 5 % PUT, 32 clients"
MIXED_50 = "50 % GET, 50 % PUT, 32 clients"
PUT_LARGE = "PUT 64 MiB, 1 client"
GET_LARGE = "GET 64 MiB, 1 client"
GET_RANGE = "GET 4 KiB of 64 MiB, 8 clients"
LIST = "LIST 1000, 1 client"


def small(method: str) -> Requests:
    """Over SMALL_KEYS objects in turn."""
    return lambda subject: itertools.cycle([subject.request(method, f"small/{n:04}") for n in range(SMALL_KEYS)])


def mixed(put_share: float, body: bytes) -> Requests:
    """GETs and PUTs by chance, each of one of SMALL_KEYS objects that are there: PUTs replace what GETs read."""

    def requests(subject: Subject) -> Iterator[Request]:
        gets = [subject.request("GET", f"mixed/{n:04}") for n in range(SMALL_KEYS)]
        puts = [subject.request("PUT", f"mixed/{n:04}", body) for n in range(SMALL_KEYS)]
        chance = random.Random(next(subject.serial)).random
        return ((puts if chance() < put_share else gets)[int(chance() * SMALL_KEYS)] for _ in itertools.count())

    return requests


def operations(bodies: Bodies, zipf_keys: int) -> list[Operation]:
    def get_zipf(subject: Subject) -> Iterator[Request]:
        numbers = zipf.trace(zipf_keys, zipf.TRACE_LENGTH, next(subject.serial))
        return itertools.cycle(zipf.reads(subject.server, subject.bucket, numbers))

    def put_small(subject: Subject) -> Iterator[Request]:
        return (subject.request("PUT", f"put/{number:09}", bodies.small) for number in subject.serial)

    def put_large(subject: Subject) -> Iterator[Request]:
        return (subject.request("PUT", f"large/{n % LARGE_KEYS}", bodies.large) for n in subject.serial)

    def get_large(subject: Subject) -> Iterator[Request]:
        return (subject.request("GET", f"large/{n % LARGE_KEYS}") for n in subject.serial)

    def get_range(subject: Subject) -> Iterator[Request]:
        rng = random.Random(1)
        ranges = []
        for _ in range(SMALL_KEYS):
            first = rng.randrange(LARGE_BYTES // SMALL_BYTES) * SMALL_BYTES
            field = f"Range: bytes={first}-{first + SMALL_BYTES - 1}\r\n"
            ranges.append(subject.request("GET", f"large/{rng.randrange(LARGE_KEYS)}", headers=field))
        return itertools.cycle(ranges)

    def list_small(subject: Subject) -> Iterator[Request]:
        query = f"list-type=2&max-keys={LISTED_KEYS}&prefix=small%2F"
        return itertools.repeat(subject.server.signer.request("GET", f"/{subject.bucket}", query))

    return [
        Operation(GET_1, 1, small("GET"), (OURS, NGINX, DURABLE)),
        Operation(GET_32, 32, small("GET"), (OURS, NGINX, DURABLE)),
        Operation(GET_64, 64, small("GET"), (OURS, NGINX, DURABLE)),
        Operation(GET_ZIPF, 32, get_zipf, (OURS, FAST)),
        Operation(HEAD_1, 1, small("HEAD"), (OURS, NGINX, DURABLE)),
        Operation(HEAD_32, 32, small("HEAD"), (OURS, NGINX, DURABLE)),
        Operation(PUT_1, 1, put_small, WRITE),
        Operation(PUT_32, 32, put_small, WRITE),
        Operation(MIXED_95, 32, mixed(0.05, bodies.small)),
        Operation(MIXED_50, 32, mixed(0.50, bodies.small)),
        Operation(PUT_LARGE, 1, put_large, WRITE, is_large=True),
        Operation(GET_LARGE, 1, get_large, (OURS, SENDFILE, DURABLE), is_large=True),
        Operation(GET_RANGE, 8, get_range),
        Operation(LIST, 1, list_small),
    ]
