"""Every error of the tree has an answer."""

from types import SimpleNamespace
from typing import Any

import pytest

from couchestord import errors
from couchestord.frontends.s3.errors import TABLE, message, s3_code
from couchestord.frontends.s3.server import _Answer


def leaves(cls: type[errors.Error]) -> list[type[errors.Error]]:
    found = [leaf for sub in cls.__subclasses__() if sub.__module__ == errors.__name__ for leaf in leaves(sub)]
    return found or [cls]


@pytest.mark.parametrize("leaf", leaves(errors.Error), ids=lambda leaf: leaf.__name__)
def test_each_leaf_is_in_the_table(leaf: type[errors.Error]) -> None:
    code, status = TABLE[leaf]
    assert code.isalnum()
    assert status == 304 or 400 <= status < 600


def test_subclasses_follow_their_base_and_strangers_are_internal() -> None:
    class Special(errors.NoSuchKey): ...

    assert s3_code(Special("x")) == ("NoSuchKey", 404)
    assert s3_code(ValueError("x")) == ("InternalError", 500)


@pytest.mark.parametrize("error", [ValueError("secret"), errors.DataLost("secret"), errors.TooFewDisks("secret")])
def test_the_inside_of_the_store_is_not_told(error: Exception) -> None:
    assert "secret" not in message(error)


async def test_lost_data_is_one_line_in_the_log_and_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    server: Any = SimpleNamespace()
    request: Any = SimpleNamespace(method=b"GET", target=b"/box/k", content_length=0)
    response = _Answer(server, request, b"ID")._refusal(
        errors.DataLost("box/b'k': segment 7: 3 of 4+2 shards are left")
    )
    assert response.status == 500
    assert isinstance(response.body, bytes)
    assert b"<Code>InternalError</Code>" in response.body
    assert b"missing disks" in response.body
    (line,) = caplog.records
    assert line.exc_info is None
    assert "segment 7: 3 of 4+2 shards are left" in line.getMessage()


def test_statuses_that_clients_act_on() -> None:
    assert s3_code(errors.NoSpace()) == ("InsufficientStorage", 507)
    assert s3_code(errors.JournalFull()) == ("SlowDown", 503)
    assert s3_code(errors.NotSupported()) == ("NotImplemented", 501)
