"""Logs: events with fields, as text or JSON, one line each (a traceback follows a defect). The door to structlog.

A library user who configures nothing gets what the standard `logging` does; `configure` is for the daemon. Fields whose
name says that they are secret are never written.
"""

import logging
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TextIO, cast

import structlog

_SECRET_WORDS: Final = ("secret", "password", "authorization", "signature", "token")


class Logger(Protocol):
    """What a module logs with. `event` is a constant phrase in the past tense; what varies goes into `fields`."""

    def debug(self, event: str, **fields: Any) -> Any: ...
    def info(self, event: str, **fields: Any) -> Any: ...
    def warning(self, event: str, **fields: Any) -> Any: ...
    def error(self, event: str, **fields: Any) -> Any: ...
    def exception(self, event: str, **fields: Any) -> Any:
        """An error with the traceback of the exception being handled: for defects, not for what is expected."""
        ...


def get(name: str) -> Logger:
    """The logger of that name, usually the module's `__name__`."""
    logger = structlog.wrap_logger(
        logging.getLogger(name),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
    )
    return cast(Logger, logger)


def configure(level: str, form: str, stream: TextIO) -> None:
    """Write every logger's lines from `level` on (debug, info, warning, error) to `stream`, as `form`: text or json.

    Replaces what an earlier call set.
    """
    last: list[Any] = [_text]
    if form == "json":
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(sort_keys=False, default=str)]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[],
            processors=[_describe, structlog.stdlib.ProcessorFormatter.remove_processors_meta, _redact, *last],
        )
    )
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old.formatter, structlog.stdlib.ProcessorFormatter)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


def _describe(_logger: Any, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Time, level and logger first, from the record: the same for our lines and those of libraries."""
    record: logging.LogRecord = event["_record"]
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    head = {"time": time.replace("+00:00", "Z"), "level": record.levelname.lower(), "event": event.get("event", "")}
    return {**head, **event, "logger": record.name}


def _redact(_logger: Any, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    return {key: "<redacted>" if _is_secret(key) else value for key, value in event.items()}


def _is_secret(key: str) -> bool:
    return any(word in key.lower() for word in _SECRET_WORDS)


def _text(_logger: Any, _method: str, event: structlog.types.EventDict) -> str:
    """TIME LEVEL EVENT key=value ... [logger]. Control characters are escaped: an event is one line."""
    event = dict(event)
    exc_info = event.pop("exc_info", None)
    head = f"{event.pop('time')} {event.pop('level'):<7} {_one_line(event.pop('event'))}"
    name = event.pop("logger")
    parts = [head, *(f"{key}={_value(value)}" for key, value in event.items()), f"[{name}]"]
    line = " ".join(parts)
    if not exc_info:
        return line
    rendered: dict[str, Any] = dict(structlog.processors.format_exc_info(_logger, _method, {"exc_info": exc_info}))
    return f"{line}\n{rendered.get('exception', '')}"


def _one_line(value: object) -> str:
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in str(value))


def _value(value: object) -> str:
    text = _one_line(value)
    if text and not set(text) & set(' ="'):
        return text
    return '"' + text.replace('"', '\\"') + '"'
