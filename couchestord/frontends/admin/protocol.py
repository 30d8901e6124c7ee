"""What goes over the admin socket: one JSON object a line, a request and its answer by turns.

A request is {"command": name, "arguments": {...}}; the answer is {"result": ...} or {"error": {"name", "message"}},
where the name is that of a class in `couchestord.errors`.
"""

import json
from typing import Any, Final

from couchestord import errors

SOCKET_NAME: Final = "couchestord.sock"
LINE_BYTES_MAX: Final = 1 << 20
"""Of a request. Answers have no limit: they come from ourselves."""


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Raises InvalidArgument when the line is no JSON object."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise errors.InvalidArgument("a request is one JSON object on a line")
    return message


def error_answer(error: errors.Error) -> dict[str, Any]:
    return {"error": {"name": type(error).__name__, "message": str(error)}}


def result_of(answer: dict[str, Any]) -> Any:
    """The result in an answer. Raises the error it carries, of the same class where that takes just a message."""
    if "error" not in answer:
        return answer["result"]
    found = getattr(errors, str(answer["error"]["name"]), None)
    message = str(answer["error"]["message"])
    if not (isinstance(found, type) and issubclass(found, errors.Error)) or found is errors.InvalidRange:
        found = errors.Error
    raise found(message)
