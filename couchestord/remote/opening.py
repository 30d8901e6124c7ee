"""From settings to a backend. Keys are read from files, so that they are in no configuration, environment or process
list.
"""

import os
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from couchestord import logs
from couchestord.clock import Clock
from couchestord.errors import ConfigError, InvalidArgument, RemoteDenied
from couchestord.remote.backend import Backend
from couchestord.remote.folder import FolderBackend
from couchestord.remote.location import Credentials, parse_location
from couchestord.remote.s3 import S3Backend, S3Options

log = logs.get(__name__)

_SECRET_BYTES_MAX: Final = 16 << 10
"""Tokens are long."""


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """Which backend, and how it is entered."""

    url: str
    """`https://ENDPOINT/BUCKET[/PREFIX]`, `http://...`, or `file:///FOLDER`."""
    region: str = "us-east-1"
    access_key: str = ""
    secret_key_file: Path | None = None
    session_token_file: Path | None = None
    """For keys that expire: read anew, with the secret, when the server refuses what was there."""
    ca_file: Path | None = None
    """Certificates to trust instead of those that the machine trusts."""


def open_backend(settings: RemoteSettings, clock: Clock) -> Backend:
    """The backend; nothing is asked of it yet. Raises ConfigError, which names what cannot be used and no secret.

    Reads the files of keys and certificates at once, as it is part of a start: local ones, and short.
    """
    try:
        parts = urlsplit(settings.url)
        if parts.scheme == "file":
            if parts.netloc or parts.query or parts.fragment:
                raise InvalidArgument("the URL of a folder is file:///FOLDER")
            return FolderBackend(Path(unquote(parts.path)), clock.random_bytes)
        location = parse_location(settings.url)
    except (InvalidArgument, ValueError) as error:
        raise ConfigError(f"the URL of the backend cannot be used: {error}") from None
    if not settings.access_key or settings.secret_key_file is None:
        raise ConfigError("a bucket needs an access key, and a file with its secret key")
    trusted = None
    if settings.ca_file is not None:
        try:
            trusted = ssl.create_default_context(cafile=str(settings.ca_file))
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(f"no certificates in {settings.ca_file}: {error.strerror or error}") from None
    try:
        return S3Backend(
            location, lambda: _read_credentials(settings), clock, S3Options(region=settings.region), trusted
        )
    except RemoteDenied as error:
        raise ConfigError(str(error)) from None


def _read_credentials(settings: RemoteSettings) -> Credentials:
    """As the files say now. Raises RemoteDenied."""
    assert settings.secret_key_file is not None
    secret_key = _read_secret(settings.secret_key_file)
    token = _read_secret(settings.session_token_file) if settings.session_token_file is not None else ""
    return Credentials(settings.access_key, secret_key, token)


def _read_secret(path: Path) -> str:
    """One line of printable ASCII. The error never shows it; the log says when others may read it."""
    try:
        with path.open("rb") as file:
            raw = file.read(_SECRET_BYTES_MAX + 1)
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    except OSError as error:
        raise RemoteDenied(f"cannot read {path}: {error.strerror}") from None
    secret = raw.removesuffix(b"\n").removesuffix(b"\r").decode("latin-1")
    if not secret or len(secret) > _SECRET_BYTES_MAX or not secret.isascii() or not secret.isprintable():
        raise RemoteDenied(f"{path} does not hold a secret: one line of printable characters")
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning("others than its owner may read a secret: chmod 600", path=str(path), mode=f"{mode:o}")
    return secret
