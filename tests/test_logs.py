import io
import json
import logging
from collections.abc import Iterator

import pytest

from couchestord import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the lines go; the logging of the test run is as before afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_line_has_time_level_event_and_fields(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream)
    logs.get("couchestord.x").warning("disk was lost", disk=3, reason="EIO")
    line = json.loads(stream.getvalue())
    assert list(line)[:3] == ["time", "level", "event"]
    assert {**line, "time": ""} == {
        **{"time": "", "level": "warning", "event": "disk was lost"},
        **{"disk": 3, "reason": "EIO", "logger": "couchestord.x"},
    }


def test_text_is_one_line_whatever_the_fields_hold(stream: io.StringIO) -> None:
    logs.configure("info", "text", stream)
    logs.get("couchestord.x").info("key\nwas odd", key='a "b"\r\nforged 2', n=1)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith('info    key\\nwas odd key="a \\"b\\"\\r\\nforged 2" n=1 [couchestord.x]\n')


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("name", ["secret_key", "Authorization", "x_signature", "password"])
def test_secret_is_never_written(stream: io.StringIO, form: str, name: str) -> None:
    logs.configure("debug", form, stream)
    logs.get("couchestord.x").debug("key was made", **{name: "hunter2"})
    assert "hunter2" not in stream.getvalue()
    assert "<redacted>" in stream.getvalue()


def test_level_filters_and_a_second_call_replaces_the_first(stream: io.StringIO) -> None:
    logs.configure("debug", "text", io.StringIO())
    logs.configure("warning", "text", stream)
    logs.get("couchestord.x").info("was quiet")
    logs.get("couchestord.x").error("was loud")
    assert stream.getvalue().count("\n") == 1
    assert "was loud" in stream.getvalue()


def test_lines_of_libraries_look_the_same(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream)
    logging.getLogger("some.library").warning("took %d s", 5)
    assert json.loads(stream.getvalue())["event"] == "took 5 s"


@pytest.mark.parametrize("form", ["text", "json"])
def test_defect_comes_with_its_traceback(stream: io.StringIO, form: str) -> None:
    logs.configure("info", form, stream)
    try:
        raise KeyError("gone")
    except KeyError:
        logs.get("couchestord.x").exception("job failed", job="destage")
    assert "KeyError: 'gone'" in stream.getvalue()
    assert "test_logs.py" in stream.getvalue()
