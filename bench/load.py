"""A lean S3 client for measuring servers: sockets, epoll, Signature Version 4, nothing else.

It runs in the process that measures, so its CPU time is not the server's; `Load.cpu_s` says what it was, so that a
client that was the limit shows. Connections are kept alive, one request under way on each, payloads unsigned. Signing
takes about 10 us: whoever measures small reads signs before the clock starts (a signature is good for 15 minutes).
"""

import hashlib
import hmac
import select
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

RECEIVE_BYTES = 1 << 20
UNSIGNED = "UNSIGNED-PAYLOAD"
REGION = "us-east-1"
LAST_CHUNK = b"0\r\n\r\n"
TIMEOUT_S = 120.0
"""Without any event on any connection."""


@dataclass(frozen=True, slots=True)
class Request:
    """What goes over the wire: a head, and a body that several requests may share."""

    head: bytes
    body: bytes = b""
    has_response_body: bool = True


@dataclass(frozen=True, slots=True)
class Load:
    """What a load did. `received_bytes` are those of response bodies."""

    operations: int
    elapsed_s: float
    received_bytes: int
    cpu_s: float
    """Of this process."""

    @property
    def per_second(self) -> float:
        return self.operations / self.elapsed_s

    @property
    def busy(self) -> float:
        """Share of the time in which the client worked; near 1 the client was the limit, not the server."""
        return self.cpu_s / self.elapsed_s


class Failed(Exception):
    """A server did not answer as it must."""


class Signer:
    """Signs requests to one server. The time of signing is taken anew every minute."""

    def __init__(self, port: int, access_key: str, secret_key: str) -> None:
        self._host = f"127.0.0.1:{port}"
        self._access_key = access_key
        self._secret_key = secret_key
        self._signed_at = 0.0
        self._timestamp = self._scope = ""
        self._key = b""

    def _renew(self) -> None:
        now = time.time()
        if now - self._signed_at < 60:
            return
        self._signed_at = now
        self._timestamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        date = self._timestamp[:8]
        key = ("AWS4" + self._secret_key).encode()
        for part in (date, REGION, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        self._key, self._scope = key, f"{date}/{REGION}/s3/aws4_request"

    def request(self, method: str, path: str, query: str = "", body: bytes = b"", headers: str = "") -> Request:
        """A signed request. `path` begins with a slash, `query` is canonical, `headers` are lines left unsigned."""
        self._renew()
        names = "host;x-amz-content-sha256;x-amz-date"
        canonical = (
            f"{method}\n{quote(path)}\n{query}\nhost:{self._host}\nx-amz-content-sha256:{UNSIGNED}\n"
            f"x-amz-date:{self._timestamp}\n\n{names}\n{UNSIGNED}"
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{self._timestamp}\n{self._scope}\n{digest}"
        signature = hmac.digest(self._key, text.encode(), "sha256").hex()
        target = f"{quote(path)}?{query}" if query else quote(path)
        length = f"Content-Length: {len(body)}\r\n" if method in ("PUT", "POST") else ""
        head = (
            f"{method} {target} HTTP/1.1\r\nHost: {self._host}\r\nUser-Agent: bench\r\nAccept-Encoding: identity\r\n"
            f"x-amz-date: {self._timestamp}\r\nx-amz-content-sha256: {UNSIGNED}\r\n{headers}{length}"
            f"Authorization: AWS4-HMAC-SHA256 Credential={self._access_key}/{self._scope}, SignedHeaders={names}, "
            f"Signature={signature}\r\n\r\n"
        )
        return Request(head.encode(), body, method != "HEAD")


class Plain:
    """Requests without a signature, for servers that ask for none."""

    def __init__(self, port: int) -> None:
        self._host = f"127.0.0.1:{port}"

    def request(self, method: str, path: str, query: str = "", body: bytes = b"", headers: str = "") -> Request:
        target = f"{path}?{query}" if query else path
        length = f"Content-Length: {len(body)}\r\n" if method in ("PUT", "POST") else ""
        head = f"{method} {target} HTTP/1.1\r\nHost: {self._host}\r\nUser-Agent: bench\r\n{headers}{length}\r\n"
        return Request(head.encode(), body, method != "HEAD")


class _Connection:
    """One keep-alive connection with at most one request under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unsent: list[memoryview] = []
        self._head = bytearray()
        self._left: int | None = None
        self._chunked = False
        self._tail = b""
        self._bare = False
        self.received_bytes = 0
        self.kept: list[bytes] | None = None

    def begin(self, request: Request) -> bool:
        """Starts a request; True when all of it is sent."""
        self._bare = not request.has_response_body
        self._left, self._chunked, self._tail = None, False, b""
        if len(request.body) <= 64 << 10:
            head = request.head + request.body
            sent = self.socket.send(head)
            if sent == len(head):
                return True
            self._unsent = [memoryview(head)[sent:]]
        else:
            self._unsent = [memoryview(request.head), memoryview(request.body)]
        return self.send()

    def send(self) -> bool:
        """Sends on; True when all of the request is sent."""
        try:
            while self._unsent:
                sent = self.socket.send(self._unsent[0])
                self._unsent[0] = self._unsent[0][sent:]
                if not len(self._unsent[0]):
                    del self._unsent[0]
        except BlockingIOError:
            return False
        return True

    def receive(self, buffer: bytearray) -> bool:
        """Reads on; True when the response is complete. Raises Failed unless its status is 2xx."""
        try:
            count = self.socket.recv_into(buffer)
        except BlockingIOError:
            return False
        if not count:
            raise Failed("the server closed the connection")
        start = 0
        if self._left is None:
            self._head += memoryview(buffer)[:count]
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return False
            self._read_head(bytes(self._head[:end]).lower())
            start = count - (len(self._head) - end - 4)
            self._head.clear()
        return self._take(memoryview(buffer)[start:count])

    def _read_head(self, head: bytes) -> None:
        """Of a response, in lower case."""
        if head[9:10] != b"2":
            raise Failed(f"{head.decode()}: {bytes(self._head[len(head) :])[:500]!r}")
        self._chunked = b"\r\ntransfer-encoding: chunked" in head and not self._bare
        at = head.find(b"\r\ncontent-length:")
        bare = self._bare or self._chunked or at < 0
        self._left = 0 if bare else int(head[at + 17 :].partition(b"\r\n")[0])

    def _take(self, data: memoryview) -> bool:
        assert self._left is not None
        self.received_bytes += len(data)
        if self.kept is not None:
            self.kept.append(bytes(data))
        if self._chunked:
            self._tail = (self._tail + bytes(data))[-len(LAST_CHUNK) :]
            return self._tail == LAST_CHUNK
        self._left -= len(data)
        return self._left <= 0


def run(port: int, requests: Iterator[Request], clients: int, duration_s: float | None) -> Load:
    """Sends `requests`, one under way on each of `clients` connections, until the time is over or there are no more.

    Requests under way at the end are waited for. Raises Failed for any answer but 2xx.
    """
    connections = [_Connection(port) for _ in range(clients)]
    by_number = {connection.socket.fileno(): connection for connection in connections}
    poll = select.epoll()
    buffer = bytearray(RECEIVE_BYTES)
    operations = 0
    busy = 0
    begun, cpu_begun = time.perf_counter(), time.process_time()
    deadline = begun + duration_s if duration_s is not None else float("inf")

    def begin(number: int, connection: _Connection, register: bool) -> bool:
        request = next(requests, None) if time.perf_counter() < deadline else None
        if request is None:
            return False
        events = select.EPOLLIN if connection.begin(request) else select.EPOLLIN | select.EPOLLOUT
        if register:
            poll.register(number, events)
        elif events & select.EPOLLOUT:
            poll.modify(number, events)
        return True

    try:
        for number, connection in by_number.items():
            busy += begin(number, connection, True)
        while busy:
            events = poll.poll(TIMEOUT_S)
            if not events:
                raise Failed(f"no answer within {TIMEOUT_S:g} s")
            for number, event in events:
                connection = by_number[number]
                if event & select.EPOLLOUT and connection.send():
                    poll.modify(number, select.EPOLLIN)
                if event & ~select.EPOLLOUT and connection.receive(buffer):
                    operations += 1
                    if not begin(number, connection, False):
                        busy -= 1
        elapsed_s, used_s = time.perf_counter() - begun, time.process_time() - cpu_begun
    finally:
        poll.close()
        for connection in connections:
            connection.socket.close()
    return Load(operations, elapsed_s, sum(connection.received_bytes for connection in connections), used_s)


def fetch(port: int, request: Request) -> bytes:
    """The body of one response, de-chunked where that is needed. Raises Failed unless the status is 2xx."""
    connection = _Connection(port)
    connection.kept = []
    buffer = bytearray(RECEIVE_BYTES)
    with connection.socket:
        connection.socket.setblocking(True)
        connection.socket.settimeout(TIMEOUT_S)
        connection.begin(request)
        while not connection.receive(buffer):
            pass
    return _joined(connection.kept, connection._chunked)


def _joined(pieces: Sequence[bytes], chunked: bool) -> bytes:
    data = b"".join(pieces)
    if not chunked:
        return data
    body = []
    while data:
        length, _, data = data.partition(b"\r\n")
        size = int(length.partition(b";")[0], 16)
        if not size:
            break
        body.append(data[:size])
        data = data[size + 2 :]
    return b"".join(body)
