"""The credentials file that `up` leaves for clients, and how to use it.

It has the format that AWS's tools and SDKs read, so the secret need not be pasted anywhere. It is a copy: the key
itself lies in the store, and deleting or editing the file changes nothing there.
"""

import os
import shlex
from pathlib import Path

from couchestord import logs
from couchestord.config import S3Config
from couchestord.model import AccessKey
from couchestord.parsing import Address

_log = logs.get(__name__)
_TEXT = """\
# Written by `couchestord up`: a copy of the store's oldest access key, for clients.
[default]
aws_access_key_id = {access_key}
aws_secret_access_key = {secret_key}
"""

_LINES = """
paste to use it:
  export AWS_SHARED_CREDENTIALS_FILE={file} AWS_REGION={region} AWS_ENDPOINT_URL={url}{trust}
awscli
  aws s3 mb s3://first; echo hello | aws s3 cp - s3://first/hello
boto3
  python3 -c 'import boto3; s3 = boto3.client("s3"); print(s3.list_buckets()["Buckets"])'
s5cmd
  s5cmd --endpoint-url {url} ls
rclone
  export RCLONE_S3_PROVIDER=Other RCLONE_S3_ENV_AUTH=true RCLONE_S3_ENDPOINT={url} RCLONE_S3_REGION={region}
  {rclone} lsd :s3:

Ctrl-C stops it in good order.\
"""


_TRUST = """
  export AWS_CA_BUNDLE={ca}  # unless this machine trusts the certificate anyway"""
_RCLONE_TRUSTS = "env -u AWS_CA_BUNDLE rclone --ca-cert {ca}"
"""It refuses to run with AWS_CA_BUNDLE."""


def path_in(data: Path) -> Path:
    return data.absolute() / "credentials"


def write(data: Path, key: AccessKey) -> None:
    """Writes the file anew unless it says the same already; 0600 from its first moment. When it cannot be written, that
    is logged: the store has the key.
    """
    path = path_in(data)
    text = _TEXT.format(access_key=key.access_key, secret_key=key.secret_key).encode()
    try:
        if path.exists() and path.read_bytes() == text and path.stat().st_mode & 0o777 == 0o600:
            return
        new = path.with_name(path.name + ".new")
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)
        new.rename(path)
    except OSError as error:
        _log.warning("the file for clients cannot be written", path=str(path), reason=error.strerror)


def lines_to_paste(data: Path, address: Address, s3: S3Config) -> str:
    """How to reach the server at `address` with four clients. Holds no secret."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    url = f"{s3.scheme}://{Address(host, address.port)}"
    trust, rclone = "", "rclone"
    if s3.tls_certificate is not None:
        ca = shlex.quote(str(s3.tls_certificate.absolute()))
        trust, rclone = _TRUST.format(ca=ca), _RCLONE_TRUSTS.format(ca=ca)
    file, region = shlex.quote(str(path_in(data))), shlex.quote(s3.region)
    return _LINES.format(file=file, region=region, url=url, trust=trust, rclone=rclone)
