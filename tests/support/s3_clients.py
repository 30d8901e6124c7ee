"""boto3 clients of a server that a test runs, and what tests ask them."""

import hashlib
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from couchestord.model import AccessKey

MIB = 1 << 20


def connect(live: Any, key: AccessKey | None = None, region: str = "us-east-1", **settings: Any) -> Any:
    key = key or live.admin
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{live.port}",
        region_name=region,
        aws_access_key_id=key.access_key,
        aws_secret_access_key=key.secret_key,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, **settings),
    )


def code_of(raised: pytest.ExceptionInfo[ClientError]) -> tuple[str, int]:
    response = raised.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def body_of(size: int) -> bytes:
    return hashlib.shake_128(b"%d" % size).digest(size)
