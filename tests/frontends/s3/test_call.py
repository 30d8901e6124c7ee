"""What handlers are given."""

import threading
from typing import Any

import pytest

from couchestord.errors import MalformedXML
from couchestord.frontends.s3.call import Call


class Body:
    def __init__(self, length: int) -> None:
        self._length = length

    async def read(self, bytes_max: int) -> bytes:
        assert self._length <= bytes_max
        return bytes(self._length)


@pytest.mark.parametrize(("length", "in_thread"), [(1000, False), (1 << 20, True)])
async def test_long_xml_is_read_in_a_thread(length: int, in_thread: bool) -> None:
    nothing: Any = None
    call = Call(nothing, nothing, nothing, {}, nothing, nothing, nothing)
    body: Any = Body(length)

    def read(document: bytes, most: int) -> tuple[int, int, bool]:
        return len(document), most, threading.current_thread() is not loop

    def refuse(document: bytes, most: int) -> None:
        raise MalformedXML("no")

    loop = threading.current_thread()
    assert await call.read_xml(body, 1 << 20, read, 7) == (length, 7, in_thread)
    with pytest.raises(MalformedXML):
        await call.read_xml(body, 1 << 20, refuse, 7)
