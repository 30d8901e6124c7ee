"""Where a bucket is, and who asks for it. Pure."""

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from couchestord.errors import InvalidArgument
from couchestord.remote.backend import check_prefix

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Location:
    """A bucket behind an S3 endpoint, and the prefix that all keys begin with."""

    host: str
    port: int
    secure: bool
    bucket: str
    prefix: str = ""
    """Empty, or it ends in a slash."""

    @property
    def authority(self) -> str:
        """What the Host header says: the port unless it is the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self._scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self._scheme}://{self.authority}/{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def _scheme(self) -> str:
        return "https" if self.secure else "http"


def parse_location(url: str) -> Location:
    """From `https://endpoint[:port]/bucket[/prefix]`. Raises InvalidArgument, which never repeats a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidArgument(f"not a URL: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise InvalidArgument("a URL of a bucket holds no key: keys are set beside it")
    if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.fragment:
        raise InvalidArgument("the URL of a bucket is https://ENDPOINT[:PORT]/BUCKET[/PREFIX], or http://")
    bucket, _, prefix = parts.path.removeprefix("/").rstrip("/").partition("/")
    if _BUCKET.fullmatch(bucket) is None:
        raise InvalidArgument(f"{bucket!r} is not the name of a bucket")
    check_prefix(prefix)
    secure = parts.scheme == "https"
    return Location(parts.hostname, port or _PORTS[parts.scheme], secure, bucket, prefix + "/" if prefix else "")


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key. Neither its secret nor its token is shown by `repr`."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)
