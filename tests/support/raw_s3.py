"""An S3 client that sends what it is told, and shows what comes back."""

import socket
import time
from dataclasses import dataclass
from urllib.parse import quote

from couchestord.model import AccessKey
from couchestord.signing import canonical_request, signing_key, string_to_sign

REGION = "us-east-1"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Raw:
    """A keep-alive connection to one of the servers."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.file = self.socket.makefile("rb")

    def ask(
        self,
        key: AccessKey,
        method: str,
        path: bytes,
        query: str = "",
        more: dict[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        self.socket.sendall(signed(key, self.port, method, path, query, more or {}, body))
        status = int(self.file.readline().split(b" ")[1])
        headers: dict[str, str] = {}
        while (line := self.file.readline()) != b"\r\n":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        length = 0 if method == "HEAD" else int(headers.get("content-length", "0"))
        body = self.file.read(length)
        if headers.pop("connection", "") == "close":
            self.close()
            self.__init__(self.port)  # type: ignore[misc]
        request_id = headers.pop("x-amz-request-id")
        assert len(request_id) == 16
        del headers["date"]
        return Answer(status, tuple(sorted(headers.items())), body.replace(request_id.encode(), b"ID"))

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def signed(
    key: AccessKey, port: int, method: str, path: bytes, query: str, more: dict[str, str], body: bytes = b""
) -> bytes:
    """`more`: further headers; "wrong" makes the signature wrong."""
    payload = more.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
    timestamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    headers = {
        "host": f"127.0.0.1:{port}",
        "x-amz-content-sha256": payload,
        "x-amz-date": timestamp,
        **{name: value for name, value in more.items() if name.startswith("x-amz-")},
    }
    names = sorted(headers)
    fields = [tuple(part.partition("=")[::2]) for part in query.split("&") if part]
    canonical = canonical_request(
        method.encode(),
        path,
        [(name.encode(), value.encode()) for name, value in fields],
        {name.encode(): value.encode() for name, value in headers.items()},
        [name.encode() for name in names],
        payload.encode(),
    )
    scope = f"{timestamp[:8]}/{REGION}/s3/aws4_request"
    derived = signing_key(key.secret_key, timestamp[:8], REGION)
    signature = derived.sign(string_to_sign(timestamp, scope, canonical))
    if more.get("wrong"):
        signature = "0" * 64
    headers |= {name: value for name, value in more.items() if name != "wrong"}
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={key.access_key}/{scope}, SignedHeaders={';'.join(names)}, Signature={signature}"
    )
    target = quote(path, safe="/-_.~") + (f"?{query}" if query else "")
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if method == "PUT" or body:
        lines += f"content-length: {len(body)}\r\n"
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + body
